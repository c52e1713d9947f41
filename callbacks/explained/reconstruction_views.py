"""From a masked autoencoder's reconstructions to the pictures of a `Reconstructions` callback."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from litcam.callbacks.explained.maps import Names
from litcam.callbacks.places.pictures import LoggedImage
from litcam.callbacks.validation.device import bring
from litcam.callbacks.validation.pixels import Pixels, find_span
from litcam.explain.figures import Picture, enlarge

GREY = 128


@dataclass
class Reconstructed:
    """One image and what was made of it, small enough to be gathered from every process.

    Attributes:
        index: its place in the dataset.
        original: what the network saw a part of, uint8 `(height, width, 3)`.
        predicted: the same with its hidden cells as they were predicted.
        hidden: `(height, width)`, True in hidden cells.
        psnr: peak signal-to-noise ratio of the hidden pixels in decibels.
        borrowed: whether each predicted cell got the image's own mean and contrast.
        label: the true class, or None where the batch does not tell.
        kept: the network's input `(channels, height, width)`, where it will be needed again.
        index_known: whether `index` tells the image, or only how many came before it.
    """

    index: int
    original: Picture
    predicted: Picture
    hidden: npt.NDArray[np.bool_]
    psnr: float
    borrowed: bool
    label: int | None = None
    kept: Tensor | None = None
    index_known: bool = True

    @property
    def share(self) -> float:
        """Which part of the image is hidden."""
        return float(self.hidden.mean())


def fixed_noise(indices: Sequence[int], num_cells: int) -> Tensor:
    """Noise `(batch, num_cells)` that follows from each image's dataset index alone.

    >>> torch.equal(fixed_noise([3, 5], 4)[1:], fixed_noise([5], 4))
    True
    """
    rows = [
        torch.rand(num_cells, generator=torch.Generator().manual_seed(index), dtype=torch.float32)
        for index in indices
    ]
    return torch.stack(rows)


@dataclass
class KeptReconstructions:
    """What was made of some images of a batch, still on the device.

    Attributes:
        indices: the images' places in the dataset.
        tensors: the images as the network got them, their prediction, the hidden pixels, the PSNR
            `(rows,)`, the labels `(rows,)`, -1 for none, and the span of the batch.
        borrowed: whether each predicted cell got the image's own mean and contrast.
        pixels: how the network's input becomes pixels.
        index_known: whether `indices` tell the images, or only how many came before.
    """

    indices: list[int]
    tensors: list[Tensor]
    borrowed: bool
    pixels: Pixels
    index_known: bool


def reconstruct_images(
    module: Any,
    images: Tensor,
    rows: Sequence[int],
    indices: Sequence[int],
    pixels: Pixels,
    *,
    labels: Tensor | None = None,
    index_known: bool = True,
) -> KeptReconstructions:
    """Hides cells of some images of a batch and keeps what is predicted.

    Args:
        module: has `reconstruct(images, noise)` and `num_cells`.
        images: the batch `(batch, channels, height, width)`, as the network gets it.
        rows: places in the batch.
        indices: dataset index of each.
        pixels: how the network's input becomes pixels.
        labels: class numbers of the batch `(batch,)`, -1 for none, where it tells.
        index_known: as for `KeptReconstructions`.
    """
    noise = fixed_noise(indices, module.num_cells).to(images.device)
    places = torch.tensor(rows, device=images.device)
    chosen = images.index_select(0, places)
    made = module.reconstruct(chosen, noise)
    if labels is None or len(labels) != len(images):
        labels = torch.full((len(images),), -1)
    of_chosen = labels.to(images.device).index_select(0, places)
    seen, psnr = (chosen, made.predicted, made.hidden), made.psnr.float()
    tensors = [*seen, psnr, of_chosen, find_span(images)]
    return KeptReconstructions(list(indices), tensors, bool(made.borrowed), pixels, index_known)


def bring_reconstructions(kept: Sequence[KeptReconstructions]) -> list[Reconstructed]:
    """Takes them off the device, in one copy."""
    tensors = iter(bring([tensor for part in kept for tensor in part.tensors]) if kept else [])
    brought: list[Reconstructed] = []
    for part in kept:
        images, predicted, hidden, psnr, labels, span = (next(tensors) for _ in part.tensors)
        originals = part.pixels.to_pixels(images, span)
        for place, index in enumerate(part.indices):
            way = _fix(part.pixels, images[place], span)
            brought.append(
                Reconstructed(
                    index=index,
                    original=originals[place],
                    predicted=way.to_pixels(predicted[place : place + 1])[0],
                    hidden=hidden[place].numpy(),
                    psnr=float(psnr[place]),
                    borrowed=part.borrowed,
                    label=label if (label := int(labels[place])) >= 0 else None,
                    kept=images[place],
                    index_known=part.index_known,
                )
            )
    return brought


def draw_reconstructions(
    reconstructed: Sequence[Reconstructed], names: Names, when: str
) -> list[LoggedImage]:
    """Four tiles an image, in the order of the dataset.

    Args:
        reconstructed: images of this validation, from every process.
        names: names of the images.
        when: epoch and step, for the captions.
    """
    return [_draw(image, names, when) for image in sorted(reconstructed, key=lambda i: i.index)]


def _draw(image: Reconstructed, names: Names, when: str) -> LoggedImage:
    name, quality = names.of_image(image.index), f"PSNR {image.psnr:.1f} dB"
    borrowed = "uses each cell's true mean and contrast" if image.borrowed else ""
    order = "seen, predicted, both, original"
    return LoggedImage(
        tiles=[
            _cut_out(image.original, ~image.hidden),
            _cut_out(image.predicted, image.hidden),
            enlarge(image.predicted),
            enlarge(image.original),
        ],
        titles=[
            f"seen: {1 - image.share:.0%}",
            "predicted, true mean and contrast" if image.borrowed else "predicted",
            f"both, {quality}",
            name,
        ],
        caption=" | ".join(part for part in (when, name, order, quality, borrowed) if part),
        name=f"{image.index:06d}",
        facts={
            "index": image.index,
            "image": name,
            "label_name": None if image.label is None else names.of_class(image.label),
            "psnr": image.psnr if np.isfinite(image.psnr) else None,
            "borrowed": image.borrowed,
            "index_known": image.index_known,
            "mask_share": image.share,
        },
    )


def _cut_out(photo: Picture, shown: npt.NDArray[np.bool_]) -> Picture:
    """`photo` enlarged, grey where not `shown`: before as well, or cells would leak at borders."""
    large = enlarge(np.where(shown[..., None], photo, np.uint8(GREY)))
    mask = Image.fromarray(shown).resize((large.shape[1], large.shape[0]), Image.Resampling.NEAREST)
    return np.where(np.asarray(mask)[..., None], large, np.uint8(GREY))


def _fix(pixels: Pixels, image: Tensor, span: Tensor) -> Pixels:
    """How an image of a batch became pixels, for a prediction of it: not by its own values."""
    low, scale = 0.0, 1.0
    if pixels.source == "none needed":
        scale = 255.0 if span[1] > 1 else 1.0
    elif pixels.source == "min-max":
        low = float(image.amin())
        scale = max(float(image.amax()) - low, 1e-8)
    else:
        return Pixels(pixels.mean, pixels.std, pixels.source, given=True)
    channels = len(image)
    return Pixels((-low / scale,) * channels, (1 / scale,) * channels, pixels.source, given=True)
