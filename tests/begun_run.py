"""What a config would train with: it is read, and its run ends before the first step."""

import contextlib
import io

import lightning.pytorch as pl
import numpy as np
import pytest
import yaml
from PIL import Image

from litcam.train import main

QUIET = ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary")


class SeenError(Exception):
    """Ends a run before its first step."""


class Look(pl.Callback):
    """Keeps what the run would train with."""

    def on_train_start(self, trainer, pl_module):
        self.optimizer = trainer.optimizers[0]
        self.curve = trainer.lr_scheduler_configs[0].scheduler.lr_lambdas[0]
        raise SeenError


def read_config(config, root):
    """A config as the command line reads it."""
    said = io.StringIO()
    with pytest.raises(SystemExit), contextlib.redirect_stdout(said):
        main(["fit", "--config", config, "--data.root", str(root), "--print_config"])
    return yaml.safe_load(said.getvalue())


def begin(module, data, **options):
    """Optimiser and schedule of a run that begins; options are the Trainer's."""
    look = Look()
    trainer = pl.Trainer(
        accelerator="cpu",
        devices=1,
        callbacks=[look],
        num_sanity_val_steps=0,
        **dict.fromkeys(QUIET, False),
        **options,
    )
    with pytest.raises(SeenError):
        trainer.fit(module, data)
    return look.optimizer, look.curve


def make_photos(folder):
    """Two classes, of two photos to train on and one to validate."""
    for place in ("train/a/1", "train/a/2", "train/b/3", "train/b/4", "val/a/1", "val/b/2"):
        (folder / place).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.zeros((32, 32, 3), dtype=np.uint8)).save(folder / f"{place}.png")
    return folder
