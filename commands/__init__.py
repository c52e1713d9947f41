"""One file a command of the `litcam` program."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from importlib import import_module

__all__ = ["COMMANDS", "Command"]


@dataclass(frozen=True)
class Command:
    """A command: its line in `litcam --help`, and what runs the words after its name."""

    summary: str
    run: Callable[[Sequence[str]], None]


def _run(module: str, function: str, *first: str, rest: Sequence[str] = ()) -> None:
    # Imported when it runs: torch and Lightning take seconds, `litcam --help` should not.
    getattr(import_module(f"litcam.commands.{module}"), function)([*first, *rest])


def _command(summary: str, module: str, function: str, *first: str) -> Command:
    run = partial(_run, module, function, *first)
    return Command(summary, lambda rest: run(rest=rest))


COMMANDS = {
    "demo": _command("train on generated images and watch, in two minutes", "demo", "demo"),
    "fit": _command("train: litcam fit --config finetune_resnet34.yaml", "fit", "run", "fit"),
    "validate": _command("measure and explain a checkpoint", "fit", "run", "validate"),
    "test": _command("the same on the test images", "fit", "run", "test"),
    "predict": _command(
        "name what is on photos: litcam predict PHOTO --ckpt_path FILE", "predict", "predict"
    ),
    "sweep": _command("fit many times, over values and seeds, and compare", "sweep", "sweep"),
    "explain": _command("where networks look, side by side in one figure", "explain", "explain"),
    "report": _command("a run on one page for the browser, report.html", "report", "report"),
    "export": _command("a run's network as timm, the hub and ONNX have it", "export", "export"),
    "convert": _command("write a folder of images as shards, and check them", "convert", "convert"),
}
