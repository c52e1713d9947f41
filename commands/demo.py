"""`litcam demo`: from nothing to a trained network and where it looks, in one command."""

import contextlib
import io
import logging
from collections.abc import Sequence
from pathlib import Path

import wandb

from litcam.commands.running import training

STORY = """\
Eight classes of patterns (stripes, checks, dots, …) on objects of any shape and colour, pasted on
photos; nothing is downloaded, and nothing leaves this machine."""

PRETRAIN = """
1. A small ResNet learns without labels: half of an image is hidden, and it guesses the pixels."""

FINETUNE = """
2. From that encoder it learns the classes. After every epoch litcam draws where it looks."""

FIRST, SECOND = (
    ["fit", "--config", name, "--trainer.logger.offline", "true"]
    for name in ("demo_pretrain.yaml", "demo.yaml")
)

NEXT = "Your own images: litcam fit --config finetune_resnet34.yaml --data.root DIR"


def demo(args: Sequence[str]) -> None:
    """Pretrains and fine-tunes on generated images; `args` are options of `litcam fit`."""
    if not {"-h", "--help"}.isdisjoint(args):
        print(f"usage: litcam demo [OPTIONS OF litcam fit]\n\n{STORY}{PRETRAIN}{FINETUNE}\n")
        print("Options of the data go to both parts, others to the second. For instance:")
        print("litcam demo --trainer.max_epochs 2 --data.shortcut true")
        return
    print(STORY)
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    logging.getLogger("lightning.pytorch.callbacks.litcam").setLevel(logging.INFO)
    check(args)
    print(PRETRAIN)
    about_data = _options_of("--data", args)
    training.run([*FIRST, *about_data])
    encoder = Path(training.SaveConfig.folder or ".") / "checkpoints" / "encoder.safetensors"
    wandb.finish()  # else the second part would go on in this run
    print(FINETUNE)
    training.run([*SECOND, "--model.weights", str(encoder), *args])
    print(NEXT)


def check(args: Sequence[str]) -> None:
    """Reads the options of the second part before the first one takes its minutes.

    Raises:
        ValueError: an option cannot be read.
    """
    with contextlib.redirect_stdout(io.StringIO()):
        try:
            training.run([*SECOND, *args, "--print_config"])
        except SystemExit as end:
            if end.code:
                raise


def _options_of(group: str, args: Sequence[str]) -> list[str]:
    """Options whose name starts so, with their values.

    >>> _options_of("--data", ["--data.seed", "1", "--trainer.max_epochs", "2", "--data.x=3"])
    ['--data.seed', '1', '--data.x=3']
    """
    kept, wanted = [], False
    for word in args:
        wanted = word.startswith(group) if word.startswith("--") else wanted
        kept += [word] if wanted else []
    return kept
