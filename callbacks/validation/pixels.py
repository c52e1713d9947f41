"""How a network's input becomes pixels again."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from einops import rearrange
from torch import Tensor, nn

from litcam.explain.networks import timm_models
from litcam.explain.scores import what_is


@dataclass
class Pixels:
    """Undoes a normalisation: `mean` and `std` of the channels, and where they were found."""

    mean: tuple[float, ...]
    std: tuple[float, ...]
    source: str
    given: bool = False
    own: Callable[[Tensor], Tensor] | None = None

    @classmethod
    def find(
        cls,
        trainer: pl.Trainer,
        network: nn.Module,
        loader: Any,
        mean: Sequence[float] = (),
        std: Sequence[float] = (),
        own: Callable[[Tensor], Tensor] | None = None,
    ) -> "Pixels":
        """The callback's argument, the data's `Normalize`, timm's data config, else min–max."""
        if own is not None:
            return cls((), (), "the given function", own=own)
        if mean:
            return cls(tuple(mean), tuple(std), "the given mean and std", given=True)
        data: Any = getattr(trainer, "datamodule", None)
        normalize = _find_normalize(getattr(loader, "dataset", None))
        configs: list[Any] = [model.pretrained_cfg for _, model in timm_models(network)]
        timm = [(_floats(c.get("mean")), _floats(c.get("std"))) for c in configs]
        sources: list[tuple[str, tuple[float, ...], tuple[float, ...]]] = [
            (f"{type(data).__name__}'s mean and std", *_mean_and_std(data)),
            ("the dataset's Normalize", *_mean_and_std(normalize)),
            *(("timm's data config", *pair) for pair in timm),
        ]
        for source, found_mean, found_std in sources:
            if found_mean and len(found_mean) == len(found_std):
                return cls(found_mean, found_std, source)
        return cls((), (), "min-max")

    def to_pixels(self, images: Tensor, span: Tensor | None = None) -> np.ndarray:
        """Images `(batch, channels, height, width)` as uint8 `(batch, height, width, 3)`.

        Args:
            images: on the CPU.
            span: of the batch that they are a part of, by `find_span`. It tells whether they are
                normalised: one bright photo may lack dark pixels.
        """
        low, high = (find_span(images) if span is None else span).tolist()
        images = images.detach().float()
        if self.own is not None:
            return _as_bytes(_check(self.own(images), images))
        known = len(self.mean) == len(self.std) == images.shape[1]
        # Not of pixels in [0, 1]: of bytes, as Caffe has them, or of what a sensor counts.
        others = known and max(*self.mean, *self.std) > 1
        if low >= 0 and not (known and (self.given or others)):
            # Normalised photos have values below zero: these are still pixels.
            images, self.source = images / (255 if high > 1 else 1), "none needed"
        elif known:
            mean, std = (rearrange(torch.tensor(v), "c -> c 1 1") for v in (self.mean, self.std))
            images = images * std + mean
            if others:
                bytes_ = max(self.mean) < 256 and images.amax() < 300
                images = images / 255 if bytes_ else _stretch(images)
                units = "" if bytes_ else ", in other units than pixels: min-max"
                self.source = self.source.removesuffix(units) + units
        else:
            self.source = "min-max"
            images = _stretch(images)
        return _as_bytes(images)


def find_span(images: Tensor) -> Tensor:
    """The lowest and the highest value of a batch, `(2,)`, on its device."""
    return torch.stack([images.amin(), images.amax()])


def _stretch(images: Tensor) -> Tensor:
    """Each from its own minimum to its own maximum."""
    lows, highs = (f((1, 2, 3), keepdim=True) for f in (images.amin, images.amax))
    return (images - lows) / (highs - lows).clamp_min(1e-8)


def _check(pixels: Tensor, images: Tensor) -> Tensor:
    wanted = (len(images), 3)
    if not isinstance(pixels, Tensor) or pixels.ndim != 4 or pixels.shape[:2] != wanted:
        raise ValueError(f"pixels must give ({len(images)}, 3, h, w), got {what_is(pixels)}")
    return pixels.detach().float()


def _as_bytes(images: Tensor) -> np.ndarray:
    images = images.expand(-1, 3, -1, -1) if images.shape[1] == 1 else images[:, :3]
    images = images.nan_to_num(0.0).clamp(0, 1).mul(255).round().to(torch.uint8)
    return rearrange(images, "b c h w -> b h w c").numpy()


def _mean_and_std(owner: Any) -> tuple[tuple[float, ...], tuple[float, ...]]:
    return _floats(getattr(owner, "mean", None)), _floats(getattr(owner, "std", None))


def _floats(value: Any) -> tuple[float, ...]:
    """Numbers, however a stranger keeps them; empty if they are none, such as a method."""
    try:
        return tuple(torch.as_tensor(value).float().flatten().tolist())
    except (TypeError, ValueError, RuntimeError):
        return ()


def _find_normalize(value: Any, depth: int = 0) -> Any:
    """A `Normalize` with mean and std in a dataset's transforms, however deep."""
    if value is None or depth > 6:
        return None
    if type(value).__name__ == "Normalize" and hasattr(value, "mean") and hasattr(value, "std"):
        return value
    parts = value if isinstance(value, list | tuple) else []
    inside = ("transform", "transforms", "dataset", "datasets")
    parts = [*parts, *(getattr(value, name, None) for name in inside)]
    return next((n for n in (_find_normalize(p, depth + 1) for p in parts) if n is not None), None)
