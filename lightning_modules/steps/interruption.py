"""A step is taken whole or not at all: its buffers go back, and Ctrl-C waits for the optimiser."""

import signal
import threading
from types import FrameType
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor

__all__ = ["BuffersBefore", "LateInterrupt"]


class BuffersBefore:
    """Buffers of a module as they were before the first batch of a step of the optimiser.

    The forward of a batch that is interrupted, or that waits for the rest of its window of
    accumulated gradients, has moved running means already. A checkpoint that has the batch trained
    again is to have them as they were.
    """

    def __init__(self) -> None:
        self._step = -1
        self._kept: dict[str, Tensor] = {}

    def keep(self, module: pl.LightningModule) -> None:
        """To be called before each training batch; copies where a new step begins."""
        step = module.trainer.global_step
        if step == self._step:
            return
        now = {name: buffer for name, buffer in module.named_buffers() if buffer is not None}
        alike = self._kept.keys() == now.keys() and all(
            kept.shape == now[name].shape and kept.device == now[name].device
            for name, kept in self._kept.items()
        )
        if not alike:
            self._kept = {name: buffer.detach().clone() for name, buffer in now.items()}
        elif now:
            with torch.no_grad():
                torch._foreach_copy_(list(self._kept.values()), list(now.values()))
        self._step = step

    def put_into(self, checkpoint: dict[str, Any], module: pl.LightningModule) -> None:
        """Has a checkpoint made before the step was taken hold the buffers before it."""
        fitting = module.trainer.state.fn == "fit"
        if not fitting or module.trainer.global_step != self._step:
            return
        # Lightning's weight averaging puts the weights that are trained elsewhere.
        weights = checkpoint.get("current_model_state", checkpoint["state_dict"])
        for name, buffer in self._kept.items():
            if name in weights:
                weights[name] = buffer


class LateInterrupt:
    """Has Ctrl-C, and the signal of SLURM, wait for a step of the optimiser.

    Half way through it the weights, which both of them have saved, are spoilt.
    """

    SIGNALS = (signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2)

    def __init__(self) -> None:
        self._before: dict[int, Any] = {}
        self._asked: list[tuple[int, FrameType | None]] = []

    def begin(self) -> None:
        """From here on they are only remembered."""
        if self._before or threading.current_thread() is not threading.main_thread():
            return
        self._asked = []
        for number in self.SIGNALS:
            handler = signal.getsignal(number)
            if callable(handler):
                self._before[number] = handler
                signal.signal(number, lambda *asked: self._asked.append(asked))

    def end(self) -> None:
        """Does what they would have done, if they came."""
        before, self._before = self._before, {}
        for number, handler in before.items():
            signal.signal(number, handler)
        for number, frame in self._asked if before else []:
            before[number](number, frame)
