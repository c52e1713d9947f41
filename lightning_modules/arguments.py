"""Which values arguments may have; a name means the same in every LightningModule."""

from collections.abc import Callable, Mapping
from typing import Any

from litcam.lightning_modules.optim import check_optimizer

__all__ = ["check_arguments"]

Rule = tuple[str, Callable[[Any], bool]]

_RULES: dict[str, Rule] = {
    "num_classes": ("at least 2", lambda value: value >= 2),
    "image_size": ("at least 1", lambda value: value is None or value >= 1),
    "drop_rate": ("in [0, 1)", lambda value: 0 <= value < 1),
    "drop_path_rate": ("in [0, 1)", lambda value: 0 <= value < 1),
    "mask_ratio": ("in (0, 1)", lambda value: 0 < value < 1),
    "decoder": ("unet or transformer", lambda value: value in (None, "unet", "transformer")),
    "decoder_dim": (
        "a multiple of 32",
        lambda value: value is None or (value > 0 and value % 32 == 0),
    ),
    "decoder_depth": ("at least 0", lambda value: value is None or value >= 0),
    "loss": ("l2 or l1", lambda value: value in ("l2", "l1")),
    "linear_probe": (
        "true, false or batchnorm",
        lambda value: value in (False, True, "batchnorm"),
    ),
    "lr": ("positive", lambda value: value > 0),
    "weight_decay": ("at least 0", lambda value: value >= 0),
    "weight_decay_end": ("at least 0", lambda value: value is None or value >= 0),
    "layer_decay": ("in (0, 1]", lambda value: 0 < value <= 1),
    "norm_lr_scale": ("at least 0", lambda value: value >= 0),
    "head_lr_scale": ("above 0", lambda value: value > 0),
    "warmup_epochs": ("at least 0", lambda value: value is None or value >= 0),
    "step_decay": (
        "a number of epochs above 0 and a factor in (0, 1]",
        lambda value: value is None or (value[0] > 0 and 0 < value[1] <= 1),
    ),
    "bce_threshold": ("in [0, 1)", lambda value: value is None or 0 <= value < 1),
    "warmup_lr_ratio": ("in [0, 1]", lambda value: value is None or 0 <= value <= 1),
    "min_lr_ratio": ("in [0, 1]", lambda value: 0 <= value <= 1),
    "mixup": ("at least 0", lambda value: value >= 0),
    "cutmix": ("at least 0", lambda value: value >= 0),
    "label_smoothing": ("in [0, 1)", lambda value: 0 <= value < 1),
}


def check_arguments(owner: str, arguments: Mapping[str, Any]) -> None:
    """Hold arguments against the rules for their names.

    Args:
        owner: the class they are given to, for the message.
        arguments: name to value; a name without a rule may have any.

    Raises:
        ValueError: if one is out of range, or timm has no such optimiser.
    """
    for name, value in arguments.items():
        wanted, holds = _RULES.get(name, ("", lambda value: True))
        if not holds(value):
            raise ValueError(f"{owner}: {name} must be {wanted}, got {value!r}")
    if arguments.get("weight_decay_end") is not None and not arguments["weight_decay"]:
        raise ValueError(
            f"{owner}: weight_decay_end={arguments['weight_decay_end']!r} needs a weight_decay "
            "above 0 to start from"
        )
    check_optimizer(arguments["optimizer"], arguments["optimizer_args"])
    if arguments.get("decoder") == "unet" and (depth := arguments.get("decoder_depth")) is not None:
        raise ValueError(
            f"{owner}: decoder='unet' has a block for each doubling of the size, got "
            f"decoder_depth={depth}; leave it out"
        )
