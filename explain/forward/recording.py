"""Recording the graph from a layer to the scores inside a forward that happens anyway."""

from collections.abc import Callable
from contextlib import ExitStack, nullcontext
from functools import partial
from types import FunctionType, MethodType
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from litcam.explain import networks
from litcam.explain.forward.compiled import Compiled
from litcam.explain.forward.stand_in import StandIn
from litcam.explain.forward.untouched import (
    find_trained,
    frozen,
    keep_random_numbers,
    ours,
    shielding,
)
from litcam.explain.layers.layout import TargetLayer, find_layout, find_module
from litcam.explain.layers.order import Order, check_order
from litcam.explain.layers.survey import Call, find_layer
from litcam.explain.methods.vit import Watch
from litcam.explain.scores import NO_GRAPH, RefusalError, Target, find_scores

# Recordings whose network is being called, the innermost last.
_running: list["Recording"] = []
# Where images are that one of them has copied, and where those were that it copied.
_copied: dict[int, int] = {}

# What the image has told of a layer's tokens: asked once, and not by every `CAM` of a loop.
_orders: WeakKeyDictionary[nn.Module, dict[Any, Order]] = WeakKeyDictionary()


class Recording:
    """Around a network's forward: the target layer's output becomes a leaf, the scores are kept.

    Between them grad is on, whatever the caller's mode; what the caller gets back is what a plain
    forward gives. Nothing raises inside the caller's forward: what cannot be recorded runs plainly,
    and `failure` says why. Nothing outside keeps a part of the graph.

    Args:
        network: the network whose forwards are recorded.
        target_layer: as for `CAM`; by default found before the first forward, on two of its images.
        target, backend: as for `CAM`.
        watch: keeps more of the forward than the layer; it then runs uncompiled.

    Attributes:
        layer: the `TargetLayer` in use, or None before the first forward.
        images: what the network was last given, `(batch, channels, height, width)`.
        activations: the layer's output, in the graph of `logits`.
        logits: what the network answered, `(batch, num_classes)`.
        failure: why the last forward cannot be explained, or an empty line.
        frozen: the parameters that did not require grad during the forward, but do otherwise.
        expected: where given, of several forwards the one of these very images is kept, else the
            first; otherwise the last.

    Raises:
        ValueError: no such layer; the message offers close matches.
    """

    def __init__(
        self,
        network: nn.Module,
        target_layer: str | nn.Module | TargetLayer | None,
        target: Target | None = None,
        backend: Any = None,
        watch: Watch | None = None,
    ) -> None:
        self.network, self._target, self.watch = network, target, watch
        self._compiled: Compiled | None = None
        self._backend, self._is_open = None if watch else backend, False
        self.layer: TargetLayer | None = None
        self.failure = ""
        self.frozen: list[nn.Parameter] = []
        self._given: tuple[str, nn.Module] | None = None
        self._checked = isinstance(target_layer, TargetLayer)
        if isinstance(target_layer, TargetLayer):
            self.layer, self._given = target_layer, (target_layer.name, target_layer.module)
        elif target_layer is not None:
            self._given = find_module(network, target_layer)
        self._refusal, self._open = "", ExitStack()
        # Whether grad is on before the layer too: a forward that turns it off for a part of itself
        # turns it back to what it was. There is no graph there all the same, for nothing requires
        # grad.
        self._early, self._no_graph = False, NO_GRAPH.format(type(network).__name__)
        self.expect(None)
        self.release()

    def open(self) -> None:
        """Puts itself around the network's forward."""
        self._refusal, self._is_open = "", True
        self._open.enter_context(networks.run_eagerly())
        self._open.callback(StandIn.enter(self.network, self.around))

    def close(self) -> None:
        """Takes itself away again."""
        self._is_open = False
        self._open.close()

    def expect(self, images: Tensor | None) -> None:
        """Begins a step whose batch holds these images."""
        self.expected, self._found = images, False

    def release(self) -> None:
        """Lets the recorded graph go."""
        self.images: Tensor | None = None
        self.activations: Tensor | None = None
        self.logits: Tensor | None = None
        if self.watch:
            self.watch.release()

    def around(self, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """A forward, recorded where it can be."""
        images = networks.find_images(args, kwargs, self.expected)
        if self in _running or images is None or not self._is_wanted(images):
            return forward(*args, **kwargs)
        self.release()
        self.failure, self.images = self._refusal, images.detach()
        if self._refusal:
            return forward(*args, **kwargs)
        draw_again = keep_random_numbers(images.device)
        _running.append(self)
        call = Call(forward, args, kwargs, images)
        compiles = self._backend is not None
        try:
            output = self._record(call)
            if self._given and not self._early and self.failure == self._no_graph:
                draw_again()
                output = self._record_early(call, output)
            if not (compiles and self.failure):
                return output
        except Exception as error:
            problem = self._describe(error)
        except BaseException:
            self.release()
            raise
        finally:
            _running.remove(self)
        # The error's traceback is gone, and with it what the recorded forward held.
        self.release()
        draw_again()
        if compiles:  # once more, uncompiled
            self._backend, self._found = None, False
            return self.around(forward, args, kwargs)
        refusal, self._refusal, self.failure = self._refusal, "", ""
        output = forward(*args, **kwargs)
        # Else the plain forward fails as well, and it is not for us to say why.
        self._refusal, self.failure = refusal, refusal or problem
        return output

    def _is_wanted(self, images: Tensor) -> bool:
        if self.expected is None:
            return True
        place = _copied.get(images.data_ptr(), images.data_ptr())
        matches = images.shape == self.expected.shape and place == self.expected.data_ptr()
        wanted = self.logits is None or (matches and not self._found)
        self._found |= matches
        return wanted

    def _record(self, call: Call) -> Any:
        through = torch.is_grad_enabled()
        self.frozen = [] if through else find_trained(self.network)
        with ExitStack() as stack:
            if torch.is_inference_mode_enabled():
                # Tensors made under inference mode could not be saved for the backward later.
                stack.enter_context(torch.inference_mode(False))
                stack.enter_context(torch.no_grad())
                given, call = call, call.change(networks.copy_inference)
                _copied[call.images.data_ptr()] = given.images.data_ptr()
                stack.callback(_copied.pop, call.images.data_ptr(), None)
            stack.enter_context(torch.set_grad_enabled(self._early or torch.is_grad_enabled()))
            if not through:
                # A network that caches something made of its parameters would keep a graph in it.
                stack.enter_context(frozen(self.frozen))
            if not self._given and not self._choose(call):
                return call()
            assert self._given is not None
            if not through:
                stack.enter_context(shielding(self.network))
            output = self._run(call, self._given[1], stack)
            if output is not None:
                self._finish(output)
            if not self._checked and self.layer is not None and not self.failure:
                self._check(call, self.layer)
        plain = not (through and networks.has_graph(call.images, self.network))
        # Another one around this network still needs the graph.
        return networks.detach(output) if plain and len(_running) == 1 else output

    def _run(self, call: Call, layer: nn.Module, stack: ExitStack) -> Any:
        """The forward, and what happens at the layer; compiled where asked for and one records."""
        alone = self._is_open and len(_running) == 1
        if not (self._backend and alone and isinstance(call.forward, FunctionType | MethodType)):
            hook = layer.register_forward_hook(self._at_target_layer)
            stack.callback(hook.remove)
            with self.watch.watching(call.images) if self.watch else nullcontext():
                return call()
        self._compiled = self._compiled or Compiled(layer, self._backend)
        at_layer = partial(self._at_target_layer, layer, None)
        return self._compiled(call.forward, call.args, call.kwargs, at_layer)

    def _record_early(self, call: Call, output: Any) -> Any:
        """Once more, at a given layer, with grad on early; else what came out the first time."""
        images, failure = self.images, self.failure
        self.release()
        self.images, self.failure, self._refusal, self._early = images, "", "", True
        second = self._record(call)
        if not self.failure:
            return second
        self._early, self.failure, self._refusal = False, failure, failure
        return output

    def _choose(self, call: Call) -> bool:
        try:
            self.layer = find_layer(self.network, call, self._target, early=self._early)
        except RefusalError as error:
            if not self._early and str(error) == self._no_graph:
                self._early, before = True, torch.is_grad_enabled()
                torch.set_grad_enabled(True)
                if self._choose(call):
                    return True
                torch.set_grad_enabled(before)
                self._early = False
            self.failure = self._refusal = str(error)
            return False
        self._given, self._checked = (self.layer.name, self.layer.module), True
        return True

    def _check(self, call: Call, layer: TargetLayer) -> None:
        """Tokens have to be those of the image's patches; what has rows and columns is believed."""
        self._checked = True
        if layer.layout.kind == "tokens":
            known = _orders.setdefault(layer.module, {})
            about = tuple(call.images.shape[1:]), layer.layout
            if about not in known:
                with torch.no_grad():
                    known[about] = check_order(self.network, call, layer)
            order = known[about]
            if order.problem:
                self.failure = self._refusal = f"layer {layer.name}: {order.problem}"
            self.layer = TargetLayer(layer.name, layer.module, order.layout, layer.reason)

    @ours
    def _at_target_layer(self, module: nn.Module, args: Any, given: Any) -> Any:
        if StandIn.aside:  # another one tries a forward
            return None
        name = self._given[0] if self._given else ""
        assert self.images is not None
        if self.activations is not None:
            self.failure = f"layer {name} is called more than once in a forward"
            return None
        output = networks.features_of(given)
        if not isinstance(output, Tensor):
            self.failure = f"layer {name} returns a {type(output).__name__}, not a tensor"
            return None
        known = self.layer.layout if self.layer and self._checked else None
        layout = find_layout(output.shape, self.images.shape, self.network, module, known)
        if layout is None:
            batch, _, height, width = self.images.shape
            no = "no" if len(output) == batch else f"not one entry for each of {batch} images, no"
            self.failure = (
                f"layer {name} gives {tuple(output.shape)}: {no} grid over images of "
                f"{height}x{width} pixels"
            )
            return None
        reason = self.layer.reason if self.layer else "as asked for"
        self.layer = TargetLayer(name, module, layout, reason)
        torch.set_grad_enabled(True)
        # Detached, so that nothing before the layer is kept, unless the caller trains through it.
        self.activations = output if output.requires_grad else output.detach().requires_grad_()
        # A clone: an in-place ReLU may follow.
        return networks.with_features(given, self.activations.clone())

    def _finish(self, output: Any) -> None:
        layer = self._given[0] if self._given else ""
        try:
            assert self.images is not None
            with torch.enable_grad():
                logits = find_scores(output, self.network, len(self.images), self._target)
                # A clone, because the caller may go on with the logits in place.
                self.logits = logits.clone()
        except RefusalError as error:
            self.failure = self.failure or str(error)
            return
        if self.failure:
            return
        if self.activations is None:
            self.failure = networks.not_called(self.network, layer)
        elif not self.logits.requires_grad:
            self.failure = self._no_graph
        elif self.watch is not None and self.layer is not None:
            self.failure = self.watch.find_problem(self.logits, self.layer)

    def _describe(self, error: Exception) -> str:
        name = type(self.network).__name__
        line = " ".join(next(iter(str(error).splitlines()), "").split())
        return f"the forward of {name} cannot be recorded ({type(error).__name__}: {line})"
