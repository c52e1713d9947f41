"""Which mean and standard deviation weights were trained with, where their file tells."""

import json
from collections.abc import Mapping
from inspect import signature
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_warn

from litcam.lightning_modules.weights.saving import read_facts

__all__ = ["read_normalisation", "warn_of_normalisation"]

Normalisation = tuple[list[float], list[float]]


def warn_of_normalisation(source: str, datamodule: Any) -> None:
    """Warn if images are normalised in another way than those that weights were trained on.

    Args:
        source: as for `read_normalisation`.
        datamodule: with ``mean`` and ``std``, a value a channel of pixels in [0, 1].
    """
    stored = read_normalisation(source)
    mean, std = (getattr(datamodule, name, None) for name in ("mean", "std"))
    if stored is None or mean is None or std is None:
        return
    if any(abs(a - b) > 1e-3 for a, b in zip([*stored[0], *stored[1]], [*mean, *std], strict=True)):
        told = f"; pass --data.mean '{_round(stored[0])}' --data.std '{_round(stored[1])}'"
        takes = "mean" in signature(type(datamodule)).parameters
        rank_zero_warn(
            f"{source} was trained on images of mean {_round(stored[0])} and std "
            f"{_round(stored[1])}, and these have {_round(mean)} and {_round(std)}"
            f"{told if takes else ''}"
        )


def read_normalisation(source: str | Path) -> Normalisation | None:
    """Read which mean and std weights were trained with; None where that is not told.

    Args:
        source: an ``encoder.safetensors`` of `MAE`, which tells in its metadata, a checkpoint of
            litcam's, or a folder of timm's or a file in it, whose ``config.json`` tells.
    """
    path = Path(source).expanduser()
    folder = path if path.is_dir() else path.parent
    file = path / "encoder.safetensors" if path.is_dir() else path
    facts = read_facts(file) if file.suffix == ".safetensors" and file.is_file() else {}
    told: Mapping[str, Any]
    for told in (facts, _of_checkpoint(path), _timms_config(folder / "config.json")):
        mean: Any = told.get("mean")
        std: Any = told.get("std")
        if _holds_channels(mean) and _holds_channels(std) and min(std) > 0:
            return mean, std
    return None


def _holds_channels(values: Any) -> bool:
    numbers = isinstance(values, list) and all(isinstance(each, int | float) for each in values)
    return numbers and len(values) == 3 and all(0 <= each <= 1 for each in values)


def _of_checkpoint(file: Path) -> Mapping[str, Any]:
    if file.suffix != ".ckpt":
        return {}
    try:
        stored = torch.load(file, map_location="meta", mmap=True, weights_only=True)
    except Exception:  # `load_weights` has taken it, or says what is wrong with it
        return {}
    told = stored.get("data_config") if isinstance(stored, dict) else None
    return told if isinstance(told, Mapping) else {}


def _timms_config(file: Path) -> Mapping[str, Any]:
    try:
        told = json.loads(file.read_text())["pretrained_cfg"]
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return {}
    return told if isinstance(told, Mapping) else {}


def _round(values: Any) -> list[float]:
    return [round(float(value), 4) for value in values]
