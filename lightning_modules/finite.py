"""A run whose loss or gradient is no longer finite is stopped before the weights are spoilt."""

from collections.abc import Sequence
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor

__all__ = ["NonFiniteError", "StepGuard"]


# A process sees its own shard alone, and would stop without the others.
SHARDED = ("FSDP", "DeepSpeed", "ModelParallel")


class NonFiniteError(ValueError):
    """The loss or its gradient is infinite or not a number."""


class StepGuard:
    """Remembers the step that is being computed, and stops it before the optimiser if it is bad.

    The gradient is looked at, not the loss: processes average it, so that all of them see the bad
    step and stop at once, where a loss that is bad on one of them would leave the others waiting.
    """

    def __init__(self) -> None:
        self._loss: Tensor | None = None
        self._batch: Any = None

    def watch(self, loss: Tensor, batch: Any) -> None:
        """Remember the loss of a training step, and the ``index`` of its images if it is known."""
        self._loss = loss.detach()
        self._batch = batch.get("index") if isinstance(batch, dict) else None

    def check(self, module: pl.LightningModule) -> None:
        """Hold the gradients of a step against infinity; to be called before the optimiser.

        Raises:
            NonFiniteError: with the step, the learning rate and the images.
        """
        trainer = module.trainer
        # Under float16 an infinite gradient is the scaler's daily bread: it skips the step.
        if trainer.precision == "16-mixed" and self._loss is not None and self._loss.isfinite():
            return
        if any(kind in type(trainer.strategy).__name__ for kind in SHARDED):
            return
        gradients = [p.grad for p in module.parameters() if p.grad is not None]
        if not gradients or torch.nn.utils.get_total_norm(gradients).isfinite():
            return
        rates = sorted({group["lr"] for group in trainer.optimizers[0].param_groups})
        loss = "unknown" if self._loss is None else f"{self._loss.item():.4g}"
        raise NonFiniteError(
            f"the gradient is not finite at step {trainer.global_step} (loss {loss}, learning rate "
            f"{rates[-1]:.3g}, {self._images(trainer)}); this step was not taken. Lower lr, or use "
            "precision bf16-mixed or 32-true; go on from a checkpoint with --ckpt_path last"
        )

    def _images(self, trainer: pl.Trainer) -> str:
        if self._batch is None:
            return "images unknown"
        indices = self._batch.tolist()
        names = getattr(getattr(trainer.train_dataloader, "dataset", None), "keys", None)
        names = names if isinstance(names, Sequence) else []
        shown = [str(names[i]) if i < len(names) else str(i) for i in indices[:4]]
        rest = f" and {len(indices) - 4} more" if len(indices) > 4 else ""
        return f"images {', '.join(shown)}{rest}"
