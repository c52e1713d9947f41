"""An exponential moving average of the weights, which a short run does not leave where it began."""

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import WeightAveraging
from torch import Tensor

__all__ = ["EMA"]


class EMA(WeightAveraging):
    """Validate, test and keep the exponential moving average of the weights.

    Lightning's `WeightAveraging` with a decay that grows to its value, as in the original training
    of EfficientNet: after ``n`` steps it is at most ``(1 + n) / (10 + n)``. Without that a decay of
    0.9999 still holds 99 % of the first weights after 100 steps. Running means and variances of
    BatchNorm are averaged as well.

    A checkpoint has the average as its weights; what is trained goes on from beside it. So has the
    encoder that `MAE` writes, and a checkpoint with ``save_weights_only``.

    Args:
        decay: of the average at each step of the optimiser, in [0, 1).

    Raises:
        ValueError: if ``decay`` is out of range.
    """

    def __init__(self, decay: float = 0.9999) -> None:
        if not 0 <= decay < 1:
            raise ValueError(f"EMA: decay must be in [0, 1), got {decay}")

        def average(kept: Tensor, now: Tensor, steps: Tensor | int) -> Tensor:
            if not kept.is_floating_point():  # counters of BatchNorm
                return now
            # Counted on the device: no step waits for it.
            count = torch.as_tensor(steps, device=kept.device, dtype=torch.float32)
            weight = 1 - ((1 + count) / (10 + count)).clamp(max=decay)
            return kept.lerp(now, weight.to(kept.dtype))

        super().__init__(avg_fn=average)
        self.decay = decay
        self._swapped = False

    def on_validation_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Put the average into the module."""
        super().on_validation_epoch_start(trainer, pl_module)
        self._swapped = self._average_model is not None

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Put back what is trained."""
        super().on_validation_epoch_end(trainer, pl_module)
        self._swapped = False

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        """Put back what is trained before a checkpoint is kept of a run that stops."""
        # Lightning (2.6.6) leaves them in each other's place where a validation is stopped.
        if self._swapped:
            self.on_validation_epoch_end(trainer, pl_module)
