"""How a network is optimised, said in one object, and made into optimiser and schedule."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.utilities import rank_zero_info
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from litcam.lightning_modules.optim.groups import parameter_groups
from litcam.lightning_modules.optim.optimizers import create_optimizer
from litcam.lightning_modules.optim.schedule import (
    REFERENCE_BATCH,
    decay_along_cosine,
    effective_batch_size,
    schedule_lengths,
    warmup_cosine,
    warmup_stairs,
)

__all__ = ["Recipe", "configure"]


@dataclass(frozen=True)
class Recipe:
    """What papers write in the table of their appendix.

    Attributes:
        lr: learning rate for an effective batch of 256 if ``scale_lr``, else as it is.
        optimizer: a name of ``timm.optim.list_optimizers()``.
        optimizer_args: its other arguments, such as ``betas``, ``eps`` or ``momentum``.
        scale_lr: multiply by effective batch / 256 (Goyal et al., arXiv:1706.02677).
        weight_decay: see `parameter_groups`, as for ``layer_decay`` and ``norm_lr_scale``.
        weight_decay_end: where a cosine over the whole run takes it, if not None.
        layer_decay: factor from each layer to the one below it.
        norm_lr_scale: factor on the learning rate of normalisation layers.
        head_lr_scale: factor on the learning rate of the classifier.
        warmup_epochs: length of the linear warm-up; None is a tenth of the run.
        warmup_lr_ratio: first over peak learning rate; by default one step's part of the warm-up.
        warmup_prefix: begin the cosine after the warm-up; timm's default is beneath it.
        min_lr_ratio: final over peak learning rate.
        step_decay: stairs instead of a cosine; see `warmup_stairs`.
    """

    lr: float
    optimizer: str = "adamw"
    optimizer_args: dict[str, Any] | None = None
    scale_lr: bool = True
    weight_decay: float = 0.05
    weight_decay_end: float | None = None
    layer_decay: float = 1.0
    norm_lr_scale: float = 1.0
    head_lr_scale: float = 1.0
    warmup_epochs: float | None = 5.0
    warmup_lr_ratio: float | None = None
    warmup_prefix: bool = True
    min_lr_ratio: float = 0.0
    step_decay: tuple[float, float] | None = None

    @classmethod
    def of(cls, arguments: Mapping[str, Any]) -> "Recipe":
        """Take what is of a recipe out of a module's hyperparameters."""
        names = [field.name for field in fields(cls) if field.name in arguments]
        return cls(**{name: arguments[name] for name in names})


def configure(model: nn.Module, trainer: pl.Trainer, recipe: Recipe) -> OptimizerLRScheduler:
    """Return what ``configure_optimizers`` returns: optimiser and schedule, stepped every step.

    Args:
        model: its trainable parameters are optimised.
        trainer: gives the batch size, accumulation, world size and length of the run.
        recipe: how.
    """
    warmup, total, epoch = schedule_lengths(trainer, recipe.warmup_epochs)
    rate, reason = recipe.lr, "not scaled"
    if recipe.scale_lr:
        batch = effective_batch_size(trainer)
        rate = recipe.lr * batch / REFERENCE_BATCH
        reason = f"{recipe.lr:g} × batch {batch} / {REFERENCE_BATCH}"
    _say(recipe, f"learning rate {rate:g} ({reason}); warm-up {warmup} of {total} steps")
    groups = parameter_groups(
        model,
        rate,
        weight_decay=recipe.weight_decay,
        layer_decay=recipe.layer_decay,
        norm_lr_scale=recipe.norm_lr_scale,
        head_lr_scale=recipe.head_lr_scale,
    )
    # A scaler's gradients are unscaled before they are clipped, and by a fused one only later.
    fused = not (trainer.gradient_clip_val and trainer.precision == "16-mixed")
    made = create_optimizer(groups, recipe.optimizer, recipe.optimizer_args, fused=fused)
    schedule = LambdaLR(made, _curve(recipe, warmup, total, epoch))
    if recipe.weight_decay_end is not None:
        decay_along_cosine(schedule, total, recipe.weight_decay_end)
    return {"optimizer": made, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def _curve(recipe: Recipe, warmup: int, total: int, epoch: int) -> Callable[[int], float]:
    ends: dict[str, Any] = {
        "min_lr_ratio": recipe.min_lr_ratio,
        "warmup_lr_ratio": recipe.warmup_lr_ratio,
    }
    if recipe.step_decay is not None:
        return warmup_stairs(warmup, epoch, recipe.step_decay, **ends)
    return warmup_cosine(warmup, total, warmup_prefix=recipe.warmup_prefix, **ends)


def _say(recipe: Recipe, rates: str) -> None:
    name = "" if recipe.optimizer == "adamw" else f"{recipe.optimizer}: "
    end = recipe.weight_decay_end
    decay = "" if end is None else f"; weight decay {recipe.weight_decay:g} to {end:g}"
    rank_zero_info(f"{name}{rates}{decay}")
