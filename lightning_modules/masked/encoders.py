"""timm models as encoders of a masked autoencoder: made, measured and sorted by what is trained."""

import copy
from collections.abc import Callable
from typing import Any

import torch
from einops import rearrange
from timm.layers import DropPath
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from litcam.lightning_modules.backbones import create_backbone
from litcam.lightning_modules.masked.decoders import sincos_positions

__all__ = [
    "check_cells",
    "check_size",
    "create_encoder",
    "find_grid",
    "freeze_unreached",
    "has_batch_norm",
    "initialise_vit",
    "on_meta",
    "set_sincos_positions",
]


def create_encoder(
    name: str, image_size: int | None, *, pretrained: bool, options: dict[str, Any]
) -> tuple[nn.Module, int]:
    """Make a timm model without a head for an image size, and say which size that is.

    Raises:
        ValueError: if timm cannot make it, or not for this size.
    """
    sized = {"img_size": image_size, **options} if image_size else options
    try:
        encoder: Any = create_backbone(name, 0, pretrained=pretrained, **sized)
    except ValueError as error:
        if "img_size" not in str(error):
            raise
        # A CNN takes images of any size, and no such argument.
        encoder = create_backbone(name, 0, pretrained=pretrained, **options)
    if options.get("drop_path_rate") is None:
        _stop_dropping_paths(encoder)
    embed = getattr(encoder, "patch_embed", None)
    if embed is None:
        return encoder, image_size or encoder.pretrained_cfg["input_size"][-1]
    side, patch = embed.img_size[0], embed.patch_size[0]
    if side % patch:
        raise ValueError(
            f"MAE: image_size must be a multiple of the patch size {patch} of {name}, got {side}"
        )
    return encoder, side


def _stop_dropping_paths(encoder: nn.Module) -> None:
    """Make stochastic depth 0, as MAE and SimMIM pretrain: timm's Swin has 0.1 of itself."""
    for module in encoder.modules():
        if isinstance(module, DropPath):
            module.drop_prob = 0.0


def find_grid(encoder: nn.Module, name: str, image_size: int) -> tuple[tuple[int, int], int]:
    """Find the rows and columns of cells, and the side of a cell in pixels.

    Raises:
        ValueError: if the encoder has no map of tokens, or its cells do not divide the image.
    """
    if isinstance(encoder, VisionTransformer):
        embed: Any = encoder.patch_embed
        rows, columns = embed.grid_size
        return (rows, columns), embed.patch_size[0]
    meta: Any = on_meta(encoder)
    try:
        features = meta.forward_features(torch.zeros(2, 3, image_size, image_size, device="meta"))
    except (RuntimeError, AssertionError, AttributeError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(
            f"MAE: backbone {name} does not take images of {image_size}x{image_size} ({reason}); "
            "pass another image_size"
        ) from None
    if not isinstance(features, Tensor) or features.ndim != 4:
        raise ValueError(
            f"MAE: backbone {name} ({type(encoder).__name__}) puts out no map of features; it has "
            "to be a ViT, Swin or CNN of timm"
        )
    last = features.shape[1:3] if features.shape[-1] == meta.num_features else features.shape[2:]
    rows, columns = int(last[0]), int(last[1])
    cell_size = image_size // rows
    stride = meta.feature_info[-1]["reduction"]
    if image_size % stride or rows * cell_size != image_size:
        raise ValueError(
            f"MAE: image_size must be a multiple of the stride {stride} of {name}, got {image_size}"
        )
    return (rows, columns), cell_size


def check_size(images: Tensor, side: int) -> None:
    """Hold images (batch, 3, height, width) against the side in pixels that MAE was made for.

    Raises:
        ValueError: if they are of another size.
    """
    if images.shape[2:] != (side, side):
        got = "x".join(str(length) for length in images.shape[2:])
        raise ValueError(
            f"MAE was made for images of {side}x{side}, got {got}; "
            f"pass image_size={images.shape[2]} to MAE, or {side} to the data"
        )


def check_cells(num_cells: int, cell_size: int, mask_ratio: float) -> None:
    """Hold a mask ratio against the number of cells.

    Raises:
        ValueError: if no cell is visible, or none hidden.
    """
    visible = int(num_cells * (1 - mask_ratio))
    if not 0 < visible < num_cells:
        left = "no hidden cell" if visible else "no visible cell"
        raise ValueError(
            f"MAE: mask_ratio {mask_ratio} of {num_cells} cells of {cell_size}x{cell_size} pixels "
            f"leaves {left}; use larger images, a smaller patch_size or output_stride "
            "(backbone_args), or another mask_ratio"
        )


def on_meta(module: nn.Module) -> nn.Module:
    """Copy a module without its values: it computes shapes, costs and graphs in no time."""
    return copy.deepcopy(module).to("meta")


def has_batch_norm(encoder: nn.Module) -> bool:
    """Whether a model takes statistics over images, as a ResNet does and a ConvNeXt does not."""
    return any(isinstance(module, _BatchNorm) for module in encoder.modules())


def freeze_unreached(
    encoder: nn.Module, encode: Callable[[nn.Module], Tensor | list[Tensor]]
) -> list[str]:
    """Stop training what gets no gradient, such as a layer after the pooling; return the names.

    DistributedDataParallel waits for the gradient of every trainable parameter.

    Args:
        encoder: the timm model.
        encode: runs the model it is given, a copy on the meta device.
    """
    meta = on_meta(encoder)
    named = {name: weight for name, weight in meta.named_parameters() if weight.requires_grad}
    seen = encode(meta)
    sums = [features.sum() for features in (seen if isinstance(seen, list) else [seen])]
    gradients = torch.autograd.grad(sums, list(named.values()), allow_unused=True)
    unreached = [name for name, grad in zip(named, gradients, strict=True) if grad is None]
    for name in unreached:
        encoder.get_parameter(name).requires_grad_(False)
    return unreached


def initialise_vit(encoder: nn.Module) -> None:
    """Initialise a ViT as the MAE paper does (arXiv:2111.06377, appendix A.1); others stay.

    Matrices and the patch embedding, which counts as one, are uniform within
    ±√(6 / (inputs + outputs)) (Glorot and Bengio, 2010), queries, keys and values together one
    matrix; a class token is normal with a standard deviation of 0.02.
    """
    if not isinstance(encoder, VisionTransformer):
        return
    for module in encoder.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    embedding = getattr(encoder.patch_embed, "proj", None)
    if isinstance(embedding, nn.Conv2d):
        nn.init.xavier_uniform_(rearrange(embedding.weight, "d c p q -> d (c p q)"))
    if encoder.cls_token is not None:
        nn.init.normal_(encoder.cls_token, std=0.02)


def set_sincos_positions(encoder: nn.Module, grid: tuple[int, int]) -> None:
    """Give a ViT the fixed position embedding of the MAE paper, where it has an absolute one."""
    positions = getattr(encoder, "pos_embed", None)
    if not isinstance(encoder, VisionTransformer) or positions is None or positions.shape[2] % 4:
        return
    num_cells = grid[0] * grid[1]
    with torch.no_grad():
        positions.zero_()
        positions[0, -num_cells:] = sincos_positions(grid, positions.shape[2])
    positions.requires_grad_(False)
