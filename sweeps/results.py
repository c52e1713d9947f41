"""What a sweep found: each setting over its seeds, and what each parameter changes."""

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import stats

from litcam.sweeps.arms import Arm, as_word, label, short_name
from litcam.sweeps.description import SEED, Sweep

__all__ = ["Effect", "Results", "Setting", "interval"]

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Setting:
    """Arms that differ in the seed alone.

    Args:
        values: of the parameters that are varied, but for the seed.
        measured: the metric's last value of each arm, in the order of the seeds.
    """

    values: Mapping[str, Any]
    measured: Sequence[float]

    @property
    def name(self) -> str:
        """The values in short."""
        return ", ".join(f"{short_name(k)} {label(v)}" for k, v in self.values.items()) or "all"

    @property
    def mean(self) -> float:
        """Over the seeds."""
        return float(np.mean(self.measured))


@dataclass(frozen=True)
class Effect:
    """What a value of a parameter changes against the first one, everything else alike.

    Args:
        parameter: its name.
        value: compared.
        first: it is compared with.
        differences: of the metric, of each pair of arms that differ in nothing else.
    """

    parameter: str
    value: Any
    first: Any
    differences: Sequence[float]

    def say(self, digits: int) -> str:
        """A line in plain words, with the interval of the mean difference."""
        name = f"{short_name(self.parameter)} {label(self.value)} against {label(self.first)}"
        half = interval(self.differences)
        mean = float(np.mean(self.differences))
        if half is None:
            return f"{name}: {mean:+.{digits}f}, one pair: nothing can be said about noise"
        verdict = "" if abs(mean) > half else ": no difference beyond noise"
        ends = f"[{mean - half:+.{digits}f}, {mean + half:+.{digits}f}]"
        return f"{name}: {mean:+.{digits}f} {ends}, {len(self.differences)} pairs{verdict}"


class Results:
    """The results of a sweep, read from the folders of its arms.

    Args:
        sweep: tells the metric and what is varied.
        arms: all of them; what was not trained to its end is left out of every mean.
        metric: another one that they measured.
        epochs: after which it is shown as well, counted from 0.
    """

    def __init__(
        self,
        sweep: Sweep,
        arms: Sequence[Arm],
        metric: str | None = None,
        epochs: Sequence[int] = (),
    ) -> None:
        self.sweep, self.arms, self.metric = sweep, arms, metric or sweep.metric
        self.epochs = list(dict.fromkeys(epochs))
        self.measured: dict[str, float] = {}
        for arm in arms:
            if arm.read()["state"] == "finished" and (measured := arm.history(self.metric)):
                self.measured[arm.name] = measured[-1]
        self.varied = [name for name in sweep.varied if name != SEED]

    @property
    def digits(self) -> int:
        """Decimals worth showing of this metric."""
        largest = max((abs(value) for value in self.measured.values()), default=1.0)
        return 4 if largest <= 1.5 else 2

    def settings(self, measured: Mapping[str, float] | None = None) -> list[Setting]:
        """Every setting that has a result, in the order of the arms.

        Args:
            measured: of each arm by its name; by default the metric's last value.
        """
        measured = self.measured if measured is None else measured
        found: dict[str, tuple[dict[str, Any], list[float]]] = {}
        for arm in self.arms:
            if arm.name in measured:
                values = {name: arm.values[name] for name in self.varied}
                own = found.setdefault(repr(values), (values, []))
                own[1].append(measured[arm.name])
        return [Setting(values, own) for values, own in found.values()]

    def effects(self) -> list[Effect]:
        """What each value of each parameter changes, in pairs."""
        found = []
        for parameter in self.varied:
            by_rest: dict[str, dict[str, float]] = {}
            values: dict[str, Any] = {}
            for arm in self.arms:
                if arm.name not in self.measured:
                    continue
                rest = repr({k: v for k, v in arm.values.items() if k != parameter})
                value = arm.values[parameter]
                values.setdefault(repr(value), value)
                by_rest.setdefault(rest, {})[repr(value)] = self.measured[arm.name]
            first, *others = list(values) or [""]
            for other in others:
                pairs = [own for own in by_rest.values() if first in own and other in own]
                differences = [own[other] - own[first] for own in pairs]
                if differences:
                    found.append(Effect(parameter, values[other], values[first], differences))
        return found

    def said(self) -> list[str]:
        """The effects in plain words."""
        return [effect.say(self.digits) for effect in self.effects()]

    def text(self) -> str:
        """Table and effects in Markdown."""
        effects = "\n".join(f"* {line}" for line in self.said())
        return (
            "\n\n".join(part for part in (self.table(), self.over_epochs(), effects) if part) + "\n"
        )

    def cost(self) -> str:
        """How many runs there are and how long they took."""
        seconds = [arm.read()["seconds"] for arm in self.arms if arm.name in self.measured]
        return f"{len(seconds)} runs of {np.median(seconds):.0f} s (median), `{self.metric}`."

    def table(self) -> str:
        """The settings as a Markdown table, the best one's mean in bold."""
        settings = self.settings()
        pick = max if self.sweep.maximize else min
        best = pick((each.mean for each in settings), default=0.0)
        heads = [*map(short_name, self.varied), self.metric, "95 %", "seeds"]
        rows = []
        for each in settings:
            mean, half = f"{each.mean:.{self.digits}f}", interval(each.measured)
            mean = f"**{mean}**" if each.mean == best and len(settings) > 1 else mean
            spread = "" if half is None else f"± {half:.{self.digits}f}"
            values = [label(value) for value in each.values.values()]
            rows.append([*values, mean, spread, str(len(each.measured))])
        return _markdown(heads, rows)

    def over_epochs(self) -> str:
        """The settings after each of `epochs` as a Markdown table; "" without epochs.

        Raises:
            ValueError: an arm has no value of one of them.
        """
        if not self.epochs:
            return ""
        known = {
            arm.name: arm.after_epochs(self.metric)
            for arm in self.arms
            if arm.name in self.measured
        }
        rows: dict[str, list[str]] = {}
        for epoch in self.epochs:
            if missing := next((name for name, own in known.items() if epoch not in own), None):
                drawn = ", ".join(map(str, list(known[missing])[:10])) or "none"
                raise ValueError(
                    f"{missing} has no {self.metric} after epoch {epoch}, but after {drawn}"
                )
            for each in self.settings({name: own[epoch] for name, own in known.items()}):
                half = interval(each.measured)
                spread = "" if half is None else f" ± {half:.{self.digits}f}"
                rows.setdefault(each.name, []).append(f"{each.mean:.{self.digits}f}{spread}")
        heads = [self.metric, *(f"after epoch {epoch}" for epoch in self.epochs)]
        return _markdown(heads, [[name, *cells] for name, cells in rows.items()])

    def rows(self) -> str:
        """Every arm as a row of a CSV table: values, state, seconds, each metric's last value."""
        names = list(dict.fromkeys(name for arm in self.arms for name in arm.metrics()))
        text = io.StringIO()
        writer = csv.writer(text)
        writer.writerow([*self.sweep.varied, "state", "seconds", *names])
        for arm in self.arms:
            known, last = arm.read(), [arm.history(name)[-1:] for name in names]
            values = [as_word(arm.values[name]) for name in self.sweep.varied]
            cells = [str(value[0]) if value else "" for value in last]
            writer.writerow([*values, known["state"], known["seconds"], *cells])
        return text.getvalue()


def _markdown(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def interval(values: Sequence[float]) -> float | None:
    """Half the width of Student's 95 % interval of a mean, or None of a single value.

    >>> round(interval([1.0, 2.0, 3.0]), 3)
    2.484
    """
    if len(values) < 2:
        return None
    error = np.std(values, ddof=1) / np.sqrt(len(values))
    return float(stats.t.ppf((1 + CONFIDENCE) / 2, len(values) - 1) * error)
