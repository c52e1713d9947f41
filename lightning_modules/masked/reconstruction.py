"""What a masked autoencoder makes of images, in cells and in pixels."""

from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Reconstruction", "at_least_float32", "denormalise_cells", "normalise_cells"]


@dataclass
class Reconstruction:
    """What a masked autoencoder makes of images.

    Attributes:
        predicted: (batch, 3, height, width), normalised like the input: hidden cells as they were
            predicted, visible ones as they are.
        hidden: (batch, height, width), True in hidden cells.
        psnr: (batch,), peak signal-to-noise ratio of the hidden pixels in decibels.
        borrowed: whether each predicted cell got mean and variance from the image
            (``norm_pix_loss``): the network did not predict these.
    """

    predicted: Tensor
    hidden: Tensor
    psnr: Tensor
    borrowed: bool


def at_least_float32(values: Tensor) -> Tensor:
    """Widen half precision, in which squares and variances of pixels would be coarse."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


def normalise_cells(cells: Tensor) -> Tensor:
    """Give every cell (batch, count, cell_size², 3) mean 0 and variance 1 (MAE, section 4.1)."""
    mean, std = _statistics(cells)
    return (cells - mean) / std


def denormalise_cells(predicted: Tensor, cells: Tensor) -> Tensor:
    """Undo `normalise_cells` on predictions, with the mean and variance of the true cells."""
    mean, std = _statistics(cells)
    return predicted * std + mean


def _statistics(cells: Tensor) -> tuple[Tensor, Tensor]:
    variance, mean = torch.var_mean(cells, dim=(2, 3), keepdim=True)
    return mean, (variance + 1e-6).sqrt()
