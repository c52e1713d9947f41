"""LibraGrad: the gradient of a ViT along balanced paths, times what its blocks are given."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import GluMlp, SwiGLU
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from litcam.explain.forward.untouched import ours
from litcam.explain.layers.layout import TargetLayer
from litcam.explain.methods.formulas import hirescam
from litcam.explain.methods.vit import find_vit, starting_at

# x * gate(x): the gate is a number, not a path.
GATED: tuple[Callable[..., Any], ...] = (F.gelu, F.silu, F.hardswish, F.mish)
SHARES: tuple[Callable[..., Any], ...] = (
    *(F.softmax, torch.softmax, Tensor.softmax),
    *(F.sigmoid, torch.sigmoid, Tensor.sigmoid),
)


class LibraGrad:
    """Input times gradient of a ViT's tokens, along paths that add up to the answer.

    Mehri et al., "LibraGrad: Balancing Gradient Flow for Universally Better Vision Transformer
    Attributions", CVPR 2025, https://arxiv.org/abs/2411.16760. Where two functions of the same
    input are multiplied, the plain gradient counts both, and where a norm divides by the spread it
    cancels: backward, one of the two is taken as a number. So no gradient passes through the
    attention's weights, through the spread in a LayerNorm, and through the gates of GELU, SiLU and
    SwiGLU. Tokens times gradients, and biases times theirs, then add up to the logit (the paper's
    FullGrad-completeness). The forward's values stay as they are.

    The map is made of what the first block is given: patches with their positions.

    Args:
        network: holds a timm ViT.

    Raises:
        ValueError: it holds none.
    """

    answers_alone = True

    def __init__(self, network: nn.Module) -> None:
        self._name, self._vit = find_vit(network, "libragrad")
        self.release()

    def release(self) -> None:
        """Lets what was kept go."""
        self._start: list[Tensor] = []

    @contextmanager
    def watching(self, images: Tensor) -> Iterator[None]:
        """Balances the graph of the forward of these images."""
        self.release()
        with ExitStack() as stack:
            stack.enter_context(starting_at(self._vit.blocks[0], self._start))
            for module in self._vit.modules():
                if isinstance(module, GluMlp | SwiGLU):
                    stack.callback(module.act.register_forward_hook(_prune).remove)
            stack.enter_context(Balanced())
            yield

    def find_problem(self, logits: Tensor, layer: TargetLayer) -> str:
        """Why these logits cannot be explained so, or an empty line."""
        if getattr(self._vit, "grad_checkpointing", False):
            return (
                "method 'libragrad' balances the first forward, and gradient checkpointing goes "
                "backward through a second one: set_grad_checkpointing(False), or take legrad"
            )
        layout, start = layer.layout, self._start[0]
        height, width = layout.grid
        num_tokens = layout.num_prefix_tokens + height * width + layout.num_suffix_tokens
        if layout.kind != "tokens" or start.ndim != 3 or start.shape[1] != num_tokens:
            return (
                f"method 'libragrad' needs the tokens of {layer.name} from the first block on: "
                f"{type(self._vit).__name__} gives that one {tuple(start.shape)}"
            )
        return ""

    def made_at(self, layer: TargetLayer) -> TargetLayer:
        """The first block's input."""
        name = f"{self._name}.blocks.0".lstrip(".")
        reason = "what the first block is given, along balanced paths"
        return TargetLayer(name, self._vit.blocks[0], layer.layout, reason)

    def explain(self, logits: Tensor, classes: Tensor, layer: TargetLayer) -> Tensor:
        """Maps `(batch, height, width)` of one class an image."""
        (start,) = self._start
        ones = torch.zeros_like(logits).scatter_(1, classes[:, None], 1.0)
        (gradient,) = torch.autograd.grad(logits, start, ones, retain_graph=True)
        to_maps = layer.layout.to_maps
        return hirescam(to_maps(start.detach()).float(), to_maps(gradient).float())


class Balanced(TorchFunctionMode):
    """Inside, values are those of every function, and gradients those of LibraGrad."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Calls `func` and balances its gradient."""
        kwargs = kwargs or {}
        if not torch.is_grad_enabled():
            return func(*args, **kwargs)
        if func in SHARES:
            return func(*args, **kwargs).detach()
        if func is F.scaled_dot_product_attention:
            query, key, *rest = args
            # A mask may hold learned positions.
            kept = {k: v.detach() if isinstance(v, Tensor) else v for k, v in kwargs.items()}
            return func(query.detach(), key.detach(), *rest, **kept)
        if func in GATED and args[0].requires_grad:
            kept = {name: value for name, value in kwargs.items() if name != "inplace"}
            return _Straight.apply(_plainly(func, args[:1], kept), _gate(func, args[0], kept))
        if func in (F.layer_norm, F.rms_norm) and args[0].requires_grad:
            straight = _normalise(func is F.layer_norm, *args, **kwargs)
            return _Straight.apply(_plainly(func, args, kwargs), straight)
        return func(*args, **kwargs)


class _Straight(torch.autograd.Function):
    """The value of one tensor and the gradient of another."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, path: Tensor) -> Tensor:
        return value.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[None, Tensor]:
        return None, gradients[0]


def _plainly(func: Callable[..., Any], args: Any, kwargs: Any) -> Tensor:
    with torch.no_grad():
        value: Tensor = func(*args, **kwargs)
    return value


def _gate(func: Callable[..., Any], x: Tensor, kwargs: Any) -> Tensor:
    """`x` times a number for each of its elements, which gives `func(x)`."""
    with torch.no_grad():
        # At 0 all of them have half a gate.
        gate = torch.where(x == 0, 0.5, func(x, **kwargs) / x)
    return x * gate


def _normalise(
    centred: bool,
    x: Tensor,
    shape: Any,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float | None = None,
) -> Tensor:
    """A LayerNorm or RMSNorm whose spread is a number."""
    axes = tuple(range(-len(shape), 0))
    x = x - x.mean(axes, keepdim=True) if centred else x
    with torch.no_grad():
        eps = torch.finfo(x.dtype).eps if eps is None else eps
        scale = (x.square().mean(axes, keepdim=True) + eps).rsqrt()
    x = x * scale
    x = x if weight is None else x * weight
    return x if bias is None else x + bias


@ours
def _prune(module: nn.Module, args: Any, output: Tensor) -> Tensor:
    """The gate of a gated MLP is a number."""
    return output.detach()
