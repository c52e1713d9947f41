"""Grad-CAM and its relatives: from a layer's output and gradient to one map an image.

Each method takes activations and gradients `(batch, channels, height, width)` in float32 and
returns maps `(batch, height, width)` before the ReLU. A new one is a function and an entry in
`METHODS`.
"""

from collections.abc import Callable
from difflib import get_close_matches

import torch.nn.functional as F
from einops import einsum, rearrange, reduce
from torch import Tensor

Method = Callable[[Tensor, Tensor], Tensor]


def gradcam(activations: Tensor, gradients: Tensor) -> Tensor:
    """Channels weighted by their mean gradient.

    Selvaraju et al., "Grad-CAM: Visual Explanations from Deep Networks via Gradient-based
    Localization", ICCV 2017, https://arxiv.org/abs/1610.02391, equations 1 and 2 without the ReLU.
    """
    weights = reduce(gradients, "batch channels height width -> batch channels", "mean")
    return einsum(weights, activations, "batch channels, batch channels h w -> batch h w")


METHODS: dict[str, Method] = {"gradcam": gradcam}


def find_method(name: str) -> Method:
    """The method called `name`.

    Raises:
        ValueError: there is none; the message offers close matches.
    """
    if name in METHODS:
        return METHODS[name]
    near = get_close_matches(name, METHODS, n=3) or sorted(METHODS)
    raise ValueError(f"method {name!r} is unknown; did you mean {', '.join(near)}?")


def scale_maps(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """Maps as one looks at them: resized bilinearly to `size` and stretched to [0, 1] each.

    A constant map and one that is not finite become 0 everywhere: there is nothing to see in them.

    Args:
        maps: `(..., height, width)`, any floating type.
        size: height and width in pixels.

    Returns:
        `(..., *size)` in float32.
    """
    flat = rearrange(maps.float(), "... height width -> (...) 1 height width")
    finite = flat.isfinite().all(dim=-1, keepdim=True).all(dim=-2, keepdim=True)
    flat = flat.where(finite, 0.0)
    # Stretched before and after: bilinear interpolation of numbers near 1e-30 loses their digits.
    flat = _stretch(F.interpolate(_stretch(flat), size, mode="bilinear", align_corners=False))
    return flat.reshape(*maps.shape[:-2], *size)


def _stretch(maps: Tensor) -> Tensor:
    low, high = maps.amin((-2, -1), keepdim=True), maps.amax((-2, -1), keepdim=True)
    # Differences below rounding are not structure: a constant map must not become stripes.
    flat = (high - low) <= 1e-6 * high.abs().maximum(low.abs())
    return ((maps - low) / (high - low).where(~flat, 1.0)).where(~flat, 0.0)
