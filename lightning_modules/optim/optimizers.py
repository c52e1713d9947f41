"""Any optimiser that timm knows, by its name."""

import difflib
import inspect
from collections.abc import Mapping
from typing import Any

import torch
from timm.optim import create_optimizer_v2, get_optimizer_info, list_optimizers
from torch import nn

__all__ = ["check_optimizer", "create_optimizer"]

# What belongs to the parameter groups, or to the step that litcam's modules take.
_ELSEWHERE = {"params", "lr", "weight_decay", "fused", "foreach", "capturable", "differentiable"}


def create_optimizer(
    groups: list[dict[str, Any]],
    optimizer: str = "adamw",
    options: Mapping[str, Any] | None = None,
    *,
    fused: bool = True,
) -> torch.optim.Optimizer:
    """Make an optimiser of timm's over groups that have their own ``lr`` and ``weight_decay``.

    Args:
        groups: see `parameter_groups`.
        optimizer: a name of ``timm.optim.list_optimizers()``; ``sgd`` has Nesterov momentum 0.9.
        options: its other arguments, such as ``betas``, ``eps`` or ``momentum``.
        fused: have AdamW and Adam step in one kernel.

    Raises:
        ValueError: if timm has no such optimiser, it does not take an option, or it cannot be made.
    """
    given = dict(options or {})
    _check_names(optimizer, given)
    if optimizer in ("adamw", "adam"):
        given["fused"] = fused
    try:
        return create_optimizer_v2(groups, optimizer, lr=groups[0]["lr"], **given)
    except Exception as error:  # its own checks of values, or a package that is not installed
        shown = "".join(f", {name}={value!r}" for name, value in (options or {}).items())
        reason = str(error) or type(error).__name__
        raise ValueError(f"optimizer {optimizer}{shown} cannot be made: {reason}") from None


def check_optimizer(optimizer: str, options: Mapping[str, Any] | None) -> None:
    """Refuse what could not be made, before data are read.

    Raises:
        ValueError: as for `create_optimizer`; not for a package that only a GPU's machine has.
    """
    _check_names(optimizer, options or {})
    if not isinstance(get_optimizer_info(optimizer).opt_class, str):
        group = {"params": [nn.Parameter(torch.zeros(1))], "lr": 1e-3, "weight_decay": 0.0}
        create_optimizer([group], optimizer, options)


def _check_names(optimizer: str, options: Mapping[str, Any]) -> None:
    known = list_optimizers()
    if optimizer not in known:
        close = difflib.get_close_matches(str(optimizer), known, 5)
        hint = f"did you mean {', '.join(close)}?" if close else "timm.optim.list_optimizers()"
        raise ValueError(f"optimizer must be a name of timm's, got {optimizer!r}; {hint}")
    info = get_optimizer_info(optimizer)
    if info.second_order:
        raise ValueError(f"optimizer {optimizer} needs second derivatives; litcam takes first ones")
    if isinstance(info.opt_class, str):  # of a package that may not be there to ask
        return
    takes = sorted(set(inspect.signature(info.opt_class).parameters) - _ELSEWHERE)
    for name in options:
        if name not in takes:
            raise ValueError(
                f"optimizer_args: {optimizer} takes no {name!r}; it takes {', '.join(takes)}"
            )
