"""Parameter groups, real layer-wise decay, and a warm-up with cosine decay.

* groups are timm's (no decay on norms, biases and what the model names in ``no_weight_decay``)
* timm only *stores* the layer-wise scale for its own schedulers; here it is multiplied into ``lr``
* the schedule is a torch ``LambdaLR``, so ``LearningRateMonitor`` and resuming need nothing else
"""

import math
from collections.abc import Callable
from typing import Any, Literal

import lightning.pytorch as pl
import torch
from lightning.pytorch.utilities import rank_zero_info
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from timm.optim import param_groups_layer_decay, param_groups_weight_decay
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

__all__ = [
    "REFERENCE_BATCH",
    "OptimizerName",
    "configure",
    "create_optimizer",
    "effective_batch_size",
    "parameter_groups",
    "schedule_lengths",
    "warmup_cosine",
]

OptimizerName = Literal["adamw", "sgd"]
REFERENCE_BATCH = 256  # the batch a learning rate is quoted for in the MAE and ConvNeXt papers


def norm_parameters(model: nn.Module) -> set[nn.Parameter]:
    """Return the scales and shifts of every normalisation layer, timm's own layers included."""
    # By class name: timm has a dozen norms that share no base class (RmsNorm, GRN, EvoNorm, …).
    norms = (module for module in model.modules() if "norm" in type(module).__name__.lower())
    return {p for norm in norms for p in norm.parameters(recurse=False) if p.ndim <= 1}


def parameter_groups(
    model: nn.Module,
    lr: float,
    *,
    weight_decay: float = 0.05,
    layer_decay: float = 1.0,
    norm_lr_scale: float = 1.0,
) -> list[dict[str, Any]]:
    """Sort the trainable parameters into named groups that share learning rate and weight decay.

    Args:
        model: a timm model; frozen parameters are left out.
        lr: learning rate of the last layer.
        weight_decay: for matrices and kernels; vectors, biases and ``no_weight_decay()`` get none.
        layer_decay: factor from each layer to the one below it (BEiT, arXiv:2106.08254).
        norm_lr_scale: factor on the learning rate of normalisation layers.

    Returns:
        Groups with ``name``, ``params``, ``lr`` and ``weight_decay``, first layer first: two of
        them (``decay``, ``no_decay``), a ``norm`` group where it has its own rate, and this once
        a layer (``layer03_decay``, …) where rates differ by layer.
    """
    norms = norm_parameters(model) if norm_lr_scale != 1 else set()
    split: dict[tuple[float, str], dict[str, Any]] = {}
    for group in _timm_groups(model, weight_decay, layer_decay):
        for parameter in group["params"]:
            decay_kind = "decay" if group["weight_decay"] else "no_decay"
            kind = "norm" if parameter in norms else decay_kind
            scale = group.get("lr_scale", 1.0)
            rate = lr * scale * (norm_lr_scale if kind == "norm" else 1.0)
            shared = {"params": [], "lr": rate, "weight_decay": group["weight_decay"]}
            split.setdefault((scale, kind), shared)["params"].append(parameter)
    layers = {scale: index for index, scale in enumerate(sorted({scale for scale, _ in split}))}
    return [
        {"name": f"layer{layers[scale]:02d}_{kind}" if len(layers) > 1 else kind, **split[key]}
        for key in sorted(split)
        for scale, kind in [key]
    ]


def _timm_groups(model: nn.Module, weight_decay: float, layer_decay: float) -> list[dict[str, Any]]:
    named = getattr(model, "no_weight_decay", None)
    exempt = named() if callable(named) else ()
    if layer_decay == 1:
        groups = param_groups_weight_decay(model, weight_decay, no_weight_decay_list=exempt)
    else:
        groups = param_groups_layer_decay(
            model, weight_decay, no_weight_decay_list=exempt, layer_decay=layer_decay
        )
    return list(groups)


def create_optimizer(
    groups: list[dict[str, Any]],
    optimizer: OptimizerName = "adamw",
    *,
    betas: tuple[float, float] = (0.9, 0.999),
    momentum: float = 0.9,
    fused: bool = True,
) -> torch.optim.Optimizer:
    """Make AdamW (fused) or SGD with Nesterov momentum over the groups."""
    if optimizer == "adamw":
        return torch.optim.AdamW(groups, betas=betas, fused=fused)
    return torch.optim.SGD(groups, momentum=momentum, nesterov=momentum > 0)


def warmup_cosine(
    warmup_steps: int, total_steps: int, *, min_lr_ratio: float = 0.0
) -> Callable[[int], float]:
    """Return the factor on the learning rate at each optimiser step.

    Linear to 1 at the last step of the warm-up, then half a cosine to ``min_lr_ratio``
    (SGDR, arXiv:1608.03983, equation 5, one cycle).

    >>> factor = warmup_cosine(2, 6)
    >>> [round(factor(step), 2) for step in range(7)]
    [0.5, 1.0, 1.0, 0.85, 0.5, 0.15, 0.0]
    """

    # A plain function: LambdaLR writes a callable object's fields into the checkpoint, and a run
    # resumed for more epochs would then silently keep the old, shorter schedule.
    def factor(step: int) -> float:
        if step < warmup_steps:
            return (step + 1) / warmup_steps
        progress = min(1.0, (step - warmup_steps) / max(1, total_steps - warmup_steps))
        return min_lr_ratio + (1 - min_lr_ratio) * 0.5 * (1 + math.cos(math.pi * progress))

    return factor


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


def schedule_lengths(trainer: pl.Trainer, warmup_epochs: float) -> tuple[int, int]:
    """Return the optimiser steps of the warm-up and of the whole run.

    A warm-up that would fill the run is cut to a tenth of it, so that a short trial still trains.

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
    batches = trainer.num_training_batches
    if warmup_epochs and batches == math.inf:
        raise ValueError(
            f"warmup_epochs={warmup_epochs} cannot be counted: the train loader has no length; "
            "set limit_train_batches, or warmup_epochs=0"
        )
    if not warmup_epochs:
        return 0, int(total)
    warmup = round(warmup_epochs * math.ceil(batches / trainer.accumulate_grad_batches))
    return (warmup if warmup < total else int(total) // 10), int(total)


def configure(
    model: nn.Module,
    trainer: pl.Trainer,
    *,
    lr: float,
    optimizer: OptimizerName = "adamw",
    scale_lr: bool = True,
    weight_decay: float = 0.05,
    layer_decay: float = 1.0,
    norm_lr_scale: float = 1.0,
    warmup_epochs: float = 5.0,
    min_lr_ratio: float = 0.0,
    betas: tuple[float, float] = (0.9, 0.999),
    momentum: float = 0.9,
) -> OptimizerLRScheduler:
    """Return what ``configure_optimizers`` returns: optimiser and schedule, stepped every step.

    Args:
        model: its trainable parameters are optimised.
        trainer: gives the batch size, accumulation, world size and length of the run.
        lr: for an effective batch of 256 if ``scale_lr``, else as it is.
        optimizer: ``adamw`` or ``sgd``.
        scale_lr: multiply by effective batch / 256 (Goyal et al., arXiv:1706.02677).
        weight_decay: see `parameter_groups`, as for ``layer_decay`` and ``norm_lr_scale``.
        layer_decay: factor from each layer to the one below it.
        norm_lr_scale: factor on the learning rate of normalisation layers.
        warmup_epochs: length of the linear warm-up.
        min_lr_ratio: final over peak learning rate.
        betas: of AdamW.
        momentum: of SGD.
    """
    warmup, total = schedule_lengths(trainer, warmup_epochs)
    rate, reason = lr, "not scaled"
    if scale_lr:
        batch = effective_batch_size(trainer)
        rate, reason = lr * batch / REFERENCE_BATCH, f"{lr:g} × batch {batch} / {REFERENCE_BATCH}"
    rank_zero_info(f"learning rate {rate:g} ({reason}); warm-up {warmup} of {total} steps")
    groups = parameter_groups(
        model,
        rate,
        weight_decay=weight_decay,
        layer_decay=layer_decay,
        norm_lr_scale=norm_lr_scale,
    )
    # A scaler's gradients are unscaled before they are clipped, and by a fused one only later.
    fused = not (trainer.gradient_clip_val and trainer.precision == "16-mixed")
    made = create_optimizer(groups, optimizer, betas=betas, momentum=momentum, fused=fused)
    schedule = LambdaLR(made, warmup_cosine(warmup, total, min_lr_ratio=min_lr_ratio))
    return {"optimizer": made, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}
