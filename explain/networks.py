"""What goes into a classifier and what comes out of it, whoever wrote it."""

import copy
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DataParallel, DistributedDataParallel
from torch.nn.parameter import is_lazy


def unwrap(network: nn.Module) -> nn.Module:
    """The network itself, out of `torch.compile`, DistributedDataParallel and DataParallel."""
    while True:
        inner = getattr(network, "_orig_mod", None)
        if isinstance(inner, nn.Module):
            network = inner
        elif isinstance(network, DistributedDataParallel | DataParallel):
            network = network.module
        else:
            return network


def run_eagerly() -> AbstractContextManager[Any]:
    """Lets compiled networks run uncompiled: a graph made before skips hooks without a word."""
    if "torch._dynamo" not in sys.modules:
        return nullcontext()
    return torch.compiler.set_stance("force_eager")


def is_compiled(network: nn.Module) -> bool:
    """Whether the network or a part of it runs under `torch.compile`."""
    # Lightning takes the wrapper off a LightningModule and keeps it in `_compiler_ctx`.
    marks = ("_orig_mod", "_compiled_call_impl", "_compiler_ctx")
    return any(getattr(part, mark, None) for part in network.modules() for mark in marks)


def find_trained(network: nn.Module) -> list[nn.Parameter]:
    """The parameters that require grad."""
    return [p for p in network.parameters() if p.requires_grad and not is_lazy(p)]


@contextmanager
def frozen(parameters: list[nn.Parameter]) -> Iterator[None]:
    """None of these parameters requires grad meanwhile."""
    parameters = [parameter for parameter in parameters if parameter.requires_grad]
    try:
        for parameter in parameters:
            parameter.requires_grad_(False)
        yield
    finally:
        for parameter in parameters:
            parameter.requires_grad_(True)


@contextmanager
def evaluating(network: nn.Module, images: Tensor) -> Iterator[None]:
    """Eval mode and a copy of the random state meanwhile; both afterwards as they were."""
    modes = [(module, module.training) for module in network.modules()]
    # Some networks draw at random in eval mode too.
    with torch.random.fork_rng([images.device] if images.is_cuda else []):
        try:
            network.eval()
            yield
        finally:
            for module, training in modes:
                module.training = training


def find_images(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor | None:
    """The first tensor `(batch, channels, height, width)` among a forward's arguments."""
    for value in (*args, *kwargs.values()):
        if isinstance(value, Tensor) and value.ndim == 4:
            return value
    return None


def find_logits(output: Any) -> Tensor | None:
    """The logits `(batch, num_classes)` in what a classifier returned.

    A tensor, an object or a mapping with `logits` (Hugging Face), or the first such tensor of a
    tuple (auxiliary heads).
    """
    if isinstance(output, Mapping):
        return find_logits(output.get("logits"))
    if hasattr(output, "logits"):
        return find_logits(output.logits)
    if isinstance(output, tuple | list):
        return next((value for value in map(find_logits, output) if value is not None), None)
    if isinstance(output, Tensor) and output.ndim == 2 and output.is_floating_point():
        return output
    return None


def detach(output: Any) -> Any:
    """`output` with every tensor cut off its graph, in the same kind of container."""
    return _map_tensors(Tensor.detach, output)


def copy_inference(value: Any) -> Any:
    """`value` with every tensor made under inference mode copied, so that autograd may save it."""
    return _map_tensors(lambda t: t.clone() if t.is_inference() else t, value)


def _map_tensors(change: Callable[[Tensor], Tensor], value: Any) -> Any:
    """`value` with `change` done to its tensors, also in strangers' output objects."""
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(_map_tensors(change, part) for part in value))
    if isinstance(value, tuple | list):
        return type(value)(_map_tensors(change, part) for part in value)
    if isinstance(value, Mapping):
        mapping = copy.copy(value)
        for key, part in value.items():
            mapping[key] = _map_tensors(change, part)  # type: ignore[index]
        return mapping
    if not isinstance(value, nn.Module) and any(
        isinstance(part, Tensor) for part in getattr(value, "__dict__", {}).values()
    ):
        plain = copy.copy(value)
        for key, part in vars(value).items():
            object.__setattr__(plain, key, _map_tensors(change, part))
        return plain
    return value


def timm_models(network: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The timm models in `network` with their dotted names, outermost first."""
    for name, module in network.named_modules():
        if hasattr(module, "pretrained_cfg") and hasattr(module, "num_features"):
            yield name, module


class NetworkFinder:
    """Calls `found` at the first call of a module below `root` that takes images.

    A LightningModule may call itself or a child, and only the call tells. `found` gets the module
    and the call's arguments before its forward runs, and may return changed ones; whatever hooks
    it puts on take part in that call. `apart` tells afterwards which module worked on with the
    network's output: a network called in two parts has no single forward.
    """

    def __init__(
        self, root: nn.Module, found: Callable[[nn.Module, tuple[Any, ...], dict[str, Any]], Any]
    ) -> None:
        self.network: nn.Module | None = None
        self.apart = ""
        self._found = found
        self._inside: set[nn.Module] = set()
        self._storage = 0
        self._eagerly = ExitStack()
        self._eagerly.enter_context(run_eagerly())
        self._hooks = [
            module.register_forward_pre_hook(self._watch(name), with_kwargs=True)
            for name, module in root.named_modules()
            # Losses, metrics and augmentations have no parameters.
            if next(module.parameters(), None) is not None
        ]

    def _watch(self, name: str) -> Callable[[nn.Module, tuple[Any, ...], dict[str, Any]], Any]:
        def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            if self.network is None:
                if find_images(args, kwargs) is not None:
                    self.network, self._inside = module, set(module.modules())
                    self._hooks.append(module.register_forward_hook(self._returned))
                    return self._found(module, args, kwargs)
            elif self._storage and module not in self._inside and not self.apart:
                values = [value for value in (*args, *kwargs.values()) if torch.is_tensor(value)]
                if any(value.untyped_storage().data_ptr() == self._storage for value in values):
                    self.apart = name
            return None

        return before

    def _returned(self, module: nn.Module, args: Any, output: Any) -> None:
        if isinstance(output, Tensor):
            self._storage = output.untyped_storage().data_ptr()

    def close(self) -> None:
        """Takes the hooks off again."""
        for hook in self._hooks:
            hook.remove()
        self._hooks = []
        self._eagerly.close()
