"""The loss and the images a second of a training under way, without a wait for the device."""

import time
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor

__all__ = ["Pace"]


class Pace:
    """Logs ``train/loss_step`` and ``train/images_per_second`` within an epoch.

    At every step at which loggers are written to (``log_every_n_steps``) the loss of the batch is
    sent to the CPU, and what was sent before is logged if it has come: so the loss is that of as
    many batches ago on an accelerator, and of this process's own images. Images a second are those
    of all processes, and validations are left out.
    """

    def __init__(self) -> None:
        self._images, self._seconds, self._before = 0, 0.0, 0.0
        self._sent: tuple[Tensor, Any] | None = None

    def begin(self) -> None:
        """To be called as an epoch begins: what lay before it was no training."""
        self._before = time.perf_counter()

    def count(self, module: pl.LightningModule, loss: Tensor, num_images: int) -> None:
        """To be called for each training batch."""
        if module._trainer is None:  # a step by hand
            return
        now = time.perf_counter()
        self._seconds += now - self._before
        self._before = now
        self._images += num_images
        trainer: Any = module.trainer
        # As Lightning counts steps for its loggers.
        if (trainer.fit_loop.epoch_loop._batches_that_stepped + 1) % trainer.log_every_n_steps:
            return
        rate = self._images * trainer.world_size / max(self._seconds, 1e-9)
        self._images, self._seconds = 0, 0.0
        _log(module, "train/images_per_second", torch.tensor(rate))
        if loss.device.type == "cpu":
            _log(module, "train/loss_step", loss.detach())
            return
        if self._sent is not None and (self._sent[1] is None or self._sent[1].query()):
            _log(module, "train/loss_step", self._sent[0])
        self._sent = loss.detach().to("cpu", non_blocking=True), _mark(loss.device)


def _log(module: pl.LightningModule, name: str, value: Tensor) -> None:
    on_bar = name == "train/loss_step"  # which tells batches a second by itself
    module.log(name, value, on_step=True, on_epoch=False, prog_bar=on_bar, batch_size=1)


def _mark(device: torch.device) -> Any:
    """An event after all that the device was asked until now, where it has events."""
    try:
        event = torch.Event(device)
        event.record()
    except (RuntimeError, NotImplementedError):
        return None
    return event
