"""An arm of a sweep: one run, its folder, and what is known of it."""

import hashlib
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

from litcam.files import read_rows, write_whole

__all__ = ["Arm", "make_arms"]

FILE = "arm.json"
LOG = "log.txt"
MAX_NAME = 100  # of a folder; file systems end at 255 bytes


@dataclass(frozen=True)
class Arm:
    """One run of a sweep.

    Args:
        name: the varied values in short, the name of its folder.
        values: every parameter's.
        words: of `litcam fit`.
        folder: of the run.
    """

    name: str
    values: Mapping[str, Any]
    words: Sequence[str]
    folder: Path

    def read(self) -> dict[str, Any]:
        """What is known of it: `state`, `seconds`, `reason`; `planned` before it began."""
        try:
            known = json.loads((self.folder / FILE).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            known = {}
        if not isinstance(known, dict) or known.get("words") != list(self.words):
            known = {}
        return {"state": "planned", "seconds": 0.0, "reason": "", **known}

    def write(self, state: str, seconds: float, reason: str = "") -> None:
        """Keeps what is known of it."""
        self.folder.mkdir(parents=True, exist_ok=True)
        told = {"state": state, "seconds": round(seconds, 1), "reason": reason}
        told |= {"values": dict(self.values), "words": list(self.words)}
        write_whole(self.folder / FILE, json.dumps(told, indent=1))

    def history(self, metric: str) -> list[float]:
        """The metric's values in the order in which they were measured, without NaN."""
        values = (_number(row.get(metric)) for row in read_rows(self.folder / "metrics.csv"))
        return [value for value in values if value is not None]

    def after_epochs(self, metric: str) -> dict[int, float]:
        """The metric's last value of each epoch that has one, counted from 0."""
        rows = read_rows(self.folder / "metrics.csv")
        pairs = ((_number(row.get("epoch")), _number(row.get(metric))) for row in rows)
        return {int(e): value for e, value in pairs if e is not None and value is not None}

    def metrics(self) -> list[str]:
        """The names of what it measured."""
        names = (name for row in read_rows(self.folder / "metrics.csv") for name in row)
        return [name for name in dict.fromkeys(names) if name not in ("epoch", "step")]


def make_arms(
    plan: Sequence[Mapping[str, Any]],
    varied: Sequence[str],
    folder: Path,
    *,
    before: Sequence[str] = (),
    after: Sequence[str] = (),
) -> list[Arm]:
    """The arms of a plan.

    Args:
        plan: the values of each.
        varied: the parameters that tell them apart.
        folder: of the sweep.
        before: words of `litcam fit` before those of the arm.
        after: those after them, which win.
    """
    arms: list[Arm] = []
    for values in plan:
        own = [f"--{name}={as_word(value)}" for name, value in values.items()]
        name = name_of({key: values[key] for key in varied}, [arm.name for arm in arms])
        arms.append(Arm(name, values, [*before, *own, *after], folder / name))
    return arms


def name_of(values: Mapping[str, Any], taken: Sequence[str] = ()) -> str:
    """The name of an arm's folder.

    >>> name_of({"model.mask_ratio": 0.6, "seed_everything": 1})
    'mask_ratio=0.6,seed=1'
    """
    short = {key: short_name(key) for key in values}
    parts = [f"{short[key]}={label(value)}" for key, value in values.items()]
    name = re.sub(r"[^\w.=,+-]", "_", ",".join(parts)) or "only"
    if len(name) > MAX_NAME or name in taken:
        code = hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:8]
        name = f"{name[: MAX_NAME - 9]}-{code}"
    return name


def short_name(key: str) -> str:
    """A parameter's name without the group it is in."""
    return key.removesuffix("_everything").rpartition(".")[2]


def as_word(value: Any) -> str:
    """A value as a word of the command line."""
    return value if isinstance(value, str) else json.dumps(value)


def label(value: Any) -> str:
    """A value as it is shown: a checkpoint by its run's name, a config by its own.

    >>> label("runs/sweeps/mask_ratio/mask_ratio=0.6,seed={seed}/checkpoints/encoder.safetensors")
    'mask_ratio=0.6'
    >>> label("runs/pretrain_mae_vit/version_3/checkpoints/last.ckpt")
    'pretrain_mae_vit/version_3'
    >>> label("paper/seven/resnet34.yaml")
    'resnet34'
    """
    word = as_word(value)
    if word.endswith(".yaml"):  # a folder named so would be taken for a config by the run in it
        return PurePath(word).stem
    if (folder := PurePath(word).parent).name != "checkpoints":
        return word or "none"
    run = folder.parent
    name = f"{run.parent.name}/{run.name}" if run.name.startswith("version_") else run.name
    return name.replace(",seed={seed}", "")


def _number(text: Any) -> float | None:
    try:
        value = float(text)
    except (TypeError, ValueError):
        return None
    return value if math.isfinite(value) else None
