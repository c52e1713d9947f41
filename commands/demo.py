"""`litcam demo`: from nothing to a trained network and where it looks, in one command."""

import logging
from collections.abc import Sequence

from litcam.commands.running import training

STORY = """\
Eight classes of patterns (stripes, checks, dots, …) on objects of any shape and colour, pasted on
photos; nothing is downloaded, and nothing leaves this machine. A small ResNet learns the classes,
and after every epoch litcam draws where it looks."""

FIT = ["fit", "--config", "demo.yaml", "--trainer.logger.offline", "true"]

NEXT = """\
Your own images: litcam fit --config finetune_resnet34.yaml --data.root DIR
Without labels, guessing what is hidden: litcam fit --config demo_pretrain.yaml"""


def demo(args: Sequence[str]) -> None:
    """Trains on generated images; `args` are options of `litcam fit`."""
    if not {"-h", "--help"}.isdisjoint(args):
        print(f"usage: litcam demo [OPTIONS OF litcam fit]\n\n{STORY}\n")
        print("For instance: litcam demo --trainer.max_epochs 2 --data.shortcut true")
        return
    print(STORY)
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    logging.getLogger("lightning.pytorch.callbacks.litcam").setLevel(logging.INFO)
    training.run([*FIT, *args])
    print(NEXT)
