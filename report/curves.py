"""The curves of a run, out of the `metrics.csv` of Lightning's `CSVLogger`: for the report."""

import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from litcam.files import read_rows

STAGES = ("val", "train", "test")
MAX_POINTS = 400
FIRST = ("loss", "acc1", "acc5", "acc", "accuracy", "psnr", "explained_variance", "knn_acc1")

Points = list[tuple[int, int, float]]


def read_metrics(folder: Path) -> dict[str, Points]:
    """Every number in `metrics.csv`, by name: `(step, epoch, value)`, in order, finite ones."""
    found: dict[str, Points] = {}
    for row in read_rows(folder / "metrics.csv"):
        step, epoch = _number(row.get("step")), _number(row.get("epoch"))
        if step is None:
            continue
        for name, text in row.items():
            if name not in ("step", "epoch") and (value := _number(text)) is not None:
                found.setdefault(name, []).append((int(step), int(epoch or 0), value))
    return {name: sorted(points) for name, points in found.items()}


def draw_curves(metrics: dict[str, Points]) -> list[dict[str, Any]]:
    """Charts for the page: what is measured in several stages in one, what never changes in none.

    Args:
        metrics: from `read_metrics`.

    Returns:
        In order: losses, accuracies, the callback's metrics, the rest.
    """
    charts: dict[str, list[dict[str, Any]]] = {}
    for name, points in metrics.items():
        title, stage, dashed = _place(name)
        lines = charts.setdefault(title, [])
        known = STAGES.index(stage) if stage in STAGES else len(lines) % 5
        thin = _thin(points)
        xs, ys = [step for step, _, _ in thin], [value for _, _, value in thin]
        lines.append({"name": name, "x": xs, "y": ys, "colour": known, "dashed": dashed})
    shown = {
        title: lines
        for title, lines in charts.items()
        if any(len(set(line["y"])) > 1 or len(line["y"]) == 1 for line in lines)
    }
    return [
        {"title": title, "lines": sorted(shown[title], key=lambda line: line["dashed"])}
        for title in sorted(shown, key=_rank)
    ]


def find_facts(metrics: dict[str, Points]) -> list[tuple[str, str]]:
    """What one asks first: how far the run came, how good it is, where it looks."""
    if not metrics:
        return []
    last = max(points[-1][:2] for points in metrics.values())
    facts = [("epochs", str(last[1] + 1)), ("steps", str(last[0] + 1))]
    for name, best in (("val/acc1", max), ("val/psnr", max), ("val/loss", min)):
        if name in metrics:
            _, epoch, value = best(metrics[name], key=lambda point: point[2])
            facts.append((f"best {name}, epoch {epoch}", f"{value:.4g}"))
            break
    for name in ("val/gradcam/pointing_game", "val/gradcam/energy_inside"):
        if name in metrics:
            chance = metrics.get(f"{name}_chance")
            beside = f" (chance {chance[-1][2]:.2f})" if chance else ""
            facts.append((name.split("/", 1)[1], f"{metrics[name][-1][2]:.2f}{beside}"))
    return facts


def _place(name: str) -> tuple[str, str, bool]:
    """Title of a metric's chart, its stage, and whether it is only there to compare with.

    >>> _place("val/gradcam/energy_inside_chance"), _place("train_loss_step")
    (('gradcam/energy_inside', 'val', True), ('loss', 'train', False))
    """
    found = re.match(r"(train|val|valid|validation|test)[/_](.+)", name)
    stage, rest = (found[1], found[2]) if found else ("", name)
    rest, dashed = re.sub("_(chance|centre)$", "", rest), rest.endswith(("_chance", "_centre"))
    rest = re.sub(r"(_step|_epoch)?(/dataloader_idx_\d+)?$", "", rest)
    if not found and rest.startswith("lr"):
        rest = "learning rate"
    return rest, stage[:3] if stage.startswith("val") else stage, dashed


def _rank(title: str) -> tuple[int, str]:
    if title in FIRST:
        return FIRST.index(title), ""
    ranks = {"gradcam": len(FIRST), "images": len(FIRST) + 2, "learning rate": len(FIRST) + 3}
    return ranks.get(re.split("[/_]", title)[0], ranks.get(title, len(FIRST) + 1)), title


def _thin(points: Sequence[tuple[int, int, float]]) -> Sequence[tuple[int, int, float]]:
    """At most `MAX_POINTS` of them, the last included."""
    every = math.ceil(len(points) / MAX_POINTS)
    return [*points[:-1:every], points[-1]]


def _number(text: str | None) -> float | None:
    try:
        number = float(text or "")
    except ValueError:
        return None
    return number if math.isfinite(number) else None
