"""Time and memory on whatever device there is: events on CUDA, clocks elsewhere."""

import os
import platform
import time
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch


class Stopwatch:
    """Seconds between marks.

    On CUDA a mark is an event in the stream, so that nothing waits between two of them; elsewhere
    a clock is read once the device is done.

    Args:
        device: that does the work.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._marks: list[Any] = []

    def mark(self) -> None:
        """A span ends here and the next one begins."""
        if self._device.type == "cuda":
            event = torch.cuda.Event(enable_timing=True)
            event.record(torch.cuda.current_stream(self._device))
            self._marks.append(event)
            return
        wait(self._device)
        self._marks.append(time.perf_counter())

    def spans(self) -> list[float]:
        """Seconds of each span; waits for the device, and begins anew."""
        marks, self._marks = self._marks, []
        if self._device.type != "cuda":
            return [end - start for start, end in pairwise(marks)]
        marks[-1].synchronize()
        return [start.elapsed_time(end) / 1000 for start, end in pairwise(marks)]


def measure(call: Callable[[], object], device: torch.device) -> float:
    """Seconds of a call, from an idle device to an idle device."""
    wait(device)
    watch = Stopwatch(device)
    watch.mark()
    call()
    watch.mark()
    return watch.spans()[0]


def measure_work(call: Callable[[], object], device: torch.device) -> float:
    """Seconds that the process's threads work in a call, whoever else has the cores meanwhile.

    Raises:
        ValueError: on another device than the CPU.
    """
    if device.type != "cpu":
        raise ValueError(f"work is measured on a CPU, not on {device}: leave --work out")
    start = time.process_time()
    call()
    return time.process_time() - start


def wait(device: torch.device) -> None:
    """Until the device has done all it was asked."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def measure_memory(call: Callable[[], object], device: torch.device) -> float:
    """Peak MiB that a call's tensors hold above what there was before; CUDA alone counts them.

    Raises:
        ValueError: on another device.
    """
    if device.type != "cuda":
        raise ValueError(f"device {device} does not count its memory; use CUDA")
    wait(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    call()
    wait(device)
    return (torch.cuda.max_memory_allocated(device) - before) / 2**20


def describe_machine(device: torch.device = torch.device("cpu")) -> str:  # noqa: B008
    """Where a figure comes from."""
    machine = f"{os.cpu_count()} cores, {platform.machine()}, torch {torch.__version__}"
    if device.type != "cuda":
        return machine if device.type == "cpu" else f"{device}, {machine}"
    return f"{torch.cuda.get_device_name(device)}, CUDA {torch.version.cuda}, {machine}"
