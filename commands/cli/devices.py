"""Which device a command runs its networks on."""

from difflib import get_close_matches

import torch

KINDS = ("auto", "cpu", "cuda", "mps", "xpu")
# As Lightning calls them.
OTHER_WORDS = {"gpu": "cuda"}


def find_device(name: str = "auto") -> torch.device:
    """The device of this name, if it is here.

    Args:
        name: ``cpu``, ``cuda``, ``cuda:1``, ``mps`` and whatever else torch knows; ``auto`` is the
            accelerator that torch finds on this machine, else the CPU.

    Raises:
        ValueError: there is no such device here; the message offers those that there are.

    >>> find_device("cpu")
    device(type='cpu')
    """
    if name == "auto":
        return torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        kind = name.partition(":")[0]
        near = [OTHER_WORDS[kind]] if kind in OTHER_WORDS else get_close_matches(kind, KINDS)
        raise ValueError(
            f"device {name!r} does not exist; did you mean {', '.join(near or KINDS)}?"
        ) from None
    if device.type == "cpu":
        return torch.device("cpu")
    if (device.index or 0) < (count := _count(device.type)):
        return device
    kind = device.type.upper() if device.type in KINDS else device.type
    found = "are 0" if not count else "is 1" if count == 1 else f"are {count}"
    devices = "device" if count == 1 else "devices"
    remedy = "leave --device out" if not count else f"the last is {device.type}:{count - 1}"
    raise ValueError(f"device {name!r} is not here: there {found} {kind} {devices}; {remedy}")


def _count(kind: str) -> int:
    """How many of a kind there are; none of those that only hold shapes, such as ``meta``."""
    try:
        module = torch.get_device_module(kind)
    except RuntimeError:
        return 0
    return int(module.device_count()) if module.is_available() else 0
