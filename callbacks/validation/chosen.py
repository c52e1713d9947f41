"""Which validation images are shown, and how the network's input becomes pixels again."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from einops import rearrange
from lightning.pytorch.utilities import CombinedLoader
from torch import Tensor, nn
from torch.utils.data import DataLoader, DistributedSampler, SequentialSampler, Subset

from litcam.explain.networks import timm_models

LABELS = ("label", "labels", "target", "targets", "y")


@dataclass
class ShownImages:
    """The images of one validation loader that are shown, by their index in the dataset.

    The same ones at every epoch and on any number of processes. Where nothing tells the index of
    an image in a batch (a shuffled loader of plain tuples) the first ones that pass are shown.

    Attributes:
        indices: dataset indices, in order; empty while they are not known.
        num_images: how many are shown.
        by_index: whether batches tell, or let one compute, the dataset index.
    """

    indices: list[int]
    num_images: int
    by_index: bool

    @classmethod
    def choose(
        cls, trainer: pl.Trainer, loader: Any, num_batches: float, wanted: Sequence[int], num: int
    ) -> "ShownImages":
        """Spreads `num` images evenly over what is validated, unless `wanted` names them.

        Raises:
            IndexError: a wanted index does not exist in the dataset.
        """
        size = _length(getattr(loader, "dataset", None))
        if size is None:
            return cls([], num, by_index=False)
        if wanted:
            wrong = [index for index in wanted if not 0 <= index < size]
            if wrong:
                raise IndexError(f"image {wrong[0]} does not exist: the set has {size} images")
            return cls(_below(loader.dataset, wanted), len(wanted), by_index=True)
        batch_size = getattr(loader, "batch_size", None)
        if batch_size:
            size = min(size, int(min(num_batches, size) * batch_size * trainer.world_size))
        spread = np.linspace(0, size - 1, min(num, size)).round().astype(int)
        return cls(_below(loader.dataset, sorted(set(spread.tolist()))), num, by_index=True)

    def describe(self) -> str:
        """How many there are, and how they were chosen."""
        order = "by dataset index" if self.by_index else "the first that pass, by unknown index"
        return f"{len(self.indices) or self.num_images} images, {order}"

    def find(self, batch: Any, batch_idx: int, loader: Any, seen: set[int]) -> dict[int, int]:
        """Positions in the batch of images to show, with their dataset indices."""
        indices = _indices_of(batch, batch_idx, loader) if self.by_index else None
        if indices is None:
            self.by_index = False
            start, size = len(seen), _size_of(batch)
            return {i: start + i for i in range(min(self.num_images - start, size))}
        wanted = set(self.indices) - seen
        found: dict[int, int] = {}
        for position, index in enumerate(indices):
            if index in wanted and index not in found.values():
                found[position] = index
        return found


def find_labels(batch: Any) -> Tensor | None:
    """Class numbers `(batch,)` in a batch; of soft labels the strongest, -1 where there is no one.

    Of a tuple the first whole numbers after the images are meant, else shares `(batch, classes)`:
    of images, boxes and labels the labels. Several classes of one image are no single label.
    """
    if isinstance(batch, Mapping):
        found = [batch[name] for name in LABELS if name in batch][:1]
    else:
        found = list(batch[1:]) if isinstance(batch, Sequence) else []
    tensors = [labels for labels in found if isinstance(labels, Tensor)]
    for labels in tensors:
        if labels.ndim == 1 and not labels.is_floating_point() and labels.dtype != torch.bool:
            return labels
    for labels in tensors:
        if labels.ndim == 2 and labels.shape[1] > 1:
            shares = labels.float()
            single = ((shares.sum(1) - 1).abs() < 0.01) & (shares >= 0).all(1)
            return shares.argmax(1).where(single, -1)
    return None


def find_loaders(trainer: pl.Trainer) -> tuple[list[Any], Sequence[float]]:
    """The loaders that are evaluated now, and how many batches of each."""
    loaders = trainer.test_dataloaders if trainer.testing else trainer.val_dataloaders
    batches = trainer.num_test_batches if trainer.testing else trainer.num_val_batches
    return CombinedLoader(loaders, "sequential").flattened, batches


def find_dataset(loader: Any) -> Any:
    """The dataset behind a loader, out of `Subset` and the like."""
    dataset: Any = getattr(loader, "dataset", None)
    while hasattr(dataset, "dataset") and not hasattr(dataset, "classes"):
        dataset = dataset.dataset
    return dataset


@dataclass
class Pixels:
    """Undoes a normalisation: `mean` and `std` of the channels, and where they were found."""

    mean: tuple[float, ...]
    std: tuple[float, ...]
    source: str
    given: bool = False

    @classmethod
    def find(
        cls,
        trainer: pl.Trainer,
        network: nn.Module,
        loader: Any,
        given: tuple[Sequence[float], Sequence[float]],
    ) -> "Pixels":
        """The callback's argument, the data's `Normalize`, timm's data config, else min–max."""
        if given[0]:
            return cls(tuple(given[0]), tuple(given[1]), "the given mean and std", given=True)
        data: Any = getattr(trainer, "datamodule", None)
        normalize = _find_normalize(getattr(loader, "dataset", None))
        configs: list[Any] = [model.pretrained_cfg for _, model in timm_models(network)]
        timm = [(_floats(c.get("mean")), _floats(c.get("std"))) for c in configs]
        sources: list[tuple[str, tuple[float, ...], tuple[float, ...]]] = [
            (f"{type(data).__name__}'s mean and std", *_mean_and_std(data)),
            ("the dataset's Normalize", *_mean_and_std(normalize)),
            *(("timm's data config", *pair) for pair in timm),
        ]
        for source, mean, std in sources:
            if mean and len(mean) == len(std):
                return cls(mean, std, source)
        return cls((), (), "min-max")

    def to_pixels(self, images: Tensor, rows: Sequence[int]) -> np.ndarray:
        """Rows of `(batch, channels, height, width)` as uint8 `(rows, height, width, 3)`.

        The whole batch tells whether it is normalised: one bright photo may lack dark pixels.
        """
        low, high = images.amin().item(), images.amax().item()
        images = images[list(rows)].detach().float().cpu()
        known = len(self.mean) == len(self.std) == images.shape[1]
        if low >= 0 and not (known and self.given):
            # Normalised photos have values below zero: these are still pixels.
            images, self.source = images / (255 if high > 1 else 1), "none needed"
        elif known:
            mean, std = (rearrange(torch.tensor(v), "c -> c 1 1") for v in (self.mean, self.std))
            images = images * std + mean
        else:
            self.source = "min-max"
            lows, highs = (f((1, 2, 3), keepdim=True) for f in (images.amin, images.amax))
            images = (images - lows) / (highs - lows).clamp_min(1e-8)
        images = images.expand(-1, 3, -1, -1) if images.shape[1] == 1 else images[:, :3]
        images = images.nan_to_num(0.0).clamp(0, 1).mul(255).round().to(torch.uint8)
        return rearrange(images, "b c h w -> b h w c").numpy()


def _length(dataset: Any) -> int | None:
    try:
        return len(dataset)
    except (TypeError, NotImplementedError):
        return None


def _size_of(batch: Any) -> int:
    if isinstance(batch, Tensor):
        return len(batch) if batch.ndim == 4 else 0
    if not isinstance(batch, Mapping | list | tuple):
        return 0
    values = batch.values() if isinstance(batch, Mapping) else batch
    return next(filter(None, map(_size_of, values)), 0)


def _indices_of(batch: Any, batch_idx: int, loader: Any) -> list[int] | None:
    """Dataset indices of a batch: told by it, or computed where the order is known."""
    if isinstance(batch, Mapping) and isinstance(batch.get("index"), Tensor):
        return batch["index"].tolist()
    batch_size = getattr(loader, "batch_size", None)
    if not isinstance(loader, DataLoader) or batch_size is None:
        return None
    dataset: Any = loader.dataset
    start, sampler = batch_idx * batch_size, loader.sampler
    positions = range(start, start + _size_of(batch))
    if isinstance(sampler, DistributedSampler) and not sampler.shuffle:
        # Past the end a sampler repeats images from the start, so that all processes have as many.
        places = [sampler.rank + position * sampler.num_replicas for position in positions]
        return _below(dataset, [place % len(dataset) for place in places])
    return _below(dataset, positions) if isinstance(sampler, SequentialSampler) else None


def _below(dataset: Any, places: Sequence[int]) -> list[int]:
    """Places in a `Subset` as places in the dataset below, which knows keys and `index`."""
    while isinstance(dataset, Subset):
        places, dataset = [dataset.indices[place] for place in places], dataset.dataset
    return list(places)


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
    inside = ("transform", "transforms", "dataset")
    parts = [*parts, *(getattr(value, name, None) for name in inside)]
    return next((n for n in (_find_normalize(p, depth + 1) for p in parts) if n is not None), None)
