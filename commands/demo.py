"""`litcam demo`: from nothing to heatmaps of a trained network, in one command."""

import logging
from collections.abc import Sequence

from litcam.commands import training

STORY = """\
Eight classes of patterns (stripes, checks, dots, …) on objects of any shape and colour, pasted on
photos. A small ResNet learns them from generated images; nothing is downloaded, and nothing leaves
this machine. After every epoch litcam draws where the network looks."""

NEXT = "Your own images: litcam fit --config finetune_resnet34.yaml --data.root DIR"


def demo(args: Sequence[str]) -> None:
    """Trains on generated images; `args` are options of `litcam fit` on top of `demo.yaml`."""
    if not {"-h", "--help"}.isdisjoint(args):
        print(f"usage: litcam demo [OPTIONS OF litcam fit]\n\n{STORY}\n")
        print("For instance: litcam demo --trainer.max_epochs 2 --data.shortcut true")
        return
    print(f"{STORY}\n")
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    logging.getLogger("lightning.pytorch.callbacks.litcam").setLevel(logging.INFO)
    offline = ["--trainer.logger.offline", "true"]
    training.run(["fit", "--config", "demo.yaml", *offline, *args])
    print(NEXT)
