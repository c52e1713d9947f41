"""What every training step of litcam's modules has: repeatable randomness, finite gradients."""

import os
import random
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from torch import Tensor
from torchmetrics import Metric

from litcam.lightning_modules.backbones import prefer_plain_attention
from litcam.lightning_modules.parallel.sync_batchnorm import keep_activations
from litcam.lightning_modules.steps.finite import StepGuard, is_fused, is_sharded
from litcam.lightning_modules.steps.interruption import BuffersBefore, LateInterrupt
from litcam.lightning_modules.steps.pace import Pace
from litcam.lightning_modules.weights import read_normalisation, warn_of_normalisation
from litcam.lightning_modules.weights.saving import averaged, describe_data

__all__ = ["GuardedSteps", "run_seed"]


def run_seed() -> int:
    """Return the seed of ``seed_everything``, else the one torch began with."""
    return int(os.environ.get("PL_GLOBAL_SEED", torch.initial_seed()))


class GuardedSteps(pl.LightningModule):
    """A module whose steps a resumed run repeats, and that stops before a step that is not finite.

    At the start of each step torch, NumPy and Python are seeded with the run's seed, the process
    and the step. Dropout, stochastic depth and Mixup then draw what they would have drawn in a run
    that was never interrupted, with no state of any generator in the checkpoint. Runs that did not
    call ``seed_everything`` did not ask for that, and their generators are left alone.

    A step is taken whole or not at all: a checkpoint made in the middle of one holds the weights
    and buffers before it, and Ctrl-C waits for the optimiser.
    """

    def __init__(self) -> None:
        super().__init__()
        self._guard, self._pace = StepGuard(), Pace()
        self._buffers_before = BuffersBefore()
        self._late_interrupt = LateInterrupt()

    def setup(self, stage: str) -> None:
        """Have BatchNorm over all processes keep timm's activations; hold data against weights."""
        keep_activations(self.trainer.strategy)
        if weights := self.hparams.get("weights"):
            warn_of_normalisation(weights, getattr(self.trainer, "datamodule", None))

    @property
    def images_of_weights(self) -> tuple[list[float], list[float]] | None:
        """Mean and std of the images that ``weights`` were trained on, if these tell."""
        weights = self.hparams.get("weights")
        return read_normalisation(weights) if weights else None

    def on_fit_start(self) -> None:
        """Suit the attention to the machine, and the metrics to what is to come."""
        prefer_plain_attention(self)
        for metric in self.modules():
            if isinstance(metric, Metric):
                # A validation before left states that only inference mode may change.
                metric.reset()

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Seed the step."""
        self._buffers_before.keep(self)
        if "PL_GLOBAL_SEED" not in os.environ:
            return
        step = self.trainer.fit_loop.epoch_loop.batch_progress.total.ready
        numbers = np.random.SeedSequence([run_seed(), self.global_rank, step]).generate_state(3)
        torch.manual_seed(int(numbers[0]))
        np.random.seed(int(numbers[1]))  # noqa: NPY002 - timm's Mixup draws from the global one
        random.seed(int(numbers[2]))

    def on_train_epoch_start(self) -> None:
        """Begin to count images."""
        self._pace.begin()

    def watch(self, loss: Tensor, batch: Any, num_images: int) -> None:
        """Remember the loss of a step and its batch, in case it is not finite; log how it goes."""
        self._guard.watch(loss, batch)
        self._pace.count(self, loss, num_images)

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Keep a step whose gradient is not finite from the weights; see `StepGuard`.

        Raises:
            NonFiniteError: with the step, the learning rate and the images.
        """
        self._guard.check(self, optimizer)
        self._late_interrupt.begin()

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Step, or fail at once."""
        try:
            super().optimizer_step(*args, **kwargs)
        except BaseException:
            self._late_interrupt.end()
            raise

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: int | float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip also for a fused optimiser, which Lightning refuses for the sake of a scaler."""
        scaled = self.trainer.precision == "16-mixed"
        if not gradient_clip_val or scaled or is_sharded(self.trainer) or not is_fused(optimizer):
            self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)
            return
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        if gradient_clip_algorithm == "value":
            torch.nn.utils.clip_grad_value_(parameters, gradient_clip_val)
        else:
            torch.nn.utils.clip_grad_norm_(parameters, gradient_clip_val)

    def on_train_epoch_end(self) -> None:
        """Look whether a step of the epoch was left out.

        Raises:
            NonFiniteError: with the step, the learning rate and the images.
        """
        self._guard.look(self.trainer)

    def on_train_batch_end(self, *args: Any) -> None:
        """Let Ctrl-C through again: the step is counted."""
        self._late_interrupt.end()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Leave out what an untaken step did to the buffers; tell how images were made."""
        self._buffers_before.put_into(checkpoint, self)
        if "callbacks" not in checkpoint and (kept := averaged(self)) is not self:
            # For `save_weights_only` Lightning asks no callback, and would keep the other weights.
            checkpoint["state_dict"] = kept.state_dict()
        checkpoint["data_config"] = describe_data(getattr(self._trainer, "datamodule", None))
