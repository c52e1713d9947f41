"""Hiding cells from timm encoders, for the length of one forward and without touching their code.

* a ViT never gets the tokens of hidden cells (MAE, arXiv:2111.06377)
* a Swin gets a learned token in their place (SimMIM, arXiv:2111.09886)
* a CNN is computed as if sparse: every layer sees visible cells only (SparK, arXiv:2301.03580)

All of it is done by forward hooks that are put on before the forward and taken off after it. A new
family is one class here and its line in `find_hiding`.
"""

from collections.abc import Iterable
from functools import partial
from itertools import takewhile
from typing import Any

import torch
from einops import rearrange
from timm.models.swin_transformer import SwinTransformer
from timm.models.swin_transformer_v2 import SwinTransformerV2
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from litcam.lightning_modules.masked.masking import enlarge, gather_cells, visible_map
from litcam.lightning_modules.masked.sparse import Hook, hooked, is_convolutional, sparse_hooks

__all__ = [
    "DropTokens",
    "Hiding",
    "MaskToken",
    "SparseConvolution",
    "SparsePyramid",
    "find_hiding",
    "finer_stages",
]


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
    ) -> Tensor | list[Tensor]:
        """Encode images (batch, 3, height, width).

        Args:
            encoder: a timm model; it is the same afterwards.
            images: only what lies in visible cells reaches the result.
            ids_keep: (batch, num_visible) visible cells.
            ids_hidden: (batch, num_hidden) the other ones.

        Returns:
            Tokens (batch, prefix + num_visible [+ num_hidden], dim): the encoder's prefix tokens,
            such as a class token, then those of ``ids_keep``, then those of ``ids_hidden`` where
            it ``shows_hidden``. Of a `SparsePyramid`, maps instead.
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
            ValueError: if the encoder recomputes layers in the backward, where no hook is on, or
                puts its channels last.
        """
        features = self._encode(encoder, images, ids_keep)
        return gather_cells(rearrange(features, "b c h w -> b (h w) c"), ids_keep)

    def _encode(
        self, encoder: Any, images: Tensor, ids_keep: Tensor, hooks: Iterable[Hook] = ()
    ) -> Tensor:
        if any(getattr(module, "grad_checkpointing", False) for module in encoder.modules()):
            raise ValueError(
                "MAE: gradient checkpointing would recompute the CNN without its mask; "
                "call encoder.set_grad_checkpointing(False)"
            )
        visible = visible_map(ids_keep, self._grid)
        seen = enlarge(visible, images.shape[2:]).unsqueeze(1).to(images.dtype)
        with hooked([*sparse_hooks(encoder, visible, ids_keep), *hooks]):
            features: Tensor = encoder.forward_features(images * seen)
        if tuple(features.shape[2:]) != self._grid:
            raise ValueError(
                f"MAE: {type(encoder).__name__} puts the channels of its features last, where they "
                "cannot be taken for a CNN's; use another backbone"
            )
        return features


class SparsePyramid(SparseConvolution):
    """The same, for a decoder that reads the maps of several stages (SparK, arXiv:2301.03580)."""

    def forward(  # type: ignore[override]
        self, encoder: Any, images: Tensor, ids_keep: Tensor, ids_hidden: Tensor
    ) -> list[Tensor]:
        """Encode images (batch, 3, height, width), as `Hiding.forward` does.

        Returns:
            Up to four maps (batch, channels, rows, columns), the last one first, each twice as high
            and wide as the one before it. In hidden cells they mean nothing.
        """
        finer: dict[str, Tensor] = {}

        def keep(name: str, module: nn.Module, args: Any, features: Tensor) -> None:
            finer[name] = features

        names = finer_stages(encoder)
        hooks: list[Hook] = [
            ("after", encoder.get_submodule(name), partial(keep, name)) for name in names
        ]
        last = self._encode(encoder, images, ids_keep, hooks)
        return [last, *(finer[name] for name in names)]


def finer_stages(encoder: Any) -> list[str]:
    """Name the stages of a CNN whose maps are 2, 4 and 8 times the size of its last one's.

    Where several have a size, the last of them; up to the first size that none has. None at all
    where doubling does not lead to the image, or stages are no modules (HRNet).
    """
    parts = {name for name, _ in encoder.named_modules()}
    by_stride = {stage["reduction"]: stage["module"] for stage in encoder.feature_info}
    last = max(by_stride)
    if last.bit_count() != 1 or not parts.issuperset(by_stride.values()):
        return []
    strides = takewhile(lambda stride: stride in by_stride, (last / 2, last / 4, last / 8))
    return [by_stride[stride] for stride in strides]


def find_hiding(encoder: nn.Module, name: str, *, pyramid: bool | None = False) -> type[Hiding]:
    """Choose how cells are hidden from a timm model.

    Args:
        encoder: the model.
        name: what it is called, for the message.
        pyramid: whether the decoder reads several maps; None leaves it to the encoder.

    Raises:
        ValueError: if the model belongs to none of the families, or cannot give several maps.
    """
    several = is_convolutional(encoder) and len(finer_stages(encoder)) > 1
    if pyramid and not several:
        raise ValueError(
            f"MAE: decoder='unet' reads the feature maps of a CNN at three sizes or more, and "
            f"backbone {name} ({type(encoder).__name__}) has none; leave decoder out"
        )
    if isinstance(encoder, VisionTransformer):
        return DropTokens
    if isinstance(encoder, SwinTransformer | SwinTransformerV2):
        return MaskToken
    if is_convolutional(encoder):
        return SparsePyramid if several and pyramid is not False else SparseConvolution
    raise ValueError(
        f"MAE: backbone {name} ({type(encoder).__name__}) is no ViT, Swin or CNN that cells can be "
        "hidden from; for instance: vit_base_patch16_224, swin_base_patch4_window7_224, resnet50"
    )
