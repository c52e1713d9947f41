"""Weights that differ from seed to seed, named once."""

from typing import Any

PLACE = "{seed}"


def fill_in_seed(config: Any) -> None:
    """Replaces `{seed}` in `--model.weights` by the run's own `--seed_everything`.

    So one value of a sweep stands for the encoders that the same seeds pretrained.

    Args:
        config: of the subcommand; changed in place.

    Raises:
        ValueError: there is no number to fill in.
    """
    arguments = (config.get("model") or {}).get("init_args") or {}
    weights, seed = arguments.get("weights"), config.get("seed_everything")
    if not isinstance(weights, str) or PLACE not in weights:
        return
    if isinstance(seed, bool) or not isinstance(seed, int):
        raise ValueError(
            f"--model.weights {weights} needs a whole number as --seed_everything, got {seed}"
        )
    arguments["weights"] = weights.replace(PLACE, str(seed))
