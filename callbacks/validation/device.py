"""What was made on a device, brought to the CPU."""

import weakref
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

# What was read last: several callbacks ask for the index of the same batch.
_read: tuple[Callable[[], Tensor | None], list[int]] = (lambda: None, [])


def bring(tensors: Sequence[Tensor]) -> list[Tensor]:
    """The same tensors on the CPU, in one copy: the CPU waits for the device at each.

    They go as float32: whole numbers of theirs have to be below 2^24.
    """
    if all(tensor.device.type == "cpu" for tensor in tensors):
        return [tensor.detach() for tensor in tensors]
    flat = torch.cat([tensor.detach().flatten().float() for tensor in tensors]).cpu()
    parts = flat.split([tensor.numel() for tensor in tensors])
    return [
        part.view(tensor.shape).to(tensor.dtype)
        for part, tensor in zip(parts, tensors, strict=True)
    ]


def read_once(index: Tensor) -> list[int]:
    """Whole numbers `(batch,)`; the device is waited for by the first who asks."""
    global _read
    if _read[0]() is not index:
        _read = weakref.ref(index), index.tolist()
    return _read[1]
