"""The decoder of MAE and, at depth 0, of SimMIM: from tokens to the pixels of hidden cells."""

import torch
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from litcam.lightning_modules.masked.masking import gather_cells

__all__ = ["Decoder", "sincos_positions"]


class Decoder(nn.Module):
    """Predicts hidden cells by transformer blocks (MAE) or, at depth 0, one linear layer (SimMIM).

    Args:
        embed_dim: width of the encoder's tokens.
        grid: rows and columns of cells.
        cell_size: side of a cell in pixels.
        dim: width of the decoder, a multiple of 32: a head each.
        depth: number of blocks; 0 needs an encoder that puts out tokens of hidden cells.
        num_prefix_tokens: class and register tokens before the cells.
        shows_hidden: whether there are tokens of hidden cells; else a learned one stands for them.

    Raises:
        ValueError: if there is nothing to predict hidden cells from.
    """

    kind = "transformer"
    positions: Tensor

    def __init__(
        self,
        embed_dim: int,
        grid: tuple[int, int],
        cell_size: int,
        *,
        dim: int,
        depth: int,
        num_prefix_tokens: int = 0,
        shows_hidden: bool = False,
    ) -> None:
        super().__init__()
        self.dim, self.depth, self._num_prefix = dim, depth, num_prefix_tokens
        self.embed: nn.Module = nn.Identity()
        if depth:
            self.embed = nn.Linear(embed_dim, dim)
            self.blocks = nn.Sequential(
                *(Block(dim, num_heads=dim // 32, qkv_bias=True) for _ in range(depth))
            )
            self.norm = nn.LayerNorm(dim, eps=1e-6)  # as in the blocks
            self.register_buffer("positions", sincos_positions(grid, dim), persistent=False)
        self.mask_token = None
        if not depth and not shows_hidden:
            raise ValueError(
                "MAE: decoder_depth 0 (linear) needs an encoder that puts out tokens of hidden "
                "cells, as a Swin does; pass decoder_depth=1 or more for a ViT or CNN"
            )
        if not shows_hidden:
            self.mask_token = nn.Parameter(torch.randn(1, 1, dim) * 0.02)
        self.head = nn.Linear(dim if depth else embed_dim, cell_size**2 * 3)
        if depth:
            self.apply(_init)  # SimMIM leaves its one layer as torch makes it

    def describe(self) -> str:
        """Say its size, for the line at the start of a run."""
        return f"{self.depth} blocks of {self.dim}" if self.depth else "linear"

    def forward(self, tokens: Tensor, ids_keep: Tensor, ids_hidden: Tensor) -> Tensor:
        """Map tokens, as `Hiding` orders them, to pixels (batch, num_hidden, cell_size² * 3)."""
        tokens = self.embed(tokens)
        num_hidden = ids_hidden.shape[1]
        if self.depth:
            if self.mask_token is not None:
                mask = self.mask_token.to(tokens.dtype).expand(len(tokens), num_hidden, -1)
                tokens = torch.cat([tokens, mask], dim=1)
            # Their order is of no importance to attention: positions are gathered instead.
            ids = torch.cat([ids_keep, ids_hidden], dim=1)
            places = gather_cells(self.positions.expand(len(ids), -1, -1), ids)
            prefix, cells = tokens[:, : self._num_prefix], tokens[:, self._num_prefix :]
            tokens = self.blocks(torch.cat([prefix, cells + places.to(cells.dtype)], dim=1))
            tokens = self.norm(tokens[:, -num_hidden:])
        return self.head(tokens[:, -num_hidden:])


def _init(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        nn.init.zeros_(module.bias)


def sincos_positions(grid: tuple[int, int], dim: int) -> Tensor:
    """Make fixed position embeddings (rows * columns, dim) of sines and cosines.

    Half of the channels stand for the column and half for the row, as in MAE (arXiv:2111.06377);
    one axis as in equation of section 3.5 of arXiv:1706.03762, sines first.
    """
    rates = 10000 ** -(torch.arange(dim // 4, dtype=torch.float64) / (dim // 4))
    rows, columns = (torch.arange(count, dtype=torch.float64)[:, None] * rates for count in grid)
    by_row, by_column = (torch.cat([angle.sin(), angle.cos()], dim=1) for angle in (rows, columns))
    across = by_column.repeat(grid[0], 1)
    down = by_row.repeat_interleave(grid[1], dim=0)
    return torch.cat([across, down], dim=1).float()
