"""Numbers for the maps of a whole validation, beside the pictures of a few of them."""

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from math import nan
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor

from litcam.callbacks.explained.alarm import Measured, RightAnswers
from litcam.callbacks.explained.recorder import Recorded
from litcam.callbacks.validation.beside import untouched
from litcam.callbacks.validation.device import bring
from litcam.explain import ROAD
from litcam.explain.metrics.drift import MapMemory
from litcam.explain.metrics.image_mean import ImageMean
from litcam.explain.metrics.maps import BLANK, BlankMaps, PointingGame
from litcam.explain.metrics.regions import Maps, find_masks
from litcam.explain.metrics.table import METRICS, find_metric
from litcam.explain.networks import run_eagerly

__all__ = ["MapMetrics"]


class MapMetrics:
    """Measures the map of every image, for its true class or else its predicted one.

    Metrics that ask the network again do so after the validation step and without hooks, on the
    network itself: no process waits for another before `compute`.

    Args:
        names: In `litcam.explain.METRICS`; names of one metric share its computation. None takes
            all that ask for no forward more, as far as the batches have what they need.

    Raises:
        ValueError: A name does not exist.
    """

    def __init__(self, names: Sequence[str] | None) -> None:
        self._asked = names is not None
        if names is None:
            names = [name for name, entry in METRICS.items() if not entry.forwards_per_image]
        self._entries = {name: find_metric(name) for name in dict.fromkeys(names)}
        self._facts: dict[str, Any] = {}
        self._metrics: dict[Callable[[], ImageMean], ImageMean] = {}
        for entry in self._entries.values():
            if entry.make not in self._metrics:
                self._metrics[entry.make] = entry.make()
        self._right, asked = RightAnswers(), self._metrics.get(BlankMaps)
        self._blank = asked if isinstance(asked, BlankMaps) else BlankMaps()
        self._memory = MapMemory()
        self._told: set[str] = set()
        self._partial: set[Callable[[], ImageMean]] = set()

    def __bool__(self) -> bool:
        return bool(self._entries)

    def describe_cost(self) -> str:
        """What they add to a validation, in one line; empty where they add no forward."""
        asking = {name: e for name, e in self._entries.items() if e.forwards_per_image}
        num = sum({e.make: e.forwards_per_image for e in asking.values()}.values())
        if not num:
            return ""
        solves = sum(m.forwards_per_image for m in self._metrics.values() if isinstance(m, ROAD))
        return (
            f"measures {', '.join(asking)} with {num} forward{'s' if num > 1 else ''} more for "
            f"each validation image: about ×{num + 1} of a plain validation"
            + (f", and {solves} sparse solves an image on the CPU" if solves else "")
        )

    def update(
        self,
        trainer: pl.Trainer,
        module: pl.LightningModule,
        recorded: Recorded,
        batch: Any,
    ) -> list[str]:
        """Adds a batch that was recorded, and lets its graph go.

        Args:
            trainer: its precision is that of further forwards.
            module: stays as it is.
            recorded: the batch's forward.
            batch: holds the regions and indices, where there are any.

        Returns:
            What could not be measured, one line a metric. A metric that fails raises nothing: the
            pictures go on, and so do the other processes, which will meet this one in `compute`.
        """
        maps, given, lacking = _find_inputs(recorded, batch)
        device = maps.device
        _add(self._right, device, *given["answers"])
        if BlankMaps not in self._metrics:
            _add(self._blank, device, maps)
        # The rest needs no gradient, and shall not come on top of the graph's memory.
        recorded.cam.release()
        problems = []
        for make, metric in self._metrics.items():
            needs = self._entries[self._names(make)[0]].needs
            problem = lacking.get(needs, "")
            if problem and not self._asked:
                continue
            if not problem:
                beside = _beside(trainer, module) if needs == "network" else nullcontext()
                arguments = given[needs]
                try:
                    if needs == "index":
                        arguments = maps, self._memory.exchange(*arguments)
                    with beside:
                        _add(metric, device, *arguments)
                except Exception as error:
                    problem = _describe(error)
            if problem:
                self._partial.add(make)
                problems.append(f"cannot measure {', '.join(self._names(make))}: {problem}")
        return problems

    def compute(
        self, trainer: pl.Trainer, device: torch.device, *, whole: bool
    ) -> tuple[dict[str, float], list[str]]:
        """The values of the whole validation, over all processes, and begins anew. A collective.

        A metric that failed in some batch, on any process, has no value: it would look like one of
        the whole validation.

        Args:
            trainer: its strategy is used.
            device: Of the collective; a process without a batch has its metrics elsewhere.
            whole: Whether every batch of this process was added.

        Returns:
            The values by name; and how many images were left out and why, of each metric once.
        """
        if not self:
            return {}, []
        failed = [not whole, *(make in self._partial for make in self._metrics)]
        flags = torch.tensor(failed, dtype=torch.int, device=device)
        broken, *partial = trainer.strategy.reduce(flags, reduce_op="max").tolist()
        metrics = [*self._metrics.values(), self._right, self._blank]
        facts = _bring([_compute(metric, device) for metric in metrics])
        values: dict[str, float] = {}
        left_out: dict[str, list[str]] = {}
        for make, found, in_part in zip(self._metrics, facts, partial, strict=False):
            names, metric = self._names(make), self._metrics[make]
            if found["count"] and not (broken or in_part):
                for name in names:
                    values[name] = found[self._entries[name].value or name]
                for baseline in ("chance", "centre"):
                    if baseline in found:
                        values[f"{names[0]}_{baseline}"] = found[baseline]
            # By default only what has no object: flat maps are counted by `blank_maps`.
            told = self._asked or isinstance(metric, PointingGame)
            if (skipped := int(found["skipped"])) and told and names[0] not in self._told:
                self._told.add(names[0])
                total = skipped + int(found["count"])
                line = f"leaves {skipped} of {total} images out of {{}}: {metric.skips}"
                left_out.setdefault(line, []).extend(names)
        self._partial = set()
        self._facts = {} if broken else _for_the_alarm(values, *facts[-2:])
        for metric in metrics:
            metric.reset()
        self._memory.end_epoch()
        return values, [line.format(", ".join(names)) for line, names in left_out.items()]

    def summarise(self, epoch: int) -> Measured | None:
        """What the last `compute` found, for the alarm; None where there was no map."""
        return Measured(epoch=epoch, **self._facts) if self._facts.get("num_images") else None

    def _names(self, make: Callable[[], ImageMean]) -> list[str]:
        return [name for name, entry in self._entries.items() if entry.make is make]


def _find_inputs(
    recorded: Recorded, batch: Any
) -> tuple[Maps, dict[str, tuple[Any, ...]], dict[str, str]]:
    """The maps; what `update` takes, by what its metric needs; and why there is none of it."""
    cam, logits, labels, answer = recorded.cam, recorded.logits, recorded.labels, recorded.answer
    assert cam.images is not None
    images, classes, maps = cam.images, recorded.own_classes, Maps(recorded.own_maps)
    given: dict[str, tuple[Any, ...]] = {"": (maps,), "answers": (logits, labels)}
    lacking: dict[str, str] = {}
    if logits.shape[1] < 2 and answer.activation == "identity":
        lacking["network"] = "target gives no probability; pass activation='sigmoid' if it does"
    else:
        probabilities = answer.probabilities(logits)
        given["network"] = answer.ask(cam.network), images, maps, classes, probabilities
    found = batch if isinstance(batch, Mapping) else {}
    try:
        given["region"] = maps, _find_masks(found, maps, (images.shape[-2], images.shape[-1]))
    except ValueError as error:
        lacking["region"] = str(error)
    index = found.get("index")
    if isinstance(index, Tensor):
        given["index"] = maps, index
    else:
        lacking["index"] = "the batch has no index"
    return maps, given, lacking


def _find_masks(batch: Mapping[str, Any], maps: Maps, image_size: tuple[int, int]) -> Tensor:
    """Where the objects of a batch are, `(batch, height, width)`.

    Raises:
        ValueError: it does not tell.
    """
    name = next((name for name in ("mask", "box") if batch.get(name) is not None), "")
    if not name:
        raise ValueError("the batch has neither mask nor box")
    if not isinstance(batch[name], Tensor):
        kind = type(batch[name]).__name__
        raise ValueError(f"the batch's {name} is a {kind}; stack them to a tensor, padded with 0")
    return find_masks(batch[name], maps, image_size)


def _add(metric: ImageMean, device: torch.device, *arguments: Any) -> None:
    if metric.device != device:
        metric.to(device)
    metric.update(*arguments)


def _compute(metric: ImageMean, device: torch.device) -> dict[str, Tensor]:
    """What a metric has found, over all processes. A collective."""
    if metric.device != device:
        metric.to(device)
    with warnings.catch_warnings():
        # Another process may have seen an image with an object where this one has not.
        warnings.filterwarnings("ignore", ".*was called before the ``update``.*")
        metric.compute()
    return metric.facts


def _bring(found: Sequence[Mapping[str, Tensor]]) -> list[dict[str, float]]:
    """The same off the device, in one copy."""
    numbers = iter(bring([value for facts in found for value in facts.values()]))
    return [{name: float(next(numbers)) for name in facts} for facts in found]


def _for_the_alarm(
    values: Mapping[str, float], right: Mapping[str, float], blank: Mapping[str, float]
) -> dict[str, Any]:
    return {
        "num_images": int(blank["count"]),
        "accuracy": right["right"],
        "guessing": right["guessing"],
        "energy_inside": values.get("energy_inside", nan),
        "chance": values.get("energy_inside_chance", nan),
        "pointing_game": values.get("pointing_game", nan),
        "blank": {name.replace("_", " "): blank[name] for name in BLANK},
    }


@contextmanager
def _beside(trainer: pl.Trainer, module: pl.LightningModule) -> Iterator[None]:
    """Forwards in the run's precision, uncompiled, that leave all as it was."""
    with untouched(trainer, module), run_eagerly():
        yield


def _describe(error: Exception) -> str:
    """What went wrong in a metric, in one line."""
    line = next(iter(str(error).splitlines()), "")
    return line if isinstance(error, ValueError) else f"{type(error).__name__} {line}".strip()
