"""Hiding cells from timm encoders, for the length of one forward and without touching their code.

* a ViT never gets the tokens of hidden cells (MAE, arXiv:2111.06377)
* a Swin gets a learned token in their place (SimMIM, arXiv:2111.09886)
* a CNN is computed as if sparse: every layer sees visible cells only (SparK, arXiv:2301.03580)

All of it is done by forward hooks that are put on before the forward and taken off after it. A new
family is one class here and its line in `find_hiding`.
"""

from typing import Any

import torch
from einops import rearrange
from timm.models.swin_transformer import SwinTransformer
from timm.models.swin_transformer_v2 import SwinTransformerV2
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from litcam.lightning_modules.masking import enlarge, gather_cells, visible_map
from litcam.lightning_modules.sparse import hooked, is_convolutional, sparse_hooks

__all__ = ["DropTokens", "Hiding", "MaskToken", "SparseConvolution", "find_hiding"]


class Hiding(nn.Module):
    """Runs an encoder on the visible cells of images. The encoder itself is not kept.

    Args:
        encoder: the timm model.
        grid: rows and columns of cells.

    Attributes:
        shows_hidden: whether the encoder puts out a token for each hidden cell as well.
        decays_tokens: whether weight decay is applied to class and mask tokens.
    """

    shows_hidden = False
    decays_tokens = False

    def __init__(self, encoder: Any, grid: tuple[int, int]) -> None:
        super().__init__()
        self._grid = grid

    def forward(
        self, encoder: nn.Module, images: Tensor, ids_keep: Tensor, ids_hidden: Tensor
    ) -> Tensor:
        """Encode images (batch, 3, height, width).

        Args:
            encoder: a timm model; it is the same afterwards.
            images: only what lies in visible cells reaches the result.
            ids_keep: (batch, num_visible) visible cells.
            ids_hidden: (batch, num_hidden) the other ones.

        Returns:
            Tokens (batch, prefix + num_visible [+ num_hidden], dim): the encoder's prefix tokens,
            such as a class token, then those of ``ids_keep``, then those of ``ids_hidden`` where
            it ``shows_hidden``.
        """
        raise NotImplementedError


class DropTokens(Hiding):
    """Drops the tokens of hidden cells after the position embedding of a ViT."""

    decays_tokens = True  # as MAE's authors do; SimMIM's and SparK's do not

    def forward(self, encoder: Any, images: Tensor, ids_keep: Tensor, ids_hidden: Tensor) -> Tensor:
        """See `Hiding.forward`."""
        num_prefix = encoder.num_prefix_tokens

        def drop(module: nn.Module, args: Any, tokens: Tensor) -> Tensor:
            prefix, cells = tokens[:, :num_prefix], tokens[:, num_prefix:]
            return torch.cat([prefix, gather_cells(cells, ids_keep)], dim=1)

        with hooked([("after", encoder.patch_drop, drop)]):
            tokens: Tensor = encoder.forward_features(images)
        return tokens


class MaskToken(Hiding):
    """Puts a learned token in the place of every patch of a hidden cell of a Swin."""

    shows_hidden = True

    def __init__(self, encoder: Any, grid: tuple[int, int]) -> None:
        super().__init__(encoder, grid)
        self.mask_token = nn.Parameter(torch.zeros(encoder.patch_embed.proj.out_channels))
        nn.init.trunc_normal_(self.mask_token, std=0.02)

    def forward(self, encoder: Any, images: Tensor, ids_keep: Tensor, ids_hidden: Tensor) -> Tensor:
        """See `Hiding.forward`."""

        def replace(module: nn.Module, args: Any, patches: Tensor) -> Tensor:
            visible = enlarge(visible_map(ids_keep, self._grid), patches.shape[1:3])
            token = self.mask_token.to(patches.dtype)
            return torch.where(visible.unsqueeze(-1), patches, token)

        with hooked([("after", encoder.patch_embed, replace)]):
            features = encoder.forward_features(images)
        tokens = rearrange(features, "b h w c -> b (h w) c")
        return gather_cells(tokens, torch.cat([ids_keep, ids_hidden], dim=1))


class SparseConvolution(Hiding):
    """Computes a CNN as if its feature maps held visible cells only; see `sparse_hooks`."""

    def forward(self, encoder: Any, images: Tensor, ids_keep: Tensor, ids_hidden: Tensor) -> Tensor:
        """See `Hiding.forward`.

        Raises:
            ValueError: if the encoder recomputes layers in the backward, where no hook is on.
        """
        if any(getattr(module, "grad_checkpointing", False) for module in encoder.modules()):
            raise ValueError(
                "MAE: gradient checkpointing would recompute the CNN without its mask; "
                "call encoder.set_grad_checkpointing(False)"
            )
        visible = visible_map(ids_keep, self._grid)
        seen = enlarge(visible, images.shape[2:]).unsqueeze(1).to(images.dtype)
        with hooked(sparse_hooks(encoder, visible, ids_keep)):
            features = encoder.forward_features(images * seen)
        return gather_cells(rearrange(features, "b c h w -> b (h w) c"), ids_keep)


def find_hiding(encoder: nn.Module, name: str) -> type[Hiding]:
    """Choose how cells are hidden from a timm model.

    Args:
        encoder: the model.
        name: what it is called, for the message.

    Raises:
        ValueError: if the model belongs to none of the families.
    """
    if isinstance(encoder, VisionTransformer):
        return DropTokens
    if isinstance(encoder, SwinTransformer | SwinTransformerV2):
        return MaskToken
    if is_convolutional(encoder):
        return SparseConvolution
    raise ValueError(
        f"MAE: backbone {name} ({type(encoder).__name__}) is no ViT, Swin or CNN that cells can be "
        "hidden from; for instance: vit_base_patch16_224, swin_base_patch4_window7_224, resnet50"
    )
