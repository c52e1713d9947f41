"""The metrics by their names, for an option."""

from collections.abc import Callable
from dataclasses import dataclass
from difflib import get_close_matches
from functools import partial
from typing import Literal

from litcam.explain.metrics.drift import Drift
from litcam.explain.metrics.faithfulness import AverageDropIncrease, DeletionInsertion
from litcam.explain.metrics.image_mean import ImageMean
from litcam.explain.metrics.maps import BlankMaps, EnergyInside, PointingGame, Sparseness
from litcam.explain.metrics.road import ROAD


@dataclass(frozen=True)
class MetricEntry:
    """How to make a metric, and what it needs.

    Attributes:
        make: names with the same `make` share one metric.
        needs: what `update` takes besides maps: a `region`; the maps before, told by the images'
            `index`; or the `network`.
        better: which way is better, if either.
        forwards_per_image: what it costs besides the forward that made the map.
        value: its key in the dict from `compute`; empty where that is a scalar.
    """

    make: Callable[[], ImageMean]
    needs: Literal["", "region", "index", "network"] = ""
    better: Literal["", "higher", "lower"] = ""
    forwards_per_image: int = 0
    value: str = ""


_DELETION, _INSERTION = (
    partial(DeletionInsertion, curves=(curve,)) for curve in ("deletion", "insertion")
)

METRICS: dict[str, MetricEntry] = {
    "pointing_game": MetricEntry(PointingGame, "region", "higher"),
    "energy_inside": MetricEntry(EnergyInside, "region", "higher"),
    "sparseness": MetricEntry(Sparseness),
    "blank_maps": MetricEntry(BlankMaps, "", "lower"),
    "drift": MetricEntry(Drift, "index"),
    "average_drop": MetricEntry(AverageDropIncrease, "network", "lower", 1, "average_drop"),
    "increase": MetricEntry(AverageDropIncrease, "network", "higher", 1, "increase"),
    "deletion": MetricEntry(_DELETION, "network", "lower", 20, "deletion"),
    "insertion": MetricEntry(_INSERTION, "network", "higher", 20, "insertion"),
    "road": MetricEntry(ROAD, "network", "higher", 18, "road"),
    "road_morf": MetricEntry(ROAD, "network", "lower", 18, "road_morf"),
    "road_lerf": MetricEntry(ROAD, "network", "higher", 18, "road_lerf"),
}


def find_metric(name: str) -> MetricEntry:
    """The metric called `name`.

    Raises:
        ValueError: there is none; the message offers close matches.
    """
    if name in METRICS:
        return METRICS[name]
    near = get_close_matches(name, METRICS, n=3) or sorted(METRICS)
    raise ValueError(f"metric {name!r} is unknown; did you mean {', '.join(near)}?")
