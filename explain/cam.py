"""Class activation maps out of the forward that happens anyway."""

from collections.abc import Sequence
from contextlib import ExitStack
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor, nn

from litcam.explain.methods import find_method, scale_maps
from litcam.explain.networks import (
    copy_inference,
    detach,
    find_images,
    find_logits,
    frozen,
    run_eagerly,
    unwrap,
)
from litcam.explain.survey import Survey
from litcam.explain.target_layers import TargetLayer, find_layout, find_module

Arguments = tuple[Any, ...]
Keywords = dict[str, Any]
Classes = Tensor | Sequence[int] | Sequence[Sequence[int]] | int | None


class CAM:
    """Makes maps of where a classifier looks, out of your own forward.

    Inside the context the graph from the target layer to the logits is recorded, also under
    `no_grad` and inference mode. The network's forward runs once and hands back the logits of a
    plain forward; modes, hooks and every `.grad` are afterwards as they were.

    Args:
        network: a classifier: any module that takes images `(batch, channels, height, width)` and
            returns logits `(batch, num_classes)`, or an object with `logits`.
        method: a name in `litcam.explain.METHODS`.
        target_layer: a dotted name or a module; by default found in the first forward.

    Attributes:
        target_layer: the `TargetLayer` in use, or None before the first forward.
        images: what the network was last given, `(batch, channels, height, width)`.
        logits: what it answered, `(batch, num_classes)`, in the recorded graph.
        failure: why the last forward cannot be explained, or an empty line.

    Raises:
        ValueError: no such method or layer; the message offers close matches.

    Example:
        >>> import timm, torch
        >>> network = timm.create_model("resnet18").eval()
        >>> with CAM(network) as cam, torch.no_grad():
        ...     logits = network(torch.randn(2, 3, 64, 64))
        >>> cam.target_layer.name, cam(logits.argmax(1)).shape
        ('layer4', torch.Size([2, 2, 2]))
    """

    def __init__(
        self,
        network: nn.Module,
        method: str = "gradcam",
        target_layer: str | nn.Module | TargetLayer | None = None,
    ) -> None:
        self.network = unwrap(network)
        self.target_layer: TargetLayer | None = None
        self.images: Tensor | None = None
        self.logits: Tensor | None = None
        self._method = find_method(method)
        self._given: tuple[str, nn.Module] | None = None
        if isinstance(target_layer, TargetLayer):
            self.target_layer = target_layer
            self._given = target_layer.name, target_layer.module
        elif target_layer is not None:
            self._given = find_module(self.network, target_layer)
        self._activations: Tensor | None = None
        self.failure = ""
        self._survey: Survey | None = None
        self._hooks = ExitStack()  # from __enter__ to __exit__
        self._call = ExitStack()  # from the beginning to the end of a forward
        self._in_call = False

    def __enter__(self) -> Self:
        self._hooks.enter_context(run_eagerly())
        before = self.network.register_forward_pre_hook(self._before, with_kwargs=True)
        after = self.network.register_forward_hook(
            self._after, prepend=True, with_kwargs=True, always_call=True
        )
        self._hooks.callback(before.remove)
        self._hooks.callback(after.remove)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._end_call()
        self._hooks.close()

    def __call__(self, classes: Classes = None) -> Tensor:
        """Maps at the layer's grid, after the ReLU and unscaled.

        Args:
            classes: one class an image `(batch,)`, several `(batch, k)`, one for all, or None for
                the predicted ones.

        Returns:
            `(batch, height, width)`, or `(batch, k, height, width)`, in float32.

        Raises:
            RuntimeError: no forward was recorded, or none that can be explained.
            IndexError: a class does not exist.
        """
        if self.failure:
            raise RuntimeError(self.failure)
        if self.logits is None or self._activations is None or self.target_layer is None:
            raise RuntimeError("no forward was recorded: call the network inside `with CAM(...)`")
        with ExitStack() as stack:
            stack.enter_context(torch.inference_mode(False))
            stack.enter_context(torch.no_grad())
            # Autocast would turn the float32 sums over channels back into bfloat16.
            stack.enter_context(torch.autocast(self.logits.device.type, enabled=False))
            if not self._training_through:
                # As in the forward: gradient checkpointing runs part of it again and compares.
                stack.enter_context(frozen(self.network))
            table = self._as_table(classes, self.logits)
            maps = torch.stack([self._explain(column) for column in table.unbind(1)], 1)
        several = classes is not None and torch.as_tensor(classes).ndim == 2
        return maps if several else maps[:, 0]

    def heatmaps(self, classes: Classes = None, size: tuple[int, int] | None = None) -> Tensor:
        """The same maps, each stretched to [0, 1], at `size` or the size of the images."""
        maps = self(classes)
        assert self.images is not None
        height, width = size or self.images.shape[-2:]
        return scale_maps(maps, (height, width))

    def start(self, args: Arguments, kwargs: Keywords) -> tuple[Arguments, Keywords]:
        """Begins recording a forward whose pre-hooks are running; returns its new arguments."""
        return self._before(self.network, args, kwargs) or (args, kwargs)

    def release(self) -> None:
        """Lets the recorded graph go."""
        self.logits = self._activations = self.images = None

    def _before(
        self, module: nn.Module, args: Arguments, kwargs: Keywords
    ) -> tuple[Arguments, Keywords] | None:
        images = find_images(args, kwargs)
        if self._in_call or images is None:
            return None
        self.release()
        self._in_call, self.failure, self.images = True, "", images.detach()
        size = (images.shape[-2], images.shape[-1])
        self._training_through = torch.is_grad_enabled()
        if torch.is_inference_mode_enabled():
            # Tensors made under inference mode could not be saved for the backward later.
            self._call.enter_context(torch.inference_mode(False))
            self._call.enter_context(torch.no_grad())
            args, kwargs = copy_inference(args), copy_inference(kwargs)
        self._call.enter_context(torch.set_grad_enabled(torch.is_grad_enabled()))
        if not self._training_through:
            # A network that caches something made of its parameters would keep a graph in it.
            self._call.enter_context(frozen(self.network))
        if self._given is not None:
            hook = self._given[1].register_forward_hook(self._at_target_layer)
            self._call.callback(hook.remove)
        else:
            torch.set_grad_enabled(True)
            self._survey = Survey(self.network, size, keep_graph=self._training_through)
            self._call.callback(self._survey.close)
        return args, kwargs

    def _at_target_layer(self, module: nn.Module, args: Any, output: Any) -> Tensor | None:
        name = self._given[0] if self._given else ""
        assert self.images is not None
        if self._activations is not None:
            self.failure = f"layer {name} is called more than once in a forward"
            return None
        if not isinstance(output, Tensor):
            self.failure = f"layer {name} returns a {type(output).__name__}, not a tensor"
            return None
        size = (self.images.shape[-2], self.images.shape[-1])
        layout = find_layout(output.shape, size, self.network, module)
        if layout is None:
            shape, pixels = tuple(output.shape), f"{size[0]}x{size[1]}"
            self.failure = f"layer {name} gives {shape}: no grid over images of {pixels} pixels"
            return None
        reason = self.target_layer.reason if self.target_layer else "as asked for"
        self.target_layer = TargetLayer(name, module, layout, reason)
        torch.set_grad_enabled(True)
        # Detached, so that nothing before the layer is kept, unless the caller trains through it.
        leaf = not output.requires_grad
        self._activations = output.detach().requires_grad_() if leaf else output
        # A clone, because an in-place ReLU may follow.
        return self._activations.clone()

    def _after(
        self, module: nn.Module, args: Any, kwargs: dict[str, Any], output: Any
    ) -> Any | None:
        if not self._in_call:
            return None
        plain = not (self._training_through and _has_graph(args, kwargs, module))
        if output is not None:
            self._finish(output)
        self._end_call()
        return detach(output) if plain and output is not None and not self._is_within() else None

    def _is_within(self) -> bool:
        """Whether another CAM records this call as well, and still needs the graph."""
        owners = [getattr(h, "__self__", None) for h in self.network._forward_hooks.values()]
        return any(isinstance(o, CAM) and o is not self and o._in_call for o in owners)

    def _finish(self, output: Any) -> None:
        logits, name = find_logits(output), type(self.network).__name__
        if logits is None:
            shape = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
            self.failure = f"{name} returns {shape}, not logits (batch, num_classes)"
        elif self._survey is not None:
            self._survey.close()
            if self._survey.num_candidates and not logits.requires_grad:
                self.failure = self._no_graph(name)
                return
            try:
                self.target_layer, self._activations = self._survey.choose(logits)
                self._given = self.target_layer.name, self.target_layer.module
            except (ValueError, RuntimeError) as error:
                # Raised here it would break the caller's forward.
                self.failure = str(error)
        elif self._activations is None and not self.failure:
            layer = self._given[0] if self._given else ""
            self.failure = f"layer {layer} was not called in the forward of {name}"
        elif not logits.requires_grad and not self.failure:
            self.failure = self._no_graph(name)
        if logits is not None:
            # A clone, because the caller may go on with the logits in place.
            with torch.enable_grad():
                self.logits = logits.clone()

    @staticmethod
    def _no_graph(name: str) -> str:
        return (
            f"the logits of {name} have no graph: its forward runs the layer under no_grad or "
            "detaches; freeze with requires_grad_(False) instead"
        )

    def _end_call(self) -> None:
        self._call.close()
        self._in_call, self._survey = False, None

    def _as_table(self, classes: Classes, logits: Tensor) -> Tensor:
        """Classes as `(batch, k)` on the logits' device."""
        batch, num_classes = logits.shape
        if classes is None:
            return logits.argmax(1, keepdim=True)
        table = torch.as_tensor(classes, device=logits.device).long().clone()
        table = table.expand(batch) if table.ndim == 0 else table
        table = table[:, None] if table.ndim == 1 else table
        if table.ndim != 2 or len(table) != batch:
            raise ValueError(f"classes must be (batch,) or (batch, k) for {batch} images")
        if table.numel() and not 0 <= int(table.min()) <= int(table.max()) < num_classes:
            wrong = int(table.max()) if int(table.max()) >= num_classes else int(table.min())
            raise IndexError(f"class {wrong} does not exist: there are 0 to {num_classes - 1}")
        return table

    def _explain(self, classes: Tensor) -> Tensor:
        """Maps `(batch, height, width)` for one class an image."""
        assert self.logits is not None and self._activations is not None
        assert self.target_layer is not None
        ones = torch.zeros_like(self.logits).scatter_(1, classes[:, None], 1.0)
        # With respect to the layer only: no parameter's .grad is touched.
        (gradients,) = torch.autograd.grad(
            self.logits, self._activations, ones, retain_graph=True, allow_unused=True
        )
        if gradients is None:
            raise RuntimeError(f"layer {self.target_layer.name} does not reach the logits")
        to_maps = self.target_layer.layout.to_maps
        activations = to_maps(self._activations.detach()).float()
        return self._method(activations, to_maps(gradients).float()).relu_()


def _has_graph(args: Any, kwargs: dict[str, Any], network: nn.Module) -> bool:
    """Whether a plain forward in grad mode would have given logits with a graph."""
    images = find_images(args, kwargs)
    trained = any(parameter.requires_grad for parameter in network.parameters())
    return trained or bool(images is not None and images.requires_grad)


def find_target_layer(network: nn.Module, images: Tensor) -> TargetLayer:
    """The layer whose map is worth looking at, checked on `images` in one forward in eval mode.

    Args:
        network: as for `CAM`.
        images: `(batch, channels, height, width)`; two are enough.

    Raises:
        ValueError: no layer can be explained; the message lists the candidates.
    """
    network = unwrap(network)
    modes = [(module, module.training) for module in network.modules()]
    network.eval()
    try:
        with CAM(network) as cam, torch.no_grad():
            network(images)
    finally:
        for module, training in modes:
            module.training = training
    if cam.target_layer is None:
        raise ValueError(
            cam.failure or "images must be one tensor (batch, channels, height, width)"
        )
    return cam.target_layer
