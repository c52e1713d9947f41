"""How rate and weight decay go over a run: a warm-up, then a cosine or stairs."""

import math
from collections.abc import Callable

import lightning.pytorch as pl
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

__all__ = [
    "REFERENCE_BATCH",
    "decay_along_cosine",
    "effective_batch_size",
    "schedule_lengths",
    "warmup_cosine",
    "warmup_stairs",
]

REFERENCE_BATCH = 256  # the batch a learning rate is quoted for in the MAE and ConvNeXt papers


def warmup_cosine(
    warmup_steps: int,
    total_steps: int,
    *,
    min_lr_ratio: float = 0.0,
    warmup_lr_ratio: float | None = None,
    warmup_prefix: bool = True,
) -> Callable[[int], float]:
    """Return the factor on the learning rate at each optimiser step.

    Linear to 1 at the last step of the warm-up, then half a cosine to ``min_lr_ratio``
    (SGDR, arXiv:1608.03983, equation 5, one cycle). With ``warmup_lr_ratio`` the first step has
    that factor, and 1 is reached one step later, as in timm's schedulers. Without
    ``warmup_prefix`` the cosine is counted from the first step, as in these by default: after the
    warm-up the rate is below the peak.

    >>> factor = warmup_cosine(2, 6)
    >>> [round(factor(step), 2) for step in range(7)]
    [0.5, 1.0, 1.0, 0.85, 0.5, 0.15, 0.0]
    >>> factor = warmup_cosine(2, 6, warmup_lr_ratio=0.1)
    >>> [round(factor(step), 2) for step in range(4)]
    [0.1, 0.55, 1.0, 0.85]
    """

    # A plain function: LambdaLR writes a callable object's fields into the checkpoint, and a run
    # resumed for more epochs would then silently keep the old, shorter schedule.
    def factor(step: int) -> float:
        if step < warmup_steps:
            return _warmup(step, warmup_steps, warmup_lr_ratio)
        before = warmup_steps if warmup_prefix else 0
        return _half_cosine(1.0, min_lr_ratio, step - before, total_steps - before)

    return factor


def warmup_stairs(
    warmup_steps: int,
    epoch_steps: int,
    step_decay: tuple[float, float],
    *,
    min_lr_ratio: float = 0.0,
    warmup_lr_ratio: float | None = None,
) -> Callable[[int], float]:
    """Return the factor on the learning rate at each optimiser step.

    Linear to 1 over the warm-up, as in `warmup_cosine`; from then on as much lower as the epochs
    since the first step make it, and not below ``min_lr_ratio``.

    Args:
        warmup_steps: of the warm-up.
        epoch_steps: of an epoch.
        step_decay: every how many epochs, and the factor then; the rate changes between epochs.
        min_lr_ratio: the lowest stair.
        warmup_lr_ratio: first over peak learning rate.

    >>> factor = warmup_stairs(2, 10, (1.5, 0.1))
    >>> [round(factor(step), 3) for step in (0, 1, 2, 19, 20, 29, 30)]
    [0.5, 1.0, 1.0, 1.0, 0.1, 0.1, 0.01]
    """
    every, drop = step_decay

    def factor(step: int) -> float:
        if step < warmup_steps:
            return _warmup(step, warmup_steps, warmup_lr_ratio)
        return max(min_lr_ratio, float(drop ** ((step // epoch_steps) // every)))

    return factor


def _warmup(step: int, steps: int, first: float | None) -> float:
    return (step + 1) / steps if first is None else first + (1 - first) * step / steps


def decay_along_cosine(schedule: LambdaLR, total_steps: int, end: float) -> None:
    """Have the weight decay of groups that decay follow half a cosine to ``end`` over the run.

    Set before each step of the optimiser, as a number on the host, by the steps that the schedule
    has counted: a resumed run goes on with the value it would have had.

    Args:
        schedule: of the learning rate; its optimiser's groups are changed.
        total_steps: of the run.
        end: weight decay after the last step.
    """
    groups = schedule.optimizer.param_groups
    starts = {index: group["weight_decay"] for index, group in enumerate(groups)}
    decaying = {index: start for index, start in starts.items() if start}

    def set_decay(optimizer: Optimizer, args: object, kwargs: object) -> None:
        for index, start in decaying.items():
            value = _half_cosine(start, end, schedule.last_epoch, total_steps)
            optimizer.param_groups[index]["weight_decay"] = value

    schedule.optimizer.register_step_pre_hook(set_decay)


def _half_cosine(start: float, end: float, step: int, steps: int) -> float:
    progress = min(1.0, step / max(1, steps))
    return end + (start - end) * 0.5 * (1 + math.cos(math.pi * progress))


def effective_batch_size(trainer: pl.Trainer) -> int:
    """Return the number of images behind one optimiser step, over all devices.

    Raises:
        ValueError: if neither the datamodule nor the train loader has a batch size.
    """
    batch_size = getattr(getattr(trainer, "datamodule", None), "batch_size", None)
    if not batch_size:
        loader = trainer.train_dataloader
        sampler = getattr(loader, "batch_sampler", None)
        batch_size = getattr(loader, "batch_size", None) or getattr(sampler, "batch_size", None)
    if not batch_size:
        raise ValueError(
            f"the learning rate cannot be scaled: {type(trainer.train_dataloader).__name__} has no "
            "batch_size; give the datamodule a batch_size, or pass scale_lr=False"
        )
    return int(batch_size) * trainer.accumulate_grad_batches * trainer.world_size


def schedule_lengths(trainer: pl.Trainer, warmup_epochs: float | None) -> tuple[int, int, int]:
    """Return the optimiser steps of the warm-up, of the whole run and of an epoch.

    A warm-up of None epochs is a tenth of the run, and so is one that would fill it, so that a
    short trial still trains.

    Raises:
        ValueError: if the run has no end, or the train loader no length to count epochs by.
    """
    if trainer.train_dataloader is None:  # not made yet, and below nothing makes it under max_steps
        trainer.fit_loop.setup_data()
    total = trainer.estimated_stepping_batches
    if not 0 < total < math.inf:
        raise ValueError(
            f"the schedule needs an end, got max_epochs={trainer.max_epochs} and "
            f"max_steps={trainer.max_steps}; set max_steps, or max_epochs with a sized train loader"
        )
    total, batches = int(total), trainer.num_training_batches
    if batches == math.inf:
        if warmup_epochs:
            raise ValueError(
                f"warmup_epochs={warmup_epochs} cannot be counted: the train loader has no length; "
                "set limit_train_batches, or warmup_epochs=0"
            )
        return (0 if warmup_epochs == 0 else total // 10), total, total
    epoch = math.ceil(batches / trainer.accumulate_grad_batches)
    if warmup_epochs is None:
        return total // 10, total, epoch
    warmup = round(warmup_epochs * epoch)
    return (warmup if warmup < total else total // 10), total, epoch
