"""Which decoder an encoder gets, and of what size: the only place that knows the kinds."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from litcam.lightning_modules.masked.decoders.transformer import Decoder
from litcam.lightning_modules.masked.decoders.unet import WIDTHS, UNetDecoder
from litcam.lightning_modules.masked.masking import choose_cells

__all__ = ["choose_size", "count_flops", "create_decoder"]

# Width and depth. The last one is the MAE paper's, for a ViT-L.
SIZES = ((64, 1), (64, 2), (128, 2), (128, 4), (256, 2), (256, 4), (384, 4), (512, 4), (512, 8))
# Of the encoder's cost: what a decoder of no given size may take.
SHARE = 2 / 3


def create_decoder(
    encode: Callable[[], Tensor | list[Tensor]],
    grid: tuple[int, int],
    cell_size: int,
    mask_ratio: float,
    *,
    dim: int | None = None,
    depth: int | None = None,
    num_prefix_tokens: int = 0,
    shows_hidden: bool = False,
    layer_norm: bool = False,
) -> tuple[Decoder | UNetDecoder, float]:
    """Make a decoder that suits an encoder, and say which share of the compute it takes.

    Args:
        encode: runs the encoder, a copy on the meta device, on two images with hidden cells, and
            returns what the decoder gets: tokens, or the maps of a `UNetDecoder`.
        grid: rows and columns of cells.
        cell_size: side of a cell in pixels.
        mask_ratio: share of the cells that is hidden.
        dim: width of the decoder; by default it is sized to the encoder, see `choose_size`.
        depth: its blocks; by default 0, a linear layer, where tokens of hidden cells are there.
        num_prefix_tokens: class and register tokens before the cells.
        shows_hidden: whether there are tokens of hidden cells.
        layer_norm: whether the encoder normalises position by position.
    """
    outputs: list[Any] = []
    with torch.no_grad():
        encoder_flops = count_flops(lambda: outputs.append(encode()))
    seen = outputs[0]
    ids = choose_cells(torch.zeros(2, grid[0] * grid[1], device="meta"), mask_ratio)
    create: Callable[..., Decoder | UNetDecoder]
    size: dict[str, Any]

    def cost(**size: int) -> int:
        with torch.device("meta"):
            decoder = create(**size)
        return count_flops(lambda: decoder(seen, *ids))

    if isinstance(seen, list):
        channels = [features.shape[1] for features in seen]
        create = partial(UNetDecoder, channels, grid, cell_size, layer_norm=layer_norm)
        fitting = (width for width in reversed(WIDTHS) if cost(dim=width) <= SHARE * encoder_flops)
        size = {"dim": dim or next(fitting, WIDTHS[0])}
    else:
        create = partial(
            Decoder,
            seen.shape[2],
            grid,
            cell_size,
            num_prefix_tokens=num_prefix_tokens,
            shows_hidden=shows_hidden,
        )
        if depth is None and dim is None and shows_hidden:
            depth = 0
        dim, depth = choose_size(
            dim, depth, SHARE * encoder_flops, lambda dim, depth: cost(dim=dim, depth=depth)
        )
        size = {"dim": dim, "depth": depth}
    flops = cost(**size)
    return create(**size), flops / (flops + encoder_flops)


def count_flops(run: Callable[[], Any]) -> int:
    """Count the floating-point operations of matrix products and convolutions in a call."""
    with FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops()


def choose_size(
    dim: int | None, depth: int | None, limit: float, cost: Callable[[int, int], float]
) -> tuple[int, int]:
    """Fill in the width and depth of a decoder that were not given.

    They are those of the largest of `SIZES` whose cost is within a limit, at least of the smallest.

    >>> choose_size(None, None, 700, lambda dim, depth: dim * depth)
    (256, 2)
    >>> choose_size(512, None, 700, lambda dim, depth: dim * depth)
    (512, 2)
    """
    if depth == 0:
        return dim or SIZES[0][0], 0
    if dim is None or depth is None:
        largest = next((size for size in reversed(SIZES) if cost(*size) <= limit), SIZES[0])
        dim, depth = dim or largest[0], depth or largest[1]
    return dim, depth
