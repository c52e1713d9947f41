"""Recording the graph from a layer to the logits inside a forward that happens anyway."""

from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from litcam.explain.layers.layout import TargetLayer, find_layout, find_module
from litcam.explain.layers.survey import Survey
from litcam.explain.networks import (
    copy_inference,
    detach,
    find_images,
    find_logits,
    find_trained,
    frozen,
    run_eagerly,
)

Arguments = tuple[Any, ...]
Keywords = dict[str, Any]


class Recording:
    """Two hooks: the target layer's output becomes a leaf, the network's logits are kept.

    Between them grad is on, whatever the caller's mode; what the caller gets back is what a plain
    forward gives. Nothing raises inside the caller's forward: `failure` says what went wrong.

    Args:
        network: the network whose forwards are recorded.
        target_layer: as for `CAM`; by default found in the first forward.

    Attributes:
        layer: the `TargetLayer` in use, or None before the first forward.
        images: what the network was last given, `(batch, channels, height, width)`.
        activations: the layer's output, in the graph of `logits`.
        logits: what the network answered, `(batch, num_classes)`.
        failure: why the last forward cannot be explained, or an empty line.
        training_through: whether the caller's grad mode was on.
        frozen: the parameters that did not require grad during the forward, but do otherwise.

    Raises:
        ValueError: no such layer; the message offers close matches.
    """

    def __init__(
        self, network: nn.Module, target_layer: str | nn.Module | TargetLayer | None
    ) -> None:
        self.network = network
        self.layer: TargetLayer | None = None
        self.images: Tensor | None = None
        self.activations: Tensor | None = None
        self.logits: Tensor | None = None
        self.failure = ""
        self.training_through = False
        self.frozen: list[nn.Parameter] = []
        self._given: tuple[str, nn.Module] | None = None
        if isinstance(target_layer, TargetLayer):
            self.layer, self._given = target_layer, (target_layer.name, target_layer.module)
        elif target_layer is not None:
            self._given = find_module(network, target_layer)
        self._survey: Survey | None = None
        self._hooks = ExitStack()  # from open to close
        self._call = ExitStack()  # from the beginning to the end of a forward
        self._in_call = False

    def open(self) -> None:
        """Puts the hooks on."""
        self._hooks.enter_context(run_eagerly())
        before = self.network.register_forward_pre_hook(self.start, with_kwargs=True)
        after = self.network.register_forward_hook(
            self._after, prepend=True, with_kwargs=True, always_call=True
        )
        self._hooks.callback(before.remove)
        self._hooks.callback(after.remove)

    def close(self) -> None:
        """Takes them off and restores the modes, wherever the forward broke off."""
        self._end_call()
        self._hooks.close()

    def release(self) -> None:
        """Lets the recorded graph go."""
        self.logits = self.activations = self.images = None

    def start(
        self, module: nn.Module, args: Arguments, kwargs: Keywords
    ) -> tuple[Arguments, Keywords] | None:
        """Begins to record a forward, before it runs; may return changed arguments."""
        images = find_images(args, kwargs)
        if self._in_call or images is None:
            return None
        self.release()
        self._in_call, self.failure, self.images = True, "", images.detach()
        self.training_through, self.frozen = torch.is_grad_enabled(), []
        if torch.is_inference_mode_enabled():
            # Tensors made under inference mode could not be saved for the backward later.
            self._call.enter_context(torch.inference_mode(False))
            self._call.enter_context(torch.no_grad())
            args, kwargs = copy_inference(args), copy_inference(kwargs)
        self._call.enter_context(torch.set_grad_enabled(torch.is_grad_enabled()))
        if not self.training_through:
            # A network that caches something made of its parameters would keep a graph in it.
            self.frozen = find_trained(self.network)
            self._call.enter_context(frozen(self.frozen))
        if self._given is not None:
            hook = self._given[1].register_forward_hook(self._at_target_layer)
            self._call.callback(hook.remove)
        else:
            torch.set_grad_enabled(True)
            self._survey = Survey(self.network, images.shape, keep_graph=self.training_through)
            self._call.callback(self._survey.close)
        return args, kwargs

    def _at_target_layer(self, module: nn.Module, args: Any, output: Any) -> Tensor | None:
        name = self._given[0] if self._given else ""
        assert self.images is not None
        if self.activations is not None:
            self.failure = f"layer {name} is called more than once in a forward"
            return None
        if not isinstance(output, Tensor):
            self.failure = f"layer {name} returns a {type(output).__name__}, not a tensor"
            return None
        layout = find_layout(output.shape, self.images.shape, self.network, module)
        if layout is None:
            batch, _, height, width = self.images.shape
            parts = (
                "no" if len(output) == batch else f"not one entry for each of {batch} images, no"
            )
            self.failure = (
                f"layer {name} gives {tuple(output.shape)}: {parts} grid over images of "
                f"{height}x{width} pixels"
            )
            return None
        reason = self.layer.reason if self.layer else "as asked for"
        self.layer = TargetLayer(name, module, layout, reason)
        torch.set_grad_enabled(True)
        # Detached, so that nothing before the layer is kept, unless the caller trains through it.
        leaf = not output.requires_grad
        self.activations = output.detach().requires_grad_() if leaf else output
        # A clone, because an in-place ReLU may follow.
        return self.activations.clone()

    def _after(
        self, module: nn.Module, args: Any, kwargs: dict[str, Any], output: Any
    ) -> Any | None:
        if not self._in_call:
            return None
        plain = not (self.training_through and _has_graph(args, kwargs, module))
        if output is not None:
            self._finish(output)
        self._end_call()
        return detach(output) if plain and output is not None and not self._is_within() else None

    def _is_within(self) -> bool:
        """Whether another CAM records this call as well, and still needs the graph."""
        owners = [getattr(h, "__self__", None) for h in self.network._forward_hooks.values()]
        return any(isinstance(o, Recording) and o is not self and o._in_call for o in owners)

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
                self.layer, self.activations = self._survey.choose(logits)
                self._given = self.layer.name, self.layer.module
            except (ValueError, RuntimeError) as error:
                # Raised here it would break the caller's forward.
                self.failure = str(error)
        elif self.activations is None and not self.failure:
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


def _has_graph(args: Any, kwargs: dict[str, Any], network: nn.Module) -> bool:
    """Whether a plain forward in grad mode would have given logits with a graph."""
    images = find_images(args, kwargs)
    trained = any(parameter.requires_grad for parameter in network.parameters())
    return trained or bool(images is not None and images.requires_grad)
