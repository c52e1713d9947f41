"""A long run in a process of its own, whose memory no other test has had a part in.

python long_run.py classifier FOLDER EPOCHS   # writes FOLDER/figures.json
"""

import gc
import json
import os
import statistics
import sys
import threading
import time
from pathlib import Path

import torch
import wandb
from lightning.pytorch.callbacks import (
    Callback,
    EMAWeightAveraging,
    LearningRateMonitor,
    ModelCheckpoint,
)
from lightning.pytorch.loggers import CSVLogger
from pretraining import make_data, make_mae
from scipy.stats import theilslopes
from strangers import count_hooks, make_trainer, read_lines

from litcam.callbacks import Coverage, GradCAM, Neighbours, Reconstructions, WandbLogger
from litcam.lightning_modules import Classifier
from litcam.report.writing import write_report


class Gauge(Callback):
    """Reads off this process at the end of every epoch."""

    def __init__(self, every):
        self.every, self.seconds, self.read = every, [], []

    def on_train_epoch_start(self, trainer, module):
        self.start = time.monotonic(), time.process_time()

    def on_train_epoch_end(self, trainer, module):
        wall, own = self.start
        self.seconds.append((time.monotonic() - wall, time.process_time() - own))
        if trainer.current_epoch % self.every:
            return
        gc.collect()
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        self.read.append(
            {
                "memory": pages * os.sysconf("SC_PAGE_SIZE") / 1e6,
                "files": len([*Path("/proc/self/fd").iterdir()]),
                "threads": threading.active_count(),
                "hooks": count_hooks(module),
                "tensors": sum(type(thing) is torch.Tensor for thing in gc.get_objects()),
            }
        )

    def slopes(self):
        """What an epoch adds to each, after the first third: the median over pairs of epochs.

        A leak adds to most pairs; what an allocator takes once, to those around it only.
        """
        after = self.read[len(self.read) // 3 :]
        epochs = [self.every * place for place in range(len(after))]
        return {
            name: theilslopes([each[name] for each in after], epochs).slope for name in after[0]
        }

    def slower(self):
        """The last third of the epochs against the second one, by the clock and by this process."""
        third = len(self.seconds) // 3
        second, last = self.seconds[third : 2 * third], self.seconds[2 * third :]
        return [
            statistics.median(after) / statistics.median(before)
            for before, after in zip(
                zip(*second, strict=True), zip(*last, strict=True), strict=True
            )
        ]


def soak(folder, module, data, epochs, *callbacks):
    gauge = Gauge(every=max(1, epochs // 30))  # it takes longer than such a tiny epoch
    loggers = [
        CSVLogger(folder / "run", name="", version=""),
        WandbLogger(offline=True, dir=folder),
    ]
    keep = ModelCheckpoint(folder / "run" / "checkpoints", every_n_epochs=1)
    trainer = make_trainer(
        *callbacks, Coverage(), LearningRateMonitor(), keep, gauge,
        logger=loggers, max_epochs=epochs, enable_checkpointing=True, log_every_n_steps=1,
    )  # fmt: skip
    trainer.fit(module, data)
    wandb.finish()
    assert trainer.current_epoch == epochs == len(gauge.seconds)
    return gauge


def make(what):
    """The module, its callbacks, and the folder of its pictures."""
    if what == "MAE":
        callbacks = [Reconstructions(num_images=4), Neighbours(num_neighbours=3)]
        return make_mae(), callbacks, "reconstructions"
    callbacks = [
        GradCAM(num_images=4),
        Neighbours(num_neighbours=3, network="backbone"),
        EMAWeightAveraging(),
    ]
    sizes = {"backbone_args": {"channels": (8, 8, 16, 16), "stem_width": 8}}
    return Classifier("resnet10t", num_classes=2, **sizes), callbacks, "gradcam"


def main(what, folder, epochs):
    """Trains, writes the report, and tells what it saw."""
    module, callbacks, shown = make(what)
    gauge = soak(folder, module, make_data(), epochs, *callbacks)
    start = time.monotonic()
    size = write_report(folder / "run").stat().st_size / 1e6
    by_clock, by_process = gauge.slower()
    figures = {
        "slopes": gauge.slopes(),
        "slower": by_process,
        "slower_by_clock": by_clock,
        "pictures": len(read_lines(folder / "run" / shown)),
        "report_mb": size,
        "report_seconds": time.monotonic() - start,
        "read": gauge.read,
    }
    (folder / "figures.json").write_text(json.dumps(figures))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]))
