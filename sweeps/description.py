"""A sweep as W&B describes it: what is run, what is changed in it, and what is measured."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Any

__all__ = ["SEED", "Hyperband", "Sweep", "read_sweep"]

SEED = "seed_everything"  # arms that differ in it alone are the same experiment, repeated
METHODS = ("grid", "random")
KEYS = {"method", "metric", "command", "parameters", "early_terminate", "run_cap", "name"}
KEYS |= {"description", "program", "project", "entity"}


@dataclass(frozen=True)
class Hyperband:
    """When an arm is stopped early (arXiv:1603.06560, as W&B simplifies it).

    Args:
        bands: after how many values of the metric an arm is compared with the others.
        share: of the arms that a band lets pass.
        strict: compare the value at the band, not the best one until now.
    """

    bands: Sequence[int]
    share: float
    strict: bool = False


@dataclass(frozen=True)
class Sweep:
    """What a file of W&B's sweep format says.

    Args:
        method: `grid` or `random`.
        metric: its name in `metrics.csv`, such as `val/acc1`.
        maximize: whether more of it is better.
        words: of `litcam fit`, before those of an arm.
        parameters: name to W&B's description of its values; nested ones with dots in their names.
        run_cap: how many arms there are at most.
        early: when arms are stopped, if at all.
    """

    method: str
    metric: str
    maximize: bool
    words: Sequence[str]
    parameters: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    run_cap: int | None = None
    early: Hyperband | None = None

    @property
    def varied(self) -> list[str]:
        """The parameters of more than one value, the seed among them."""
        return [name for name, how in self.parameters.items() if not _is_fixed(how)]


def read_sweep(told: Any) -> Sweep:
    """Reads what the YAML of a sweep holds.

    Raises:
        ValueError: it is no sweep, or wants what only W&B's server can do.
    """
    if not isinstance(told, Mapping) or not isinstance(told.get("parameters"), Mapping):
        raise ValueError("a sweep needs `parameters:`, name to `{values: […]}` or `{value: …}`")
    for key in told:
        if key not in KEYS:
            raise ValueError(f"{key!r} is no part of a sweep that litcam can run{_near(key, KEYS)}")
    method = told.get("method", "grid")
    if method not in METHODS:
        raise ValueError(
            f"method {method!r} needs W&B's server (`wandb sweep` and `wandb agent` run the same "
            f"file); here: {' or '.join(METHODS)}"
        )
    metric = told.get("metric")
    if not isinstance(metric, Mapping) or not isinstance(metric.get("name"), str):
        raise ValueError("a sweep needs `metric: {name: val/acc1, goal: maximize}`")
    if (goal := metric.get("goal", "minimize")) not in ("minimize", "maximize"):
        raise ValueError(f"metric: goal must be minimize or maximize, got {goal!r}")
    run_cap = told.get("run_cap")
    if run_cap is not None and (not isinstance(run_cap, int) or run_cap < 1):
        raise ValueError(f"run_cap must be a whole number of at least 1, got {run_cap!r}")
    if method == "random" and run_cap is None:
        raise ValueError("method random needs `run_cap: N`, the number of arms")
    return Sweep(
        method,
        metric["name"],
        goal == "maximize",
        _read_command(told),
        _flatten(told["parameters"]),
        run_cap,
        _read_early(told.get("early_terminate")),
    )


def _read_command(told: Mapping[str, Any]) -> list[str]:
    """The words after `litcam fit`, without the place of the arm's own at their end."""
    program = str(told.get("program", "litcam"))
    command = told.get("command") or ["${env}", "${interpreter}", "${program}", "${args}"]
    words = [str(word).replace("${program}", program) for word in command]
    ignored = ("${env}", "/usr/bin/env", "${interpreter}", "python", "python3")
    words = [word for word in words if word not in ignored]
    if words[:2] not in (["litcam", "fit"], ["train.py", "fit"]) or words[-1] != "${args}":
        raise ValueError(
            f"litcam sweep runs `litcam fit`, but the file's command is {' '.join(words)!r}; "
            'give `command: ["${env}", litcam, fit, --config, FILE, "${args}"]`'
        )
    if odd := [word for word in words[2:-1] if "${" in word]:
        raise ValueError(f"command: {odd[0]} cannot be filled in here; use ${{args}} at the end")
    return words[2:-1]


def _flatten(parameters: Mapping[str, Any], before: str = "") -> dict[str, Mapping[str, Any]]:
    found: dict[str, Mapping[str, Any]] = {}
    for key, how in parameters.items():
        name = f"{before}{key}"
        if not isinstance(how, Mapping):
            raise ValueError(f"parameter {name} must be `{{value: …}}` or `{{values: […]}}`")
        if isinstance(how.get("parameters"), Mapping):
            found |= _flatten(how["parameters"], f"{name}.")
        else:
            found[name] = how
    return found


def _read_early(told: Any) -> Hyperband | None:
    if told is None:
        return None
    if not isinstance(told, Mapping) or told.get("type") != "hyperband":
        raise ValueError("early_terminate: the type must be hyperband, the one W&B has")
    eta = told.get("eta", 3)
    if not isinstance(eta, int | float) or eta <= 1:
        raise ValueError(f"early_terminate: eta must be above 1, got {eta!r}")
    if (most := told.get("max_iter")) is not None:
        bands = [int(most / eta**power) for power in range(1, int(told.get("s", 1)) + 1)]
    elif (least := told.get("min_iter")) is not None:
        bands = [int(least * eta**power) for power in range(20)]
    else:
        raise ValueError("early_terminate: hyperband needs min_iter, or max_iter and s")
    bands = sorted({band for band in bands if band >= 1})
    if not bands:
        raise ValueError(f"early_terminate: no band is left of max_iter {most} and eta {eta}")
    return Hyperband(bands, 1 / eta, bool(told.get("strict", False)))


def _is_fixed(how: Mapping[str, Any]) -> bool:
    return "value" in how or len(how.get("values", [0, 0])) == 1


def _near(name: Any, names: Iterable[str]) -> str:
    near = get_close_matches(str(name), sorted(names), n=2, cutoff=0.6)
    return f"; did you mean {', '.join(near)}?" if near else ""
