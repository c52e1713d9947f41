"""Which values each arm of a sweep gets: all of them, or some drawn at random."""

import json
from collections.abc import Callable, Mapping, Sequence
from itertools import product
from math import exp, log
from typing import Any

import numpy as np
from scipy import stats

from litcam.sweeps.description import Sweep

__all__ = ["plan"]

Values = dict[str, Any]
# W&B's names, for https://docs.wandb.ai/models/sweeps/sweep-config-keys; u is uniform in [0, 1).
DRAWS: dict[str, Callable[[float, Mapping[str, Any]], float]] = {
    "uniform": lambda u, how: how["min"] + u * (how["max"] - how["min"]),
    "log_uniform_values": lambda u, how: exp(log(how["min"]) + u * log(how["max"] / how["min"])),
    "log_uniform": lambda u, how: exp(how["min"] + u * (how["max"] - how["min"])),
    "inv_log_uniform_values": lambda u, how: (
        1 / exp(log(1 / how["max"]) + u * log(how["max"] / how["min"]))
    ),
    "normal": lambda u, how: float(stats.norm.ppf(u, how.get("mu", 0), how.get("sigma", 1))),
    "log_normal": lambda u, how: exp(stats.norm.ppf(u, how.get("mu", 0), how.get("sigma", 1))),
    "beta": lambda u, how: float(stats.beta.ppf(u, how["a"], how["b"])),
}


def plan(sweep: Sweep) -> list[Values]:
    """The values of every arm; the same ones each time.

    Raises:
        ValueError: a parameter's values are not described, or not for this method.
    """
    if sweep.method == "grid":
        choices = [_choices(name, how) for name, how in sweep.parameters.items()]
        arms = [dict(zip(sweep.parameters, values, strict=True)) for values in product(*choices)]
        return arms[: sweep.run_cap]
    assert sweep.run_cap is not None
    draw = np.random.default_rng(0)
    found: dict[str, Values] = {}
    for _ in range(20 * sweep.run_cap):  # where few are possible, the same come again
        arm = {name: _draw(name, how, draw) for name, how in sweep.parameters.items()}
        found.setdefault(json.dumps(arm, sort_keys=True), arm)
        if len(found) == sweep.run_cap:
            break
    return list(found.values())


def _choices(name: str, how: Mapping[str, Any]) -> Sequence[Any]:
    """All values of a parameter."""
    if "value" in how:
        return [how["value"]]
    if isinstance(how.get("values"), list) and how["values"]:
        if "probabilities" in how:
            raise ValueError(f"parameter {name}: probabilities are for method random")
        return list(how["values"])
    kind = _kind(name, how)
    if kind == "int_uniform":
        return range(how["min"], how["max"] + 1)
    if kind == "q_uniform":
        values: list[float] = np.arange(how["min"], how["max"], how.get("q", 1)).tolist()
        return values
    raise ValueError(f"parameter {name}: a grid needs `values`; {kind} is for method random")


def _draw(name: str, how: Mapping[str, Any], draw: np.random.Generator) -> Any:
    """One value of a parameter."""
    if "value" in how:
        return how["value"]
    if isinstance(how.get("values"), list) and how["values"]:
        shares = how.get("probabilities")
        if shares is not None and len(shares) != len(how["values"]):
            raise ValueError(
                f"parameter {name}: {len(shares)} probabilities for {len(how['values'])} values"
            )
        return how["values"][int(draw.choice(len(how["values"]), p=shares))]
    kind = _kind(name, how)
    if kind == "int_uniform":
        return int(draw.integers(how["min"], how["max"], endpoint=True))
    value = DRAWS[kind.removeprefix("q_")](float(draw.random()), how)
    if not kind.startswith("q_"):
        return value
    step = how.get("q", 1)
    return type(step)(round(value / step) * step)


def _kind(name: str, how: Mapping[str, Any]) -> str:
    """The name of a distribution, held against what it needs.

    Raises:
        ValueError: it is not known, or a number is missing or in the wrong order.
    """
    ends = [how.get("min"), how.get("max")]
    whole = all(isinstance(end, int) for end in ends)
    kind = str(how.get("distribution", "int_uniform" if whole else "uniform"))
    plain = kind.removeprefix("q_")
    if plain not in DRAWS and kind != "int_uniform":
        known = ", ".join(["int_uniform", *DRAWS])
        raise ValueError(f"parameter {name}: distribution {kind!r} is not among {known}")
    if plain not in ("normal", "log_normal", "beta"):
        if not all(isinstance(end, int | float) for end in ends):
            raise ValueError(f"parameter {name} needs value, values, or min and max")
        if how["min"] >= how["max"]:
            raise ValueError(f"parameter {name}: min {how['min']} is not below max {how['max']}")
        if plain.endswith("_values") and how["min"] <= 0:
            raise ValueError(f"parameter {name}: {kind} needs a min above 0, got {how['min']}")
    return kind
