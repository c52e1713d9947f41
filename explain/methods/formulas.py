"""Grad-CAM and its relatives: from a layer's output and gradient to one map an image.

Each method takes activations and gradients `(batch, channels, height, width)` in float32 and
returns maps `(batch, height, width)` before the ReLU. A new one is a function and an entry in
`METHODS`.
"""

from collections.abc import Callable
from difflib import get_close_matches

import torch
import torch.nn.functional as F
from einops import einsum, rearrange, reduce
from torch import Tensor

Method = Callable[[Tensor, Tensor], Tensor]


def gradcam(activations: Tensor, gradients: Tensor) -> Tensor:
    """Channels weighted by their mean gradient.

    Selvaraju et al., "Grad-CAM: Visual Explanations from Deep Networks via Gradient-based
    Localization", ICCV 2017, https://arxiv.org/abs/1610.02391, equations 1 and 2 without the ReLU.

    Args:
        activations: `(batch, channels, height, width)`.
        gradients: of the class's logit with respect to them, the same shape.

    Returns:
        `(batch, height, width)`.
    """
    return _weigh(activations, reduce(gradients, "b c h w -> b c", "mean"))


def gradcam_plus_plus(activations: Tensor, gradients: Tensor) -> Tensor:
    """Channels weighted by their positive gradients, each position by its share in the score.

    Chattopadhay et al., "Grad-CAM++: Generalized Gradient-based Visual Explanations for Deep
    Convolutional Networks", WACV 2018, https://arxiv.org/abs/1710.11063, equation 19 for the
    shares and equation 7 for the weights. The paper explains exp(logit), by which its second and
    third derivatives become powers of the logit's gradient; the factor exp(logit) itself, the same
    for the whole map, is left out. Both as in grad-cam, with its epsilon.

    Args:
        activations: `(batch, channels, height, width)`.
        gradients: of the class's logit with respect to them, the same shape.

    Returns:
        `(batch, height, width)`.
    """
    total = reduce(activations, "b c h w -> b c 1 1", "sum")
    squares = gradients**2
    shares = _divide(squares, 2 * squares + total * gradients**3 + 1e-6)
    return _weigh(activations, einsum(shares, gradients.relu(), "b c h w, b c h w -> b c"))


def xgradcam(activations: Tensor, gradients: Tensor) -> Tensor:
    """Channels weighted by their mean gradient, where positions count by their activation.

    Fu et al., "Axiom-based Grad-CAM: Towards Accurate Visualization and Explanation of CNNs",
    BMVC 2020, https://arxiv.org/abs/2008.02312: sum(gradient * activation) / sum(activation) of a
    channel. Made for channels of one sign: after a norm a sum near 0 blows its channel up.

    Args:
        activations: `(batch, channels, height, width)`.
        gradients: of the class's logit with respect to them, the same shape.

    Returns:
        `(batch, height, width)`.
    """
    total = reduce(activations, "b c h w -> b c", "sum")
    parts = einsum(gradients, activations, "b c h w, b c h w -> b c")
    return _weigh(activations, _divide(parts, total + 1e-7))


def hirescam(activations: Tensor, gradients: Tensor) -> Tensor:
    """Gradient times activation, summed over channels: no averaging over positions.

    Draelos and Carin, "Use HiResCAM instead of Grad-CAM for faithful explanations of convolutional
    neural networks", 2020, https://arxiv.org/abs/2011.08891.

    Args:
        activations: `(batch, channels, height, width)`.
        gradients: of the class's logit with respect to them, the same shape.

    Returns:
        `(batch, height, width)`.
    """
    return einsum(activations, gradients, "b c h w, b c h w -> b h w")


def layercam(activations: Tensor, gradients: Tensor) -> Tensor:
    """Positive gradient times activation, summed over channels; sharp at shallow layers too.

    Jiang et al., "LayerCAM: Exploring Hierarchical Class Activation Maps for Localization", IEEE
    Transactions on Image Processing 2021, https://doi.org/10.1109/TIP.2021.3089943.

    Args:
        activations: `(batch, channels, height, width)`.
        gradients: of the class's logit with respect to them, the same shape.

    Returns:
        `(batch, height, width)`.
    """
    return hirescam(activations, gradients.relu())


def eigencam(activations: Tensor, gradients: Tensor) -> Tensor:
    """Activations along their first principal component. Does not depend on the class.

    Muhammad and Yeasin, "Eigen-CAM: Class Activation Map using Principal Components", IJCNN 2020,
    https://arxiv.org/abs/2008.00299; centred over positions as in grad-cam, which the paper does
    not do. The sign of a component is arbitrary, and grad-cam takes what its SVD gives, so that
    its map may be the negative of this one; here it rises with the sum of absolute activations.
    (After a ReLU that is their sum; after a LayerNorm the plain sum would be 0 everywhere.)

    Args:
        activations: `(batch, channels, height, width)`.
        gradients: not used.

    Returns:
        `(batch, height, width)`; NaN where an image's activations are not finite.
    """
    finite = activations.isfinite().flatten(1).all(1)[:, None, None]
    # The SVD of a batch raises for all of it if one image is not finite.
    positions = rearrange(activations, "b c h w -> b (h w) c").where(finite, 0.0)
    centred = positions - reduce(positions, "b n c -> b 1 c", "mean")
    left, strength, _ = torch.linalg.svd(centred, full_matrices=False)
    projection = left[:, :, 0] * strength[:, :1]
    rises = einsum(projection, positions.abs(), "b n, b n c -> b") >= 0
    projection = projection.where(rises[:, None], -projection)
    maps = rearrange(projection, "b (h w) -> b h w", h=activations.shape[2])
    return maps.where(finite, torch.nan)


def _weigh(activations: Tensor, weights: Tensor) -> Tensor:
    return einsum(weights, activations, "b c, b c h w -> b h w")


def _divide(numerator: Tensor, denominator: Tensor) -> Tensor:
    """0 where the denominator is 0: negative activations can cancel the epsilon in it."""
    there = denominator != 0
    return (numerator / denominator.where(there, 1.0)).where(there, 0.0)


METHODS: dict[str, Method] = {
    "gradcam": gradcam,
    "gradcam++": gradcam_plus_plus,
    "xgradcam": xgradcam,
    "hirescam": hirescam,
    "layercam": layercam,
    "eigencam": eigencam,
    # Grad-CAM of another score: methods/finer.py.
    "finercam": gradcam,
}

# Their maps are the same for every class, so that a network without classes has them too.
CLASS_FREE = ("eigencam",)
GUIDED = "guided_gradcam"  # a function of its own, and a method of `litcam explain`

# Here rather than beside their code, so that `find_method` can offer all names.
VIT_METHODS: dict[str, str] = {
    "legrad": "the attention of every block of a ViT",
    "libragrad": "the first block's tokens of a ViT, along balanced paths",
}
SLOW_METHODS: dict[str, str] = {
    "scorecam": "one forward a channel and image, of the image masked by the channel",
    "ablationcam": "one forward a channel and image, without the channel",
}


def find_method(name: str) -> Method:
    """The method called `name`.

    Raises:
        ValueError: there is none, or it needs forwards of its own or a forward that knows of it;
            the message offers close matches.
    """
    if name in METHODS:
        return METHODS[name]
    if name in SLOW_METHODS:
        raise ValueError(
            f"method {name!r} takes {SLOW_METHODS[name]}: use litcam.explain.slow_map, or one of "
            f"{', '.join(METHODS)}"
        )
    if name in VIT_METHODS:
        raise ValueError(
            f"method {name!r} looks at {VIT_METHODS[name]}, and so has to be named before the "
            f"forward: CAM(network, method={name!r}), or GradCAM(method={name!r})"
        )
    names = [*METHODS, *VIT_METHODS, *SLOW_METHODS]
    near = get_close_matches(name, names, n=3) or sorted(names)
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
