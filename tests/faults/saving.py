"""A training that does nothing but replace its checkpoint, to be killed while it does."""

import json
import sys
from pathlib import Path

import lightning.pytorch as pl
import torch
from lightning.pytorch.demos.boring_classes import BoringModel

from litcam.lightning_modules.atomic_checkpoints import AtomicCheckpointIO


class Large(BoringModel):
    """Sixteen megabytes of weights, all of them the number of the checkpoint they are in."""

    def __init__(self):
        super().__init__()
        self.register_buffer("number", torch.zeros(4_000_000))


def save(words):
    """Saves over and over again: a folder, and whether by litcam's `CheckpointIO`."""
    folder, ours = words
    trainer = pl.Trainer(
        max_steps=1,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        plugins=[AtomicCheckpointIO()] if ours else [],
    )
    module = Large()
    trainer.fit(module)
    number = 0
    while True:
        number += 1
        module.number.fill_(number)
        trainer.save_checkpoint(Path(folder, "last.ckpt"))
        Path(folder, "saved").write_text(str(number))


if __name__ == "__main__":
    save(json.loads(sys.argv[1]))
