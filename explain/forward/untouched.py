"""Leaving a network as it was: its modes, random numbers, buffers, attributes and hooks."""

import random
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from litcam.explain.forward.stand_in import StandIn
from litcam.explain.networks import map_tensors

# What every module has; the rest is its author's.
OWN = frozenset(vars(nn.Module()))
CONTAINERS = (dict, OrderedDict, defaultdict, list, set)
PLAIN = (bool, int, float, str, type(None), torch.dtype, torch.device)


@contextmanager
def frozen(parameters: Iterable[nn.Parameter]) -> Iterator[None]:
    """None of these parameters requires grad meanwhile."""
    parameters = [parameter for parameter in parameters if parameter.requires_grad]
    try:
        for parameter in parameters:
            parameter.requires_grad_(False)
        yield
    finally:
        for parameter in parameters:
            parameter.requires_grad_(True)


def find_trained(network: nn.Module) -> list[nn.Parameter]:
    """The parameters that require grad."""
    return [p for p in network.parameters() if p.requires_grad and not is_lazy(p)]


def keep_random_numbers(device: torch.device) -> Callable[[], None]:
    """Returns what has the same numbers drawn again: PyTorch's, Python's and NumPy's."""
    state, numbers, legacy = torch.get_rng_state(), random.getstate(), np.random.get_state()  # noqa: NPY002
    # A device beside the CPU has its own.
    own: Any = None if device.type == "cpu" else torch.get_device_module(device)
    there = own.get_rng_state(device) if hasattr(own, "get_rng_state") else None

    def draw_again() -> None:
        torch.set_rng_state(state)
        random.setstate(numbers)
        np.random.set_state(legacy)  # noqa: NPY002
        if own is not None and there is not None:
            own.set_rng_state(there, device)

    return draw_again


@contextmanager
def same_random_numbers(device: torch.device) -> Iterator[None]:
    """What is drawn at random meanwhile is drawn again afterwards."""
    draw_again = keep_random_numbers(device)
    try:
        yield
    finally:
        draw_again()


@contextmanager
def evaluating(network: nn.Module, device: torch.device) -> Iterator[None]:
    """Eval mode and a copy of the random state meanwhile; both afterwards as they were."""
    modes = [(module, module.training) for module in network.modules()]
    # Some networks draw at random in eval mode too.
    with same_random_numbers(device):
        try:
            network.eval()
            yield
        finally:
            # Not by `train()`: it would set all parts alike, and others may have their own.
            for module, training in modes:
                module.training = training


@contextmanager
def trying(network: nn.Module, images: Tensor) -> Iterator[None]:
    """A forward that nothing notices: no buffer, attribute, random number or hook of a stranger.

    Hooks of PyTorch itself run: they make weights.
    """
    with ExitStack() as stack:
        stack.enter_context(StandIn.stepping_aside())
        stack.enter_context(same_random_numbers(images.device))
        for module in _open_modules(network):
            stack.callback(_restore, module, _copy_attributes(module))
            _replace_buffers(module, Tensor.clone, stack, keep=False)
            for hooks in (module._forward_pre_hooks, module._forward_hooks):
                _replace_hooks(hooks, lambda hook: _do_nothing, stack)
        yield


@contextmanager
def shielding(network: nn.Module) -> Iterator[None]:
    """Keeps the graph of a forward inside: nothing of the network holds a part of it afterwards.

    Buffers are written through aliases, hooks of strangers see tensors without a graph, and what
    the forward leaves in attributes is cut off. Tensors cached under inference mode are copied,
    because autograd could not save them.
    """
    with ExitStack() as stack:
        for module in _open_modules(network):
            for hooks in (module._forward_pre_hooks, module._forward_hooks):
                _replace_hooks(hooks, lambda hook: partial(_call_without_graph, hook), stack)
            if not _keeps_nothing(module):
                _replace_buffers(module, _alias, stack, keep=True)
                _change_attributes(module, lambda t: t.clone() if t.is_inference() else t)
                stack.callback(_change_attributes, module, _cut)
        yield


def ours(hook: Callable[..., Any]) -> Callable[..., Any]:
    """Marks a hook as litcam's: it runs where those of strangers do not."""
    hook._litcam = True  # type: ignore[attr-defined]
    return hook


def _open_modules(network: nn.Module) -> Iterator[nn.Module]:
    """Those whose parts can be changed: TorchScript's are sealed."""
    return (part for part in network.modules() if not isinstance(part, torch.jit.ScriptModule))


def _keeps_nothing(module: nn.Module) -> bool:
    """Whether its forward writes nothing down: PyTorch's own modules and norms in eval mode."""
    known = type(module).__module__.startswith("torch.nn.modules.")
    return not module.training and (known or isinstance(module, nn.modules.batchnorm._NormBase))


def _do_nothing(*args: Any) -> None:
    return None


def _alias(buffer: Tensor) -> Tensor:
    return buffer.clone() if buffer.is_inference() else buffer.detach()


def _cut(tensor: Tensor) -> Tensor:
    return tensor.detach() if tensor.grad_fn is not None else tensor


def _replace_buffers(
    module: nn.Module, change: Callable[[Tensor], Tensor], stack: ExitStack, *, keep: bool
) -> None:
    """Puts others in place of a module's buffers, and the very same ones back.

    Args:
        module: its own buffers are meant, not those of its parts.
        change: from a buffer to what stands in for it.
        stack: puts them back.
        keep: what the forward puts in their place meanwhile.
    """
    for name, buffer in module._buffers.items():
        if buffer is not None and not is_lazy(buffer):
            other = change(buffer)
            module._buffers[name] = other
            stack.callback(_put_back, module, name, buffer, other, other._version, keep)


def _put_back(
    module: nn.Module, name: str, buffer: Tensor, other: Tensor, version: int, keep: bool
) -> None:
    now = module._buffers.get(name)
    written = buffer.is_inference() and other._version != version
    if not keep or (now is other and not written):
        module._buffers[name] = buffer
    elif now is not None:
        module._buffers[name] = now.detach()


def _replace_hooks(
    hooks: dict[int, Callable[..., Any]],
    change: Callable[[Callable[..., Any]], Callable[..., Any]],
    stack: ExitStack,
) -> None:
    """Changes the hooks of strangers in their places, and back."""
    for number, hook in list(hooks.items()):
        inner = getattr(hook, "__func__", hook)
        made_by = getattr(inner, "__module__", None) or type(hook).__module__
        if not (getattr(inner, "_litcam", False) or made_by.startswith(("torch.nn.", "torch.ao."))):
            hooks[number] = change(hook)
            stack.callback(_restore_hook, hooks, number, hook)


def _restore_hook(hooks: dict[int, Callable[..., Any]], number: int, hook: Any) -> None:
    if number in hooks:  # else it was removed meanwhile
        hooks[number] = hook


def _call_without_graph(hook: Callable[..., Any], module: nn.Module, *given: Any) -> Any:
    """What a stranger's hook does on tensors without a graph, unless it changes them."""
    answer = hook(module, *map_tensors(_cut_leaf, given))
    # What it puts in their place has to be in the graph.
    return None if answer is None else hook(module, *given)


def _cut_leaf(tensor: Tensor) -> Tensor:
    return tensor.detach() if tensor.requires_grad else tensor


def _copy_attributes(module: nn.Module) -> dict[str, Any]:
    """A module's attributes that are its author's, with a copy of each plain container."""
    kept = {}
    for name, value in vars(module).items():
        if name not in OWN or name == "training":
            kept[name] = value, value.copy() if type(value) in CONTAINERS else None
    return kept


def _restore(module: nn.Module, attributes: dict[str, Any]) -> None:
    now = vars(module)
    for name in [name for name in now if name not in attributes and name not in OWN]:
        del now[name]
    for name, (value, content) in attributes.items():
        now[name] = value
        if content is None:
            continue
        value.clear()
        (value.extend if isinstance(value, list) else value.update)(content)


def _change_attributes(module: nn.Module, change: Callable[[Tensor], Tensor]) -> None:
    """Changes the tensors that a module keeps, also in its lists and dicts."""
    values = vars(module)
    for name, value in list(values.items()):
        if name not in OWN and not isinstance(value, PLAIN):
            new = _change(value, change)
            if new is not value:
                values[name] = new


def _change(value: Any, change: Callable[[Tensor], Tensor], depth: int = 0) -> Any:
    if isinstance(value, Tensor):
        return value if isinstance(value, nn.Parameter) else change(value)
    if depth > 2:
        return value
    if isinstance(value, dict | list):
        # The container stays: others may hold it too.
        places = list(value.items()) if isinstance(value, dict) else list(enumerate(value))
        for place, part in places:
            new = _change(part, change, depth + 1)
            if new is not part:
                value[place] = new
        return value
    if type(value) is tuple:
        parts = tuple(_change(part, change, depth + 1) for part in value)
        return parts if any(a is not b for a, b in zip(parts, value, strict=True)) else value
    return value
