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
from litcam.callbacks.validation.pixels import Pixels
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
        kept: the network's input `(channels, height, width)`, where it will be needed again.
        index_known: whether `index` tells the image, or only how many came before it.
    """

    index: int
    original: Picture
    predicted: Picture
    hidden: npt.NDArray[np.bool_]
    psnr: float
    borrowed: bool
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


def reconstruct_images(
    module: Any, images: Tensor, rows: Sequence[int], indices: Sequence[int], pixels: Pixels
) -> list[Reconstructed]:
    """Hides cells of some images of a batch and takes what is predicted off the device.

    Args:
        module: has `reconstruct(images, noise)` and `num_cells`.
        images: the batch `(batch, channels, height, width)`, as the network gets it.
        rows: places in the batch.
        indices: dataset index of each.
        pixels: how the network's input becomes pixels.
    """
    noise = fixed_noise(indices, module.num_cells).to(images.device)
    made = module.reconstruct(images[list(rows)], noise)
    originals = pixels.to_pixels(images, rows)
    hidden, psnr = made.hidden.cpu().numpy(), made.psnr.float().tolist()
    return [
        Reconstructed(
            index=indices[place],
            original=originals[place],
            predicted=_fix(pixels, images, row).to_pixels(made.predicted, [place])[0],
            hidden=hidden[place],
            psnr=psnr[place],
            borrowed=bool(made.borrowed),
        )
        for place, row in enumerate(rows)
    ]


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


def _fix(pixels: Pixels, images: Tensor, row: int) -> Pixels:
    """How row `row` of `images` became pixels, for a prediction of it: not by its own values."""
    low, scale = 0.0, 1.0
    if pixels.source == "none needed":
        scale = 255.0 if images.amax().item() > 1 else 1.0
    elif pixels.source == "min-max":
        low = images[row].amin().item()
        scale = max(images[row].amax().item() - low, 1e-8)
    else:
        return Pixels(pixels.mean, pixels.std, pixels.source, given=True)
    channels = images.shape[1]
    return Pixels((-low / scale,) * channels, (1 / scale,) * channels, pixels.source, given=True)
