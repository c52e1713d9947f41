"""Which layer a map is made at, and how its output becomes `(batch, channels, height, width)`."""

from dataclasses import dataclass
from difflib import get_close_matches
from itertools import product
from math import ceil, floor, sqrt
from typing import Literal

import torch
from einops import rearrange
from torch import Tensor, nn

from litcam.explain.networks import timm_models


@dataclass(frozen=True)
class Layout:
    """How a layer's output is laid out in space.

    Attributes:
        kind: `"NCHW"`, `"NHWC"`, or `"tokens"` for `(batch, num_tokens, channels)`.
        grid: height and width in positions.
        num_prefix_tokens: class and register tokens before the patches.
        num_suffix_tokens: those after them.
    """

    kind: Literal["NCHW", "NHWC", "tokens"]
    grid: tuple[int, int]
    num_prefix_tokens: int = 0
    num_suffix_tokens: int = 0

    def to_maps(self, output: Tensor) -> Tensor:
        """`output` as `(batch, channels, height, width)`, a view where it can be."""
        if self.kind == "NCHW":
            return output
        if self.kind == "NHWC":
            return rearrange(output, "b h w c -> b c h w")
        start, (height, width) = self.num_prefix_tokens, self.grid
        patches = output[:, start : start + height * width]
        return rearrange(patches, "b (h w) c -> b c h w", h=height)


@dataclass(frozen=True)
class TargetLayer:
    """The layer a map is made at: dotted `name`, `module`, `layout` and the `reason` for it."""

    name: str
    module: nn.Module
    layout: Layout
    reason: str

    @property
    def grid(self) -> tuple[int, int]:
        """Height and width of the map in positions."""
        return self.layout.grid


def find_module(
    network: nn.Module, target_layer: str | nn.Module, what: str = "target_layer"
) -> tuple[str, nn.Module]:
    """Dotted name and module of a layer given by either; `what` is the argument's name.

    Raises:
        ValueError: `network` has no such layer; the message offers close matches.
    """
    modules = dict(network.named_modules())
    if isinstance(target_layer, nn.Module):
        for name, module in modules.items():
            if module is target_layer:
                return name, module
        kind, where = type(target_layer).__name__, type(network).__name__
        raise ValueError(f"{what}, a {kind}, is not a part of the network, a {where}")
    # `blocks[-1].norm1`, as papers and other tools write it.
    name = resolve_indices(network, target_layer)
    if name in modules and name:
        return name, modules[name]
    # Layers with parameters only: a LightningModule holds metrics and losses as well.
    layers = [n for n, module in modules.items() if n and any(True for _ in module.parameters())]
    # Compared by as many last parts as were given: `layer9` is nearest to `backbone.layer4`.
    depth = name.count(".") + 1
    tails = {".".join(layer.split(".")[-depth:]): layer for layer in reversed(layers)}
    near = [tails[tail] for tail in get_close_matches(name, tails, n=4, cutoff=0.5)] or layers[-4:]
    raise ValueError(
        f"{what} {target_layer!r} does not exist in {type(network).__name__}; "
        f"close names: {', '.join(near)}"
    )


def resolve_indices(network: nn.Module, name: str) -> str:
    """`blocks[-1].norm1` as `named_modules` has it: `blocks.11.norm1`."""
    parts: list[str] = []
    for part in name.replace("[", ".").replace("]", "").split("."):
        if part.startswith("-") and part[1:].isdigit():
            try:
                children = list(network.get_submodule(".".join(parts)).named_children())
                part = children[int(part)][0]
            except (AttributeError, IndexError):
                return name
        parts.append(part)
    return ".".join(parts)


def find_layout(
    shape: torch.Size,
    images: torch.Size,
    network: nn.Module,
    module: nn.Module,
    known: Layout | None = None,
) -> Layout | None:
    """The layout of an output of this `shape`, or None if it is no grid.

    Args:
        shape: of the output.
        images: shape of the images, `(batch, channels, height, width)`.
        network: may say that its features have channels last.
        module: what made the output.
        known: its layout for images of perhaps another size.
    """
    image_size = images[-2], images[-1]
    # Windows and pixels inside patches are laid out in the batch, in an order of their own.
    if shape[:1] != images[:1]:
        return None
    if len(shape) == 3:
        return _find_tokens(shape[1], image_size, network, known)
    if len(shape) != 4:
        return None
    first: Layout | None = _as_grid("NCHW", (shape[2], shape[3]), image_size)
    last: Layout | None = _as_grid("NHWC", (shape[1], shape[2]), image_size)
    normalised = getattr(module, "normalized_shape", None)
    if known is not None:
        return first if known.kind == "NCHW" else last
    channels_last = getattr(network, "output_fmt", "") == "NHWC" or (
        isinstance(module, nn.LayerNorm) and normalised == (shape[3],) and shape[1] != shape[3]
    )
    return (last or first) if channels_last else (first or last)


def _as_grid(
    kind: Literal["NCHW", "NHWC"], grid: tuple[int, int], image_size: tuple[int, int]
) -> Layout | None:
    """A grid has the image's proportions to within the rows that unpadded convolutions eat."""
    (height, width), area = image_size, grid[0] * grid[1]
    if area < 2 or grid[0] > height or grid[1] > width:
        return None
    stride = sqrt(height * width / area)
    fits = abs(height / stride - grid[0]) <= 1.5 and abs(width / stride - grid[1]) <= 1.5
    return Layout(kind, grid) if fits else None


def _find_tokens(
    num_tokens: int, image_size: tuple[int, int], network: nn.Module, known: Layout | None
) -> Layout | None:
    """Patches cover the image at one whole stride; what is left over are other tokens."""
    if known is None:
        prefixes = [
            int(getattr(model, "num_prefix_tokens", 0)) for _, model in timm_models(network)
        ]
        # Some networks add the class token late, so that a declared prefix is not there yet.
        others = [(prefix, 0) for prefix in dict.fromkeys([*prefixes, *range(9)])]
    else:
        others = [(known.num_prefix_tokens, known.num_suffix_tokens)]
    for prefix, suffix in others:
        for stride, rounded in product(range(1, max(image_size) // 2 + 1), (floor, ceil)):
            grid = rounded(image_size[0] / stride), rounded(image_size[1] / stride)
            if grid[0] * grid[1] == num_tokens - prefix - suffix and grid[0] * grid[1] > 1:
                return Layout("tokens", grid, prefix, suffix)
    return None
