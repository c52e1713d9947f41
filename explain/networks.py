"""What goes into a classifier and what comes out of it, whoever wrote it."""

import copy
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DataParallel, DistributedDataParallel


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


class _Eagerly:
    """Has compiled functions run uncompiled until the last of those who asked for it has left.

    Each would put back what it found: the one that came second and left last, "eagerly", for good.
    """

    def __init__(self) -> None:
        self._stance: AbstractContextManager[Any] | None = None
        self._num_inside = 0

    def __enter__(self) -> None:
        self._num_inside += 1
        if self._stance is None and "torch._dynamo" in sys.modules:
            self._stance = torch.compiler.set_stance("force_eager")

    def __exit__(self, *error: object) -> None:
        self._num_inside -= 1
        if self._stance is not None and not self._num_inside:
            self._stance.__exit__(None, None, None)
            self._stance = None


_eagerly = _Eagerly()


def run_eagerly() -> AbstractContextManager[Any]:
    """Lets compiled networks run uncompiled: a graph made before skips hooks without a word."""
    return _eagerly


def find_images(
    args: tuple[Any, ...], kwargs: Mapping[str, Any], expected: Tensor | None = None
) -> Tensor | None:
    """The images `(batch, channels, height, width)` among a forward's arguments.

    Args:
        args: of the forward; a tensor may stand in a list or a mapping.
        kwargs: the same.
        expected: the batch's images: they are meant where they are given on.
    """
    values: list[Any] = []
    for value in (*args, *kwargs.values()):
        nested = value.values() if isinstance(value, Mapping) else value
        values += list(nested) if isinstance(value, Mapping | list | tuple) else [value]
    if expected is not None and any(value is expected for value in values):
        return expected
    return prefer_photos(values)


def prefer_photos(values: Iterable[Any]) -> Tensor | None:
    """The first tensor `(batch, 3, height, width)`, else the first of other channels.

    A mask may stand before its image.
    """
    found = [value for value in values if are_images(value)]
    return next((value for value in found if value.shape[1] == 3), found[0] if found else None)


def are_images(value: Any) -> bool:
    """Whether it may be images `(batch, channels, height, width)`."""
    return isinstance(value, Tensor) and value.ndim == 4 and value.layout == torch.strided


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


def find_answers(output: Any) -> list[Tensor]:
    """Every tensor `(batch, num_scores)` of a tuple or list that a network returned."""
    if not isinstance(output, tuple | list):
        return []
    return [v for v in output if isinstance(v, Tensor) and v.ndim == 2 and v.is_floating_point()]


def features_of(output: Any) -> Any:
    """What a layer gives, or the only tensor of a plain tuple of it, as Hugging Face's blocks do.

    Several tensors are several maps side by side, as CoaT's blocks give them, or nobody knows what.
    """
    if type(output) is not tuple or not output:
        return output
    first, *rest = output
    return output if any(isinstance(each, Tensor) for each in rest) else first


def with_features(output: Any, features: Tensor | None) -> Any:
    """`output` with other `features_of` it; None where there are none, as hooks have it."""
    if features is None or not isinstance(output, tuple):
        return features
    return (features, *output[1:])


def detach(output: Any) -> Any:
    """`output` with every tensor cut off its graph, in the same kind of container."""
    return map_tensors(Tensor.detach, output)


def copy_inference(value: Any) -> Any:
    """`value` with every tensor made under inference mode copied, so that autograd may save it."""
    return map_tensors(lambda t: t.clone() if t.is_inference() else t, value)


def map_tensors(change: Callable[[Tensor], Tensor], value: Any) -> Any:
    """`value` with `change` done to its tensors, also in strangers' output objects."""
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(map_tensors(change, part) for part in value))
    if isinstance(value, tuple | list):
        return type(value)(map_tensors(change, part) for part in value)
    if isinstance(value, Mapping):
        mapping = copy.copy(value)
        for key, part in value.items():
            mapping[key] = map_tensors(change, part)  # type: ignore[index]
        return mapping
    if not isinstance(value, nn.Module) and any(
        isinstance(part, Tensor) for part in getattr(value, "__dict__", {}).values()
    ):
        plain = copy.copy(value)
        for key, part in vars(value).items():
            object.__setattr__(plain, key, map_tensors(change, part))
        return plain
    return value


def has_graph(images: Tensor, network: nn.Module) -> bool:
    """Whether a plain forward in grad mode would have given logits with a graph."""
    return images.requires_grad or any(p.requires_grad for p in network.parameters())


def timm_models(network: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The timm models in `network` with their dotted names, outermost first."""
    for name, module in network.named_modules():
        if hasattr(module, "pretrained_cfg") and hasattr(module, "num_features"):
            yield name, module


def not_called(network: nn.Module, layer: str) -> str:
    """Say that the layer of this name had no part in a forward, and why that may be."""
    line = f"layer {layer} was not called in the forward of {type(network).__name__}"
    if any(getattr(module, "grad_checkpointing", False) is True for module in network.modules()):
        line += ": gradient checkpointing calls the blocks in a stage; name one of those"
    return line
