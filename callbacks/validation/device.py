"""What was made on a device, brought to the CPU."""

from collections.abc import Sequence

import torch
from torch import Tensor


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
