"""Recording under `torch.compile`: what is before a layer and behind it is compiled apart."""

import copy
from collections.abc import Callable
from itertools import count
from types import FunctionType
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from litcam.explain.forward.rows import keep_rows
from litcam.explain.forward.untouched import ours

# What takes the graphs of a layer's networks apart. One for each layer: a graph that was made for
# another one, or for nobody, has no mark at this one.
_backends: WeakKeyDictionary[nn.Module, list[tuple[Any, "_Splitter"]]] = WeakKeyDictionary()
_numbers = count(1)


class Compiled:
    """A network's forward, compiled up to one layer's output and from there.

    The output is marked in the graph, and the graph taken apart at the mark.

    Args:
        layer: returns a tensor, once in a forward.
        backend: as for `torch.compile`.
    """

    def __init__(self, layer: nn.Module, backend: Any) -> None:
        self._layer = layer
        known = _backends.setdefault(layer, [])
        found = [splitter for given, splitter in known if given == backend]
        if not found:
            found = [_Splitter(backend)]
            known.append((backend, found[0]))
        self._splitter = found[0]
        self._forward: Any = None
        self._compiled: Callable[..., Any] | None = None

    def __call__(
        self,
        forward: Callable[..., Any],
        args: Any,
        kwargs: Any,
        at_layer: Callable[[Tensor], Tensor | None],
    ) -> Any:
        """What the forward gives, with `at_layer` between the parts; also within `run_eagerly`.

        Raises:
            Exception: whatever the compiler raises where it cannot compile this.
        """
        # Lightning puts compiled functions in place of a module's own.
        forward = getattr(forward, "_torchdynamo_orig_callable", forward)
        if self._compiled is None or self._forward != forward:
            self._forward = forward
            self._compiled = _compile(self._splitter.isolate(forward), self._splitter)
        # Blocks share their code: without a look at hooks the last one would take the first's.
        looking = torch._dynamo.config.patch(skip_nnmodule_hook_guards=False)
        hook = self._layer.register_forward_hook(_mark_output)
        self._splitter.at_layer = at_layer
        try:
            with torch.compiler.set_stance("default"), looking:
                return self._compiled(*args, **kwargs)
        finally:
            self._splitter.at_layer = None
            hook.remove()


def find_backend(root: nn.Module, network: nn.Module) -> Any:
    """What `torch.compile` was told to make `network`, or something around it in `root`, with.

    None where it was not, or where only parts of the network were.
    """
    for module in root.modules():
        context = _find_context(module)
        if context is not None and any(part is network for part in module.modules()):
            return torch._dynamo.eval_frame.innermost_backend(context.callback)
    return None


def _find_context(module: nn.Module) -> Any:
    """What runs a module compiled: by `torch.compile(module)`, by Lightning, `module.compile()`."""
    values = vars(module)
    if (context := values.get("dynamo_ctx")) is not None:
        return context
    if (kept := values.get("_compiler_ctx")) is not None:
        return kept["dynamo_ctx"]
    cells = getattr(values.get("_compiled_call_impl"), "__closure__", None) or ()
    contents = (cell.cell_contents for cell in cells)
    return next((found for found in contents if hasattr(found, "callback")), None)


def _mark(output: Tensor) -> Tensor:
    """Stands in the graph where the layer's output is; never runs."""
    return output.clone()


@ours
def _mark_output(module: nn.Module, args: Any, output: Any) -> Any:
    return _mark(output)


class _Splitter:
    """A backend that compiles what is before and behind the mark with another one.

    Attributes:
        at_layer: what happens at the mark in the forward under way.
        isolate: has what compiles the networks around this layer kept apart from all else.
    """

    def __init__(self, backend: Any) -> None:
        torch.compiler.allow_in_graph(_mark)
        self._compile_part, self.isolate = _prepare(backend), _make_isolation()
        self.at_layer: Callable[[Tensor], Tensor | None] | None = None

    def __call__(self, graph: torch.fx.GraphModule, inputs: Any) -> Callable[..., Any]:
        from torch.fx.passes.split_module import split_module

        places = {node: place for place, node in enumerate(graph.graph.nodes)}
        marks = [place for node, place in places.items() if node.target is _mark]
        if not marks:  # of a network that is compiled in parts, one without the layer
            return self._compile_part(graph, inputs)
        if len(marks) > 1:
            raise ValueError("the layer is called more than once")

        def part(node: torch.fx.Node) -> int:
            return (places[node] > marks[0]) - (places[node] < marks[0])

        whole = split_module(graph, None, part)  # type: ignore[arg-type]
        children: list[tuple[str, Any]] = list(whole.named_children())
        for name, child in children:
            at_mark = any(node.target is _mark for node in child.graph.nodes)
            setattr(whole, name, _Call(self._at_mark if at_mark else self._compile_apart(child)))
        return whole.forward

    def _compile_apart(self, part: torch.fx.GraphModule) -> Callable[..., Any]:
        return _compile(_make_isolation()(keep_rows(part)), self._compile_part)

    def _at_mark(self, output: Tensor) -> Tensor:
        assert self.at_layer is not None
        changed = self.at_layer(output)
        return output if changed is None else changed


class _Call(nn.Module):
    """A function where a module is expected."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *args: Any) -> Any:
        return self.function(*args)


def _compile(forward: Callable[..., Any], backend: Any) -> Callable[..., Any]:
    """For each size of batch by itself: a validation has two, the last batch being smaller."""
    compiled: Callable[..., Any] = torch.compile(forward, backend=backend, dynamic=False)
    return compiled


def _make_isolation() -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Makes functions that call others, from one piece of code that nobody else has.

    Dynamo keeps what it compiled by the code and gives up after eight times; that of
    `nn.Sequential`, and of every graph, all have in common.
    """
    number = next(_numbers)
    code = _make_call(print).__code__.replace(co_name=f"part_{number}", co_firstlineno=number)

    def isolate(forward: Callable[..., Any]) -> Callable[..., Any]:
        closure = _make_call(forward).__closure__
        return FunctionType(code, globals(), code.co_name, None, closure)

    return isolate


def _make_call(forward: Callable[..., Any]) -> FunctionType:
    def call(*args: Any, **kwargs: Any) -> Any:
        return forward(*args, **kwargs)

    assert isinstance(call, FunctionType)
    return call


def _prepare(backend: Any) -> Callable[..., Any]:
    """A backend whose graphs can be gone through backward several times."""
    from torch._dynamo.backends.registry import lookup_backend
    from torch._functorch import config

    compile_part: Any = lookup_backend(backend)
    if "triton.cudagraphs" in (options := getattr(compile_part, "config", {})):
        # The layer's output is read after the graph, when another one may have its memory.
        compile_part = copy.copy(compile_part)
        compile_part.config = {**options, "triton.cudagraphs": False}

    def compile_kept(graph: Any, inputs: Any) -> Any:
        with config.patch(donated_buffer=False):
            return compile_part(graph, inputs)

    return compile_kept
