"""Which cells of an image are hidden, and images as cells.

A cell is the square that one token of the encoder stands for: a ViT's patch, or the 32 × 32 pixels
behind one position of the last feature map of a Swin or a CNN. Cells are counted row by row.
"""

from collections.abc import Sequence

import torch
from einops import rearrange, repeat
from torch import Tensor

__all__ = [
    "choose_cells",
    "enlarge",
    "gather_cells",
    "patchify",
    "reproducible_noise",
    "unpatchify",
    "visible_map",
]


def choose_cells(noise: Tensor, mask_ratio: float) -> tuple[Tensor, Tensor]:
    """Split the cells of each image into visible and hidden ones, of fixed counts.

    Args:
        noise: (batch, num_cells); the cells of smallest noise stay visible (MAE,
            arXiv:2111.06377, section 3).
        mask_ratio: share of the cells that is hidden.

    Returns:
        ``ids_keep`` (batch, int(num_cells * (1 - mask_ratio))) and ``ids_hidden`` (batch, rest).

    >>> [ids.tolist() for ids in choose_cells(torch.tensor([[0.3, 0.9, 0.1, 0.5]]), 0.5)]
    [[[2, 0]], [[3, 1]]]
    """
    order = noise.argsort(dim=1)
    num_visible = int(noise.shape[1] * (1 - mask_ratio))
    return order[:, :num_visible], order[:, num_visible:]


def gather_cells(tokens: Tensor, ids: Tensor) -> Tensor:
    """Take tokens (batch, num_cells, dim) at ``ids`` (batch, count): (batch, count, dim)."""
    return tokens.take_along_dim(ids.unsqueeze(-1), dim=1)


def visible_map(ids_keep: Tensor, grid: tuple[int, int]) -> Tensor:
    """Make a map (batch, rows, columns) that is True in the cells ``ids_keep`` (batch, count)."""
    cells = torch.zeros(len(ids_keep), grid[0] * grid[1], dtype=torch.bool, device=ids_keep.device)
    return rearrange(cells.scatter(1, ids_keep, True), "b (r c) -> b r c", r=grid[0])


def enlarge(visible: Tensor, size: Sequence[int]) -> Tensor:
    """Repeat a map of cells (batch, rows, columns) to ``size``, a multiple of it."""
    height, width = size[0] // visible.shape[1], size[1] // visible.shape[2]
    return repeat(visible, "b r c -> b (r h) (c w)", h=height, w=width)


def patchify(images: Tensor, cell_size: int) -> Tensor:
    """Cut images (batch, 3, height, width) into cells (batch, num_cells, cell_size², 3)."""
    return rearrange(images, "b c (h p) (w q) -> b (h w) (p q) c", p=cell_size, q=cell_size)


def unpatchify(cells: Tensor, grid: tuple[int, int]) -> Tensor:
    """Put cells (batch, num_cells, cell_size², 3) together again: (batch, 3, height, width)."""
    side = round(cells.shape[2] ** 0.5)
    rows, columns = grid
    return rearrange(cells, "b (h w) (p q) c -> b c (h p) (w q)", h=rows, w=columns, p=side, q=side)


def reproducible_noise(keys: Tensor, num_cells: int, *seeds: int) -> Tensor:
    """Make noise in [0, 1) that depends on its arguments alone, on any device.

    No generator is read, so no state has to be kept for a resumed run to draw the same masks, and
    an image has the same mask whatever its batch, its process and their number.

    Args:
        keys: (batch,) integers, one an image.
        num_cells: how many values an image gets.
        seeds: one or more, such as the run's and the epoch; another row of them, another noise.

    Returns:
        float32 (batch, num_cells).
    """
    cells = torch.arange(num_cells, device=keys.device)
    bits = torch.zeros_like(keys)
    for seed in seeds:
        bits = _mix(bits ^ _signed(seed % (1 << 64)))
    mixed = _mix(_mix(bits ^ keys).unsqueeze(1) ^ cells)
    # The upper 24 bits: as many as torch.rand has in float32.
    return ((mixed >> 40) & 0xFFFFFF).float() / 2**24


def _mix(bits: Tensor) -> Tensor:
    """Scramble int64 (splitmix64; Steele et al. 2014, doi:10.1145/2660193.2660195)."""
    bits = bits + _GOLDEN
    for shift, factor in _ROUNDS:
        bits = (bits ^ _shift_right(bits, shift)) * factor
    return bits ^ _shift_right(bits, 31)


def _shift_right(bits: Tensor, count: int) -> Tensor:
    """Shift as if unsigned: torch's own shift repeats the sign."""
    return (bits >> count) & ((1 << (64 - count)) - 1)


def _signed(value: int) -> int:
    return value - (1 << 64) if value >> 63 else value


_GOLDEN = _signed(0x9E3779B97F4A7C15)
_ROUNDS = [(30, _signed(0xBF58476D1CE4E5B9)), (27, _signed(0x94D049BB133111EB))]
