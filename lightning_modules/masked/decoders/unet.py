"""A decoder over the feature maps of several scales of a CNN, as in SparK (arXiv:2301.03580)."""

from collections.abc import Sequence
from itertools import pairwise

import torch
from einops import rearrange
from timm.layers import LayerNorm2d
from torch import Tensor, nn

from litcam.lightning_modules.masked.masking import enlarge, gather_cells, patchify, visible_map
from litcam.lightning_modules.masked.sparse import VisiblePositions

__all__ = ["WIDTHS", "UNetDecoder"]

WIDTHS = (64, 128, 192, 256, 384, 512, 768)  # the last one is SparK's


class UNetDecoder(nn.Module):
    """Predicts hidden cells by a light UNet over feature maps (SparK, arXiv:2301.03580, section 3).

    Each map is made dense: its visible positions are normalised, its hidden ones get an embedding
    that is learned for the scale, and a convolution brings it to the UNet's width there. From the
    coarsest map on, a block doubles the size and halves the width, and the next map is added, until
    every pixel has its position.

    Args:
        channels: of the maps, coarsest first; each is twice as high and wide as the one before.
        grid: rows and columns of cells, and of the coarsest map.
        cell_size: side of a cell in pixels, a power of 2.
        dim: width at the coarsest map, at least ``cell_size``.
        layer_norm: normalise maps position by position, as a ConvNeXt does, and not by BatchNorm.
    """

    kind = "unet"

    def __init__(
        self,
        channels: Sequence[int],
        grid: tuple[int, int],
        cell_size: int,
        *,
        dim: int,
        layer_norm: bool = False,
    ) -> None:
        super().__init__()
        self.dim, self.depth = dim, cell_size.bit_length() - 1
        self._grid, self._cell_size = grid, cell_size
        widths = [dim >> scale for scale in range(self.depth + 1)]
        self.blocks = nn.ModuleList(_upsampling(width, half) for width, half in pairwise(widths))
        self.head = nn.Conv2d(widths[-1], 3, 1)
        for part in (self.blocks, self.head):
            part.apply(_init)
        self.densify = nn.ModuleList(
            _Densify(width_in, width, kernel_size=3 if scale else 1, layer_norm=layer_norm)
            for scale, (width_in, width) in enumerate(zip(channels, widths, strict=False))
        )

    def forward(self, maps: Sequence[Tensor], ids_keep: Tensor, ids_hidden: Tensor) -> Tensor:
        """Map features to pixels of hidden cells (batch, num_hidden, cell_size² * 3).

        Args:
            maps: (batch, channels, height, width), coarsest first.
            ids_keep: (batch, num_visible) cells whose features count.
            ids_hidden: (batch, num_hidden) the cells to predict.
        """
        visible = visible_map(ids_keep, self._grid)
        pixels = self.densify[0](maps[0], visible, ids_keep)
        for scale, block in enumerate(self.blocks):
            if 0 < scale < len(self.densify):
                pixels = pixels + self.densify[scale](maps[scale], visible, ids_keep)
            pixels = block(pixels)
        cells = rearrange(patchify(self.head(pixels), self._cell_size), "b n p c -> b n (p c)")
        return gather_cells(cells, ids_hidden)

    def describe(self) -> str:
        """Its shape in words."""
        return f"UNet of width {self.dim} over {len(self.densify)} maps"


class _Densify(nn.Module):
    """Normalises visible positions, fills hidden ones in, and changes the width."""

    def __init__(self, channels: int, dim: int, *, kernel_size: int, layer_norm: bool) -> None:
        super().__init__()
        self.norm = LayerNorm2d(channels) if layer_norm else nn.BatchNorm2d(channels)
        self.mask_token = nn.Parameter(torch.empty(channels))
        nn.init.trunc_normal_(self.mask_token, std=0.02, a=-0.02, b=0.02)
        self.proj: nn.Module = nn.Identity()
        if kernel_size > 1 or channels != dim:
            self.proj = nn.Conv2d(channels, dim, kernel_size, padding=kernel_size // 2)

    def forward(self, features: Tensor, visible: Tensor, ids_keep: Tensor) -> Tensor:
        positions = VisiblePositions((visible.shape[1], visible.shape[2]), ids_keep)
        seen = positions.put_back(self.norm(positions.take(features)))
        token = rearrange(self.mask_token.to(seen.dtype), "c -> c 1 1")
        places = rearrange(enlarge(visible, seen.shape[2:]), "b h w -> b 1 h w")
        dense: Tensor = self.proj(torch.where(places, seen, token))
        return dense


def _upsampling(width: int, half: int) -> nn.Module:
    return nn.Sequential(
        nn.ConvTranspose2d(width, width, 4, stride=2, padding=1),
        nn.Conv2d(width, width, 3, padding=1, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU6(inplace=True),
        nn.Conv2d(width, half, 3, padding=1, bias=False),
        nn.BatchNorm2d(half),
    )


def _init(module: nn.Module) -> None:
    if isinstance(module, nn.ConvTranspose2d):
        nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    elif isinstance(module, nn.Conv2d):
        nn.init.trunc_normal_(module.weight, std=0.02)
    if isinstance(module, nn.ConvTranspose2d | nn.Conv2d) and module.bias is not None:
        nn.init.zeros_(module.bias)
