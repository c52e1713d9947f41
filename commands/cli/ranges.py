"""Values that can be read but not used, and that nothing else refuses before a run starts."""

import inspect
import math
import re
from importlib import import_module

from jsonargparse import Namespace

from litcam.commands.cli import errors

# Lightning takes less, and then divides by zero, climbs instead of descending, or never validates.
LEAST = {
    "accumulate_grad_batches": 1,
    "check_val_every_n_epoch": 1,
    "gradient_clip_val": 0,
    "log_every_n_steps": 0,
    "num_sanity_val_steps": -1,
}
SEEDS = 2**32


def check_ranges(config: Namespace) -> None:
    """Holds what was read for a subcommand against what it can be.

    Raises:
        OptionError: with the option, its value and what it must be.
    """
    options = config.get(str(config.get("subcommand")))
    if not isinstance(options, Namespace):
        return
    trainer, seed = options.get("trainer"), options.get("seed_everything")
    if not isinstance(trainer, Namespace):
        raise errors.OptionError(
            f"--trainer: expected options, such as {{max_epochs: 3}}, got {trainer!r}"
        )
    if options.get("ckpt_path") == "":
        raise errors.OptionError("--ckpt_path is empty; name a file, say `last`, or leave it out")
    if not isinstance(seed, bool | None) and not 0 <= seed < SEEDS:
        raise errors.OptionError(f"--seed_everything must be from 0 to {SEEDS - 1}, got {seed}")
    for name, least in LEAST.items():
        value = trainer.get(name)
        if value is not None and not value >= least:
            raise errors.OptionError(f"--trainer.{name} must be at least {least}, got {value}")
    made = [(group, options.get(group)) for group in ("model", "data")]
    made += [
        (f"trainer.{name}", each)
        for name in ("callbacks", "logger")
        for each in (trainer[name] if isinstance(trainer.get(name), list) else [trainer.get(name)])
    ]
    for place, each in made:
        if isinstance(each, Namespace) and str(each.get("class_path")).startswith("litcam."):
            module, _, name = each.class_path.rpartition(".")
            kind = getattr(import_module(module), name)
            _check_own(place, kind, each.get("init_args") or Namespace())


def _check_own(place: str, kind: type, options: Namespace) -> None:
    """Numbers are finite, and only what may be left out is null, in options of litcam's classes."""
    parameters = inspect.signature(kind).parameters
    for name, value in vars(options).items():
        if value is None and name in parameters and not _may_be_none(parameters[name]):
            raise errors.OptionError(f"--{place}.{name} must not be null; leave it out")
        for number in value if isinstance(value, list | tuple) else [value]:
            if isinstance(number, float) and not math.isfinite(number):
                raise errors.OptionError(f"--{place}.{name} must be a finite number, got {number}")


def _may_be_none(parameter: inspect.Parameter) -> bool:
    allowed = re.search(r"None|Any|Optional", str(parameter.annotation))
    return parameter.default is None or allowed is not None
