"""What is divided among processes: which blocks of a network, and tensors in parts and whole."""

from collections import Counter
from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

__all__ = ["divide", "find_units", "make_whole", "own_tensor", "whole_state"]

# A part of a network is taken apart further where it holds more than this of the parameters.
LARGE = 1 / 20


def find_units(module: nn.Module) -> list[nn.Module]:
    """The blocks of a network, whose weights are gathered together: those that come in a row.

    Where a module has several parts of one class, with layers in them, those are its blocks: ViT's
    ``blocks``, Swin's stages and the ``blocks`` in each, the layers of a ResNet and the blocks in
    them. What is in none of them (stem, last norm, head) is gathered at the start of a step.

    Returns:
        The blocks, inner ones first.

    >>> import timm
    >>> len(find_units(timm.create_model("vit_tiny_patch16_224")))
    12
    """
    total = sum(parameter.numel() for parameter in module.parameters())

    def walk(part: nn.Module) -> Iterator[nn.Module]:
        children = [child for child in part.children() if _has_parts(child)]
        kinds = Counter(type(child) for child in children)
        for child in children:
            if sum(parameter.numel() for parameter in child.parameters()) > LARGE * total:
                yield from walk(child)
            # Lists alone have no forward to gather their weights in; their parts have.
            if kinds[type(child)] > 1 and not isinstance(child, nn.ModuleList | nn.ModuleDict):
                yield child

    return list(walk(module))


def whole_state(module: nn.Module, *, keep: bool = True) -> dict[str, Tensor]:
    """A module's state dict with whole tensors, on the CPU. A collective where it is divided.

    Args:
        module: on every process the same.
        keep: whether this process wants it; else it only takes part and gets nothing.
    """
    found: dict[str, Any] = {}
    for name, value in module.state_dict().items():
        whole = make_whole(value, keep=keep) if isinstance(value, DTensor) else value
        if keep:
            found[name] = whole
    return found


def make_whole(value: DTensor, *, keep: bool) -> Tensor | None:
    """The whole tensor on the CPU, or None where this process does not want it. A collective."""
    whole = value.full_tensor()
    return whole.cpu() if keep else None


def divide(value: Any, like: Tensor | None) -> Any:
    """This process's part of a value that belongs to a divided parameter."""
    if not isinstance(like, DTensor) or not isinstance(value, Tensor) or value.shape != like.shape:
        return value
    value = value.to(like.device)
    return distribute_tensor(value, like.device_mesh, like.placements, src_data_rank=None)


def _has_parts(module: nn.Module) -> bool:
    return any(next(child.parameters(), None) is not None for child in module.children())


def own_tensor(module: nn.Module, args: Any, output: Any) -> Tensor | None:
    """A copy of a view (Swin's blocks return one), on which PyTorch's hook could be lost."""
    if isinstance(output, Tensor) and output.requires_grad and output._base is not None:
        return output.clone()
    return None
