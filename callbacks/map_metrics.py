"""Numbers for the maps of a whole validation, beside the pictures of a few of them."""

import warnings
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from litcam.explain import CAM
from litcam.explain.drift import Drift
from litcam.explain.metrics import EnergyInside, ImageMean, PointingGame, find_metric

__all__ = ["MapMetrics"]


class MapMetrics:
    """Measures the map of every image, for its true class or else its predicted one.

    Args:
        names: In `litcam.explain.METRICS`, those that need no forward of their own.

    Raises:
        ValueError: A name does not exist, or its metric needs more forwards.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self._metrics: dict[str, ImageMean] = {}
        for name in dict.fromkeys(names):
            entry = find_metric(name)
            if entry.forwards_per_image:
                raise ValueError(
                    f"metric {name!r} needs {entry.forwards_per_image} forwards more for each "
                    "image and is not measured at every epoch; use litcam.explain.faithfulness"
                )
            self._metrics[name] = entry.make()

    def __bool__(self) -> bool:
        return bool(self._metrics)

    def update(self, cam: CAM, batch: Any, labels: Tensor | None) -> list[str]:
        """Adds a batch that was recorded; returns what could not be measured."""
        assert cam.logits is not None and cam.images is not None
        num_classes = cam.logits.shape[1]
        classes = None
        if labels is not None and labels.ndim == 1:
            known = (labels >= 0) & (labels < num_classes)
            predicted = cam.logits.detach().nan_to_num().argmax(1)
            classes = labels.to(predicted).where(known.to(predicted.device), predicted)
        maps = cam(classes)
        size = (cam.images.shape[-2], cam.images.shape[-1])
        found = batch if isinstance(batch, dict) else {}
        region = found["mask"] if "mask" in found else found.get("box")
        problems = []
        for name, metric in self._metrics.items():
            metric.to(maps.device)
            if isinstance(metric, PointingGame | EnergyInside):
                if region is None:
                    problems.append(f"cannot measure {name}: the batch has neither mask nor box")
                else:
                    metric.update(maps, region, size)
            elif isinstance(metric, Drift):
                if "index" in found:
                    metric.update(maps, found["index"])
                else:
                    problems.append(f"cannot measure {name}: the batch has no index")
            else:
                metric.update(maps)
        return problems

    def compute(self) -> dict[str, float]:
        """The values that there are, over all processes, and begins anew. A collective."""
        values = {}
        for name, metric in self._metrics.items():
            with warnings.catch_warnings():
                # Another process may have seen an image with an object where this one has not.
                warnings.filterwarnings("ignore", ".*was called before the ``update``.*")
                value = float(metric.compute())
            if metric.has_value:
                values[name] = value
                if isinstance(metric, PointingGame | EnergyInside):
                    values[f"{name}_chance"] = float(metric.chance)
            metric.reset()
        return values
