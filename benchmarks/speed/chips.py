"""What a chip can do at most, and how much of it a figure is."""

import re
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from litcam.lightning_modules.masked import decoders


@dataclass(frozen=True)
class Chip:
    """Peaks of a chip.

    Attributes:
        name: what to call it.
        flops: operations a second of dense matrix products in bfloat16, summed in float32.
        bandwidth: bytes a second of its memory.
    """

    name: str
    flops: float
    bandwidth: float


# By what `torch.cuda.get_device_name` says. From NVIDIA's data sheets of the H100, H200, A100 and
# L4, which quote H100, H200 and L4 with sparsity, twice what is here; for the RTX 4090 from the
# white paper "NVIDIA Ada GPU Architecture", appendix A.
CHIPS = {
    r"H100 80GB HBM3$": Chip("H100 SXM", 989e12, 3.35e12),
    r"H100 PCIe$": Chip("H100 PCIe", 756e12, 2.0e12),
    r"H200$": Chip("H200 SXM", 989e12, 4.8e12),
    r"A100-SXM4-80GB$": Chip("A100 SXM 80 GB", 312e12, 2.039e12),
    r"A100 80GB PCIe$": Chip("A100 PCIe 80 GB", 312e12, 1.935e12),
    r"A100-\w+-40GB$": Chip("A100 40 GB", 312e12, 1.555e12),
    r"NVIDIA L4$": Chip("L4", 121e12, 0.3e12),
    r"RTX 4090$": Chip("RTX 4090", 165e12, 1.008e12),
}


def find_chip(name: str) -> Chip | None:
    """The chip of this name, or None: another one, or a slice of one (MIG).

    >>> find_chip("NVIDIA H100 80GB HBM3").name, find_chip("NVIDIA L40S")
    ('H100 SXM', None)
    """
    return next((chip for at, chip in CHIPS.items() if re.search(at, name)), None)


def chip_of(device: torch.device) -> Chip | None:
    """The chip behind a device, if its peak is known."""
    return find_chip(torch.cuda.get_device_name(device)) if device.type == "cuda" else None


def count_flops(call: Callable[[], object]) -> int:
    """Operations of the matrix products and convolutions of a call, a multiply-add being two."""
    # Written out, because torch does not count a CPU's fused attention.
    with sdpa_kernel(SDPBackend.MATH):
        return decoders.count_flops(call)


def tell_speed(flops: float, seconds: float, device: torch.device) -> str:
    """Speed in TFLOP/s, and its share of the chip's peak in bfloat16.

    >>> tell_speed(2e12, 4.0, torch.device("cpu"))
    '0.50 TFLOP/s'
    """
    speed, chip = flops / seconds, chip_of(device)
    share = f", {speed / chip.flops:.1%} of the peak" if chip else ""
    return f"{speed / 1e12:.2f} TFLOP/s{share}"


def tell_peak(device: torch.device) -> str:
    """What shares are of, or that there are none."""
    if chip := chip_of(device):
        return f"peak of {chip.name}: {chip.flops / 1e12:.0f} TFLOP/s in dense bfloat16"
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)
    return f"peak of {name} not known: no shares (benchmarks/speed/chips.py has the table)"
