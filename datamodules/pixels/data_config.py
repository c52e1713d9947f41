"""What a timm network expects of its images."""

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import timm
import torch
from timm.data import resolve_data_config
from timm.models import parse_model_name

__all__ = ["DataConfig", "data_config", "data_config_of", "fixed_image_size"]


@dataclass(frozen=True)
class DataConfig:
    """What a network expects of its images, in the words of timm's data config.

    Attributes:
        mean: One value a channel, of pixels in [0, 1].
        std: One value a channel, of pixels in [0, 1].
        crop_pct: The share of the resized image's short side that the centre crop keeps.
        interpolation: ``bicubic`` or ``bilinear``.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    crop_pct: float
    interpolation: str


def data_config(
    backbone: str,
    *,
    crop_pct: float | None = None,
    interpolation: str = "",
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> DataConfig:
    """Looks up the data config of a timm model without building the model.

    >>> data_config("vit_base_patch16_224").mean
    (0.5, 0.5, 0.5)

    Args:
        backbone: timm's name, with or without a tag; "" means timm's ImageNet defaults.
        crop_pct: To use instead of the model's.
        interpolation: The same; "" is the model's.
        mean: The same, one value a channel, of pixels in [0, 1].
        std: The same.

    Raises:
        ValueError: If timm knows no such model, or a value makes no sense.
    """
    if crop_pct is not None and not 0 < crop_pct <= 1:
        raise ValueError(f"crop_pct must be in (0, 1], got {crop_pct}")
    if interpolation not in ("", "bicubic", "bilinear"):
        raise ValueError(f"interpolation must be bicubic or bilinear, got {interpolation!r}")
    for name, values, allowed in (("mean", mean, "[0, 1]"), ("std", std, "(0, 1]")):
        if values is not None and not _holds_channels(values, above_zero=name == "std"):
            raise ValueError(f"{name} must be three numbers in {allowed}, got {list(values)}")
    own = data_config_of(_pretrained_config(backbone) if backbone else {})
    return DataConfig(
        mean=tuple(mean or own.mean),
        std=tuple(std or own.std),
        crop_pct=crop_pct or own.crop_pct,
        interpolation=interpolation or own.interpolation,
    )


def data_config_of(pretrained: Mapping[str, object]) -> DataConfig:
    """Reads what a network expects out of its ``pretrained_cfg``, by default ImageNet's."""
    resolved = resolve_data_config({"in_chans": 3}, pretrained_cfg=dict(pretrained))
    return DataConfig(
        mean=tuple(resolved["mean"]),
        std=tuple(resolved["std"]),
        crop_pct=resolved["crop_pct"],
        interpolation=resolved["interpolation"],
    )


def fixed_image_size(backbone: str) -> int | None:
    """Side in pixels of the only images a timm model takes unless it is made for others.

    >>> fixed_image_size("vit_base_patch16_224"), fixed_image_size("resnet34")
    (224, None)

    Args:
        backbone: As for `data_config`.

    Raises:
        ValueError: If timm knows no such model.
    """
    config = _pretrained_config(backbone)
    size = config.get("input_size")
    return size[-1] if config.get("fixed_input_size") and isinstance(size, tuple | list) else None


def _holds_channels(values: Sequence[float], *, above_zero: bool) -> bool:
    return len(values) == 3 and all((not above_zero or each) and 0 <= each <= 1 for each in values)


def _pretrained_config(backbone: str) -> dict[str, object]:
    if ":" in backbone:
        return _config_elsewhere(backbone)
    try:
        config = timm.get_pretrained_cfg(backbone) if timm.is_model(backbone) else None
    except RuntimeError:  # a known model with an unknown tag
        config = None
    if config is not None:
        return dict(config.to_dict())
    known = timm.list_models() + timm.list_pretrained()
    close = difflib.get_close_matches(backbone, known, n=3)
    hint = f"did you mean {', '.join(close)}?" if close else "timm.list_models() has them all"
    raise ValueError(f"backbone must be the name of a timm model, got {backbone!r}; {hint}")


def _config_elsewhere(backbone: str) -> dict[str, object]:
    """What the ``config.json`` of ``hf-hub:NAME`` or ``local-dir:FOLDER`` tells."""
    try:
        parse_model_name(backbone)
        with torch.device("meta"):
            return dict(timm.create_model(backbone).pretrained_cfg)
    except Exception as error:  # of the network, of files, of whatever stands in them
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise ValueError(f"backbone {backbone!r} cannot be read: {reason}") from None
