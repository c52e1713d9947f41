"""Guided Grad-CAM: the heatmap at the sharpness of the pixels."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from einops import reduce
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from litcam.explain.cam import CAM, Classes, as_table
from litcam.explain.forward.untouched import evaluating, find_trained, frozen
from litcam.explain.layers.layout import TargetLayer
from litcam.explain.networks import unwrap

RELUS: tuple[Callable[..., Any], ...] = (
    F.relu, F.relu6, torch.relu, torch.relu_, Tensor.relu, Tensor.relu_
)  # fmt: skip


def guided_gradcam(
    network: nn.Module,
    images: Tensor,
    classes: Tensor | list[int] | int | None = None,
    method: str = "gradcam",
    target_layer: str | nn.Module | TargetLayer | None = None,
) -> Tensor:
    """Guided backpropagation to the pixels times the heatmap, out of one forward in eval mode.

    Selvaraju et al., "Grad-CAM: Visual Explanations from Deep Networks via Gradient-based
    Localization", ICCV 2017, https://arxiv.org/abs/1610.02391, section 3.2: the element-wise
    product with the heatmap, resized bilinearly to the images. Guided backpropagation lets pass
    only positive gradients, and only through ReLUs that were on: Springenberg et al., "Striving
    for Simplicity: The All Convolutional Net", ICLR 2015 workshop,
    https://arxiv.org/abs/1412.6806, section 3.4. Where a network has other activations besides
    (MobileNetV3's hard swish), those pass the gradient as it is.

    It is as much an edge detector as an explanation: with random weights it looks much alike
    (Adebayo et al., "Sanity Checks for Saliency Maps", NeurIPS 2018,
    https://arxiv.org/abs/1810.03292).

    Args:
        network: as for `CAM`. Modes, hooks, `.grad`, `requires_grad` and RNG are left as they are.
        images: `(batch, channels, height, width)`, normalised as the network wants them.
        classes: one class an image `(batch,)`, one for all, or None for the predicted ones.
        method: a name in `litcam.explain.METHODS`, for the heatmap.
        target_layer: as for `CAM`.

    Returns:
        `(batch, channels, height, width)`, signed, around 0.

    Raises:
        ValueError: no such method or layer, several classes an image, or a network without ReLU.
        RuntimeError: the network cannot be explained; the message says why.
        IndexError: a class does not exist.

    Example:
        >>> import timm
        >>> network = timm.create_model("resnet18").eval()
        >>> guided_gradcam(network, torch.randn(2, 3, 64, 64), classes=[1, 2]).shape
        torch.Size([2, 3, 64, 64])
    """
    with _recorded(network, images, method, target_layer) as (cam, pixels, relus):
        assert cam.logits is not None
        chosen = one_class(classes, cam.logits)
        heatmaps = cam.heatmaps(chosen)
        return _backpropagate(cam.logits, pixels, chosen, relus) * heatmaps[:, None]


def guided_map(
    network: nn.Module,
    images: Tensor,
    classes: Tensor,
    target_layer: str | nn.Module | TargetLayer | None = None,
) -> Tensor:
    """Guided Grad-CAM as maps: of each pixel the colour of largest size, without its sign.

    The highest hundredth of the pixels is alike: a few of them would leave the rest dark.

    Args:
        network: as for `guided_gradcam`, and so the errors.
        images: `(batch, channels, height, width)`, normalised as the network wants them.
        classes: `(batch, num_classes)`, each with a forward of its own.
        target_layer: as for `CAM`.

    Returns:
        `(batch, num_classes, height, width)`, at the size of the images.
    """
    columns = [
        guided_gradcam(network, images, column, target_layer=target_layer)
        for column in classes.unbind(1)
    ]
    maps = reduce(torch.stack(columns).abs(), "k b c h w -> b k h w", "max")
    high = maps.flatten(2).quantile(0.99, dim=2)
    return maps.minimum(high[:, :, None, None])


def one_class(classes: Classes, logits: Tensor) -> Tensor:
    """One class an image, `(batch,)`, for `logits` `(batch, num_classes)`; errors as in `CAM`.

    Raises:
        ValueError: there are several classes an image.
        IndexError: a class does not exist.
    """
    table = as_table(classes, logits)
    if table.shape[1] != 1:
        raise ValueError(f"classes must be one an image, (batch,), got {tuple(table.shape)}")
    return table[:, 0]


class GuidedReLUs(TorchFunctionMode):
    """Inside, every ReLU's output can be told to hand only positive gradients back.

    A function mode and not a change to the network, because it sees modules, `F.relu` and in-place
    ReLUs alike, and leaves nothing to undo. The gradient is clipped by a hook on the ReLU's output
    and then goes through the ReLU's own backward; by default the hook does nothing, so that the
    same graph also gives the plain gradients that the heatmap needs.

    Attributes:
        count: ReLUs called so far.
        guide: whether the hooks clip.
    """

    def __init__(self) -> None:
        super().__init__()
        self.count, self.guide = 0, False

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Calls `func`, and hooks its output if it is a ReLU."""
        kwargs = kwargs or {}
        output = func(*args, **kwargs)
        # nn.ReLU6 is a Hardtanh from 0 to 6.
        if func in RELUS or (func is F.hardtanh and kwargs.get("min_val") == 0):
            self.count += 1
            if output.requires_grad:
                output.register_hook(self._clip)
        return output

    def _clip(self, gradient: Tensor) -> Tensor:
        return gradient.relu() if self.guide else gradient


@contextmanager
def _recorded(
    network: nn.Module,
    images: Tensor,
    method: str,
    target_layer: str | nn.Module | TargetLayer | None,
) -> Iterator[tuple[CAM, Tensor, GuidedReLUs]]:
    """A CAM that has recorded the forward from the pixels on, these pixels, and the ReLUs."""
    network, relus = unwrap(network), GuidedReLUs()
    cam = CAM(network, method, target_layer)
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        stack.enter_context(evaluating(network, images.device))
        stack.enter_context(frozen(find_trained(network)))
        pixels = images.detach().clone().requires_grad_()
        with relus, cam:
            network(pixels)
        if cam.logits is None or cam.failure:
            raise RuntimeError(cam.failure or "the network was not given images")
        if not relus.count:
            raise ValueError(
                f"{type(network).__name__} calls no ReLU, and guided backpropagation is defined "
                "for ReLUs only: use litcam.explain.CAM"
            )
        yield cam, pixels, relus


def _backpropagate(logits: Tensor, pixels: Tensor, chosen: Tensor, relus: GuidedReLUs) -> Tensor:
    ones = torch.zeros_like(logits).scatter_(1, chosen[:, None], 1.0)
    relus.guide = True
    # The mode also here: gradient checkpointing may run a part of the forward again.
    with relus:
        (gradients,) = torch.autograd.grad(logits, pixels, ones)
    return gradients.detach()
