"""`report.html`: what a run measured and where it looked, on one page that needs no server."""

import html
import json
import re
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from litcam.files import write_whole
from litcam.report.curves import draw_curves, find_facts, read_metrics
from litcam.report.packing import pack_colours
from litcam.report.pictures import (
    read_figures,
    read_heatmaps,
    read_lines,
    read_reconstructions,
)

SCRIPTS = ("drawing.js", "heatmaps.js", "curves.js", "report.js")


def write_report(folder: Path, file: Path | None = None, *, explained: Sequence[Path] = ()) -> Path:
    """Writes the report of a run: curves, heatmaps and reconstructions by epoch, configuration.

    The page holds everything it shows and asks nothing of any network. The heatmaps are in it at
    the layer's grid and drawn by the browser, so that hundreds of them weigh next to nothing.

    Args:
        folder: of the run, as litcam or Lightning left it: `metrics.csv`, `gradcam/`,
            `reconstructions/`, `config.yaml`, `versions.yaml`; each may be missing.
        file: what to write; by default `report.html` in the folder.
        explained: folders that `litcam explain` wrote; those in `folder` are found.

    Returns:
        The file.

    Raises:
        ValueError: the folder holds nothing of a run.
        OSError: it cannot be written to.
    """
    metrics = read_metrics(folder)
    inside = sorted(path.parent for path in folder.glob("*/explain.json"))
    run: dict[str, Any] = {
        "facts": find_facts(metrics),
        "alarms": [alarm for at in folder.glob("*/alarms.jsonl") for alarm in read_lines(at)],
        "curves": draw_curves(metrics),
        "heatmaps": read_heatmaps(folder),
        "reconstructions": read_reconstructions(folder),
        "figures": read_figures([*inside, *explained]),
    }
    if not any(run[name] for name in ("curves", "heatmaps", "reconstructions", "figures")):
        raise ValueError(
            f"folder {folder} holds no metrics.csv, gradcam/ or reconstructions/: give the folder "
            "of a run, such as runs/demo/version_0"
        )
    page = _fill(
        title=f"{folder.absolute().parent.name} / {folder.absolute().name}",
        config=_read(folder / "config.yaml"),
        versions=_read(folder / "versions.yaml"),
        run={**run, "colours": pack_colours()},
    )
    file = file or folder / "report.html"
    write_whole(file, page)
    return file


def _fill(*, title: str, config: str, versions: str, run: dict[str, Any]) -> str:
    """The page; everything that comes from data is escaped."""
    place = files("litcam.report") / "page"
    # Inside a script nothing may look like its end, and no comment may begin.
    data = json.dumps(run, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")
    scripts = "\n".join((place / name).read_text(encoding="utf-8") for name in SCRIPTS)
    parts = {
        "title": html.escape(title),
        "style": (place / "report.css").read_text(encoding="utf-8"),
        "config": html.escape(config),
        "versions": html.escape(versions),
        "run": data,
        "script": scripts,
    }
    page = (place / "report.html").read_text(encoding="utf-8")
    # In one pass: what is filled in may itself hold {names}.
    return re.sub(r"\{(\w+)\}", lambda found: parts[found[1]], page)


def _read(file: Path) -> str:
    if not file.is_file():
        return "(not in the run's folder)"
    return file.read_text(encoding="utf-8", errors="replace")
