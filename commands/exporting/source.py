"""Which checkpoint of a run is exported, and what it and its run tell."""

from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import torch

from litcam.commands.explaining.models import Model, load_model
from litcam.commands.report import find_run
from litcam.commands.running.run_folder import run_of
from litcam.lightning_modules.atomic_checkpoints import newest_readable, read_checkpoint
from litcam.lightning_modules.weights.saving import read_facts

ENCODER = "encoder.safetensors"


@dataclass
class Source:
    """What is exported.

    Attributes:
        file: The checkpoint, or an encoder's file.
        run: The folder that it lies in, of a run where it is of one.
        model: The network, its images and its classes.
        chosen: Why this checkpoint; empty where it was named.
        epoch: Number of its epoch, where it tells.
        step: Number of the last step before it, as tables and pictures of the run have it.
        averaged: Whether its weights are a moving average.
    """

    file: Path
    run: Path
    model: Model
    chosen: str = ""
    epoch: int | None = None
    step: int | None = None
    averaged: bool = False

    @property
    def name(self) -> str:
        """Experiment, run and file, as far as they are known."""
        return "/".join([*self.run.absolute().parts[-2:], self.file.name])

    @property
    def told(self) -> str:
        """Where the weights are from, in words."""
        told = [self.chosen] if self.chosen else []
        if self.epoch is not None:
            told.append(f"epoch {self.epoch}")
        told += ["averaged weights (EMA)"] if self.averaged else []
        return ", ".join(told)


def find_source(place: Path, checkpoint: str = "") -> Source:
    """Read what is to be exported.

    Args:
        place: Folder of a run or above it, a checkpoint, or an encoder's file.
        checkpoint: A file of the run's to take instead of the best one; also its name alone, or
            ``last``.

    Raises:
        OSError: If there is no such file or folder; the message has close matches.
        ValueError: If it is damaged, or of another program, or the run has none yet.
    """
    if not place.exists():
        raise FileNotFoundError(f"run {place} does not exist{_hint(place.parent, place.name)}")
    if place.is_file():
        if checkpoint:
            raise ValueError(f"{place} is a file already; leave --ckpt_path {checkpoint} out")
        return _read(place, run_of(place))
    run = find_run(place)
    if checkpoint:
        return _read(_find_named(run, checkpoint), run)
    file, chosen = _find_best(run)
    return _read(file, run, chosen)


def _hint(folder: Path, name: str) -> str:
    beside = sorted(path.name for path in folder.glob("*"))
    near = get_close_matches(name, beside, n=3)
    return f"; did you mean {', '.join(str(folder / each) for each in near)}?" if near else ""


def _folders(run: Path) -> Sequence[Path]:
    return run / "checkpoints", run


def _find_named(run: Path, name: str) -> Path:
    inside = [folder / (f"{name}.ckpt" if name == "last" else name) for folder in _folders(run)]
    for path in (Path(name), *inside):
        if path.is_file():
            return path
    hint = next(filter(None, (_hint(folder, name) for folder in _folders(run))), "")
    raise FileNotFoundError(f"--ckpt_path {name} does not exist, nor in {run}{hint}")


def _find_best(run: Path) -> tuple[Path, str]:
    """The best checkpoint by what the run watched, else its newest, else its encoder; and why."""
    for folder in _folders(run):
        newest = newest_readable(folder)
        if newest is None:
            continue
        callbacks = torch.load(newest, map_location="meta", mmap=True).get("callbacks") or {}
        for state in callbacks.values():
            watched = isinstance(state, dict) and state.get("monitor")
            # The run may have been moved since.
            best = folder / Path(state["best_model_path"]).name if watched else newest
            if watched and best.is_file():
                return best, f"best {watched}"
        return newest, "the newest"
    for folder in _folders(run):
        if (folder / ENCODER).is_file():
            return folder / ENCODER, "the newest"
    damaged = any(path for folder in _folders(run) for path in folder.glob("*.ckpt"))
    if damaged:
        raise ValueError(f"run {run}: none of its checkpoints can be read; give another run")
    raise ValueError(
        f"run {run} has no checkpoint: it is on its way to its first one, or keeps none; wait, or "
        "give another run"
    )


def _read(file: Path, run: Path, chosen: str = "") -> Source:
    if file.suffix == ".safetensors":
        facts: dict[str, Any] = read_facts(file)
        averaged = bool(facts.get("averaged"))
        return Source(file, run, _load(file), chosen, facts.get("epoch"), averaged=averaged)
    loaded = read_checkpoint(file, map_location="cpu")
    step = loaded.get("global_step")
    return Source(
        file,
        run,
        _load(file),
        chosen,
        loaded.get("epoch"),
        None if step is None else step - 1,
        # Lightning puts the average where the weights are otherwise.
        averaged="averaging_state" in loaded,
    )


def _load(file: Path) -> Model:
    return load_model(str(file), pretrained=False)
