"""A sweep at a glance: means with their intervals, and every seed as a dot."""

from collections.abc import Sequence
from io import BytesIO
from typing import Any

from litcam.sweeps.arms import short_name
from litcam.sweeps.results import Results, Setting, interval

__all__ = ["draw"]

COLOURS = ("#1f6fd1", "#d9661f", "#1b8f5a", "#8a4fc4", "#b0436f", "#5d646e")
MOST_ROWS = 40


def draw(results: Results) -> bytes:
    """A PNG: a curve over one numeric parameter, or a row for each setting."""
    # Imported here: it takes half a second.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    settings = results.settings()
    axis = _find_axis(results.varied, settings)
    figure = Figure(figsize=(7, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    if axis is None:
        shown = sorted(settings, key=lambda each: each.mean, reverse=results.sweep.maximize)
        shown = shown[:MOST_ROWS]
        figure.set_size_inches(7, 1.2 + 0.32 * len(shown))
        _draw_rows(axes, shown)
        axes.set_xlabel(results.metric)
        axes.grid(axis="x", alpha=0.3)
    else:
        _draw_curves(axes, settings, axis)
        axes.set_xlabel(short_name(axis))
        axes.set_ylabel(results.metric)
        axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    seeds = max((len(each.measured) for each in settings), default=0)
    many = seeds > 1
    about = f"mean and 95 % interval of {seeds} seeds; dots are runs" if many else "one run each"
    axes.set_title(about, fontsize=9, color="#5d646e", loc="left")
    file = BytesIO()
    figure.savefig(file, format="png", dpi=140, metadata={"Software": None})
    return file.getvalue()


def _find_axis(varied: Sequence[str], settings: Sequence[Setting]) -> str | None:
    """The parameter to draw along: the numeric one of the most values, of at least three."""

    def values(name: str) -> set[Any]:
        return {repr(each.values[name]) for each in settings}

    numeric = [
        name
        for name in varied
        if all(isinstance(each.values[name], int | float) for each in settings)
        and len(values(name)) >= 3
    ]
    others = max((len(values(name)) for name in varied if name not in numeric[:1]), default=1)
    return max(numeric, key=lambda name: len(values(name))) if numeric and others <= 6 else None


def _draw_rows(axes: Any, settings: Sequence[Setting]) -> None:
    for row, each in enumerate(reversed(settings)):
        axes.plot(each.measured, [row] * len(each.measured), "o", ms=4, alpha=0.35, c=COLOURS[0])
        axes.errorbar(each.mean, row, xerr=interval(each.measured), fmt="D", ms=5, c=COLOURS[0])
    axes.set_yticks(range(len(settings)), [each.name for each in reversed(settings)], fontsize=8)


def _draw_curves(axes: Any, settings: Sequence[Setting], axis: str) -> None:
    curves: dict[str, list[Setting]] = {}
    for each in settings:
        rest = {key: value for key, value in each.values.items() if key != axis}
        curves.setdefault(Setting(rest, []).name if rest else "", []).append(each)
    for number, (name, points) in enumerate(curves.items()):
        points.sort(key=lambda each: float(each.values[axis]))
        colour = COLOURS[number % len(COLOURS)]
        across = [each.values[axis] for each in points]
        for x, each in zip(across, points, strict=True):
            axes.plot([x] * len(each.measured), each.measured, "o", ms=4, alpha=0.35, c=colour)
        means, halves = [p.mean for p in points], [interval(p.measured) or 0.0 for p in points]
        axes.errorbar(across, means, yerr=halves, fmt="-D", ms=5, capsize=3, c=colour, label=name)
    across = [each.values[axis] for each in settings]
    if min(across) > 0 and max(across) / min(across) >= 50:
        axes.set_xscale("log")
    if len(curves) > 1:
        axes.legend(fontsize=8, frameon=False)
