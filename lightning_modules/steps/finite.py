"""A run whose loss or gradient is no longer finite is stopped before the weights are spoilt."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

__all__ = ["NonFiniteError", "StepGuard"]


# A process sees its own shard alone, and would stop without the others. `FullyShardedStrategy` is
# none of these: there the norm of all shards is asked for.
SHARDED = ("FSDP", "DeepSpeed", "ModelParallel")
# Devices on which looking costs nothing.
WAITS_FOR_NOTHING = ("cpu",)
LOOK_EVERY = 50


class NonFiniteError(ValueError):
    """The loss or its gradient is infinite or not a number."""


@dataclass(frozen=True)
class Step:
    """What is told of a step that is not finite; tensors stay on their device until then.

    Attributes:
        number: how many were taken before it.
        rate: the learning rate.
        loss: a scalar, or None where nobody told it.
        index: the images' places in the dataset `(batch,)`, or None.
    """

    number: int
    rate: float
    loss: Tensor | None
    index: Tensor | None


class StepGuard:
    """Keeps a step whose gradient is not finite from the weights, and stops the run.

    The gradient is looked at, not the loss: processes average it, so that all of them see the bad
    step and stop at once, where a loss that is bad on one of them would leave the others waiting.

    On a CPU the run stops before the step. On an accelerator looking makes the CPU wait for it at
    every step; there a fused optimiser is told on the device to leave the step out, and the run
    stops when it next looks: every `LOOK_EVERY` steps, and at the end of an epoch. Where gradients
    are divided among processes (`FullyShardedStrategy`) it looks at every step on any device.
    """

    def __init__(self) -> None:
        self._loss: Tensor | None = None
        self._index: Tensor | None = None
        self._steps: list[Step] = []
        self._first: Tensor | None = None  # place in these of the first that is bad, -1 for none

    def watch(self, loss: Tensor, batch: Any) -> None:
        """Remember the loss of a training step, and the ``index`` of its images if it is known."""
        self._loss = loss.detach()
        self._index = batch.get("index") if isinstance(batch, dict) else None

    def check(self, module: pl.LightningModule, optimizer: torch.optim.Optimizer) -> None:
        """Hold the gradients of a step against infinity; to be called before the optimiser.

        Raises:
            NonFiniteError: with the step, the learning rate and the images.
        """
        trainer = module.trainer
        scaled = trainer.precision == "16-mixed"
        # Under float16 an infinite gradient is the scaler's daily bread: it skips the step.
        if scaled and self._loss is not None and self._loss.isfinite():
            return
        if is_sharded(trainer):
            return
        gradients = [p.grad for p in module.parameters() if p.grad is not None]
        if not gradients:
            return
        norm = torch.nn.utils.get_total_norm(gradients)
        # Then it is of all processes' parts, and the same on each of them.
        divided = isinstance(norm, DTensor)
        bad = ~(norm.full_tensor() if isinstance(norm, DTensor) else norm).isfinite()
        rate = max(group["lr"] for group in optimizer.param_groups)
        step = Step(trainer.global_step, float(rate), self._loss, self._index)
        if scaled or divided or bad.device.type in WAITS_FOR_NOTHING or not is_fused(optimizer):
            if bad:
                raise NonFiniteError(_describe(step, trainer, "this step was not taken"))
            return
        optimizer.found_inf = bad.float()  # type: ignore[attr-defined]
        first = bad.new_full((), -1, dtype=torch.long) if self._first is None else self._first
        self._first = first.where((first >= 0) | ~bad, len(self._steps))
        self._steps.append(step)
        if len(self._steps) >= LOOK_EVERY:
            self.look(trainer)

    def look(self, trainer: pl.Trainer) -> None:
        """Look whether any step since the last look was left out.

        Raises:
            NonFiniteError: as for `check`.
        """
        steps, first, self._steps, self._first = self._steps, self._first, [], None
        if first is not None and (place := int(first)) >= 0:
            late = f"it was left out, and the run stops at step {trainer.global_step}"
            raise NonFiniteError(_describe(steps[place], trainer, late))


def is_sharded(trainer: pl.Trainer) -> bool:
    """Whether a process has but a part of each parameter."""
    return any(kind in type(trainer.strategy).__name__ for kind in SHARDED)


def is_fused(optimizer: torch.optim.Optimizer) -> bool:
    """Whether it can leave out a step on the device."""
    return all(group.get("fused") for group in optimizer.param_groups)


def _describe(step: Step, trainer: pl.Trainer, then: str) -> str:
    loss = "unknown" if step.loss is None else f"{step.loss.item():.4g}"
    return (
        f"the gradient is not finite at step {step.number} (loss {loss}, learning rate "
        f"{step.rate:.3g}, {_images(step, trainer)}); {then}. Lower lr, or use precision "
        "bf16-mixed or 32-true; go on from a checkpoint with --ckpt_path last"
    )


def _images(step: Step, trainer: pl.Trainer) -> str:
    if step.index is None:
        return "images unknown"
    indices = step.index.tolist()
    names = getattr(getattr(trainer.train_dataloader, "dataset", None), "keys", None)
    names = names if isinstance(names, Sequence) else []
    shown = [str(names[i]) if i < len(names) else str(i) for i in indices[:4]]
    rest = f" and {len(indices) - 4} more" if len(indices) > 4 else ""
    return f"images {', '.join(shown)}{rest}"
