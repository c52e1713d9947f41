"""A long run: nothing grows from epoch to epoch."""

import gc
import os
import statistics
import threading
import time
from pathlib import Path

import pytest
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

pytestmark = pytest.mark.timeout(1200)

# How much an epoch may add, after a third of the run to warm up: memory in MB, of the rest nothing.
# How much slower the last third may be: in seconds of this process, as others may be at work.
MEMORY, SLOWER = 0.1, 1.5
EACH = {"classifier": 8, "MAE": 4}  # pictures an epoch


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

        A leak adds to most pairs; what an allocator takes once, in this process of many tests,
        to those around it only.
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


@pytest.mark.parametrize("what", ["classifier", "MAE"])
def test_nothing_grows(what, tmp_path, request, tell):
    epochs = request.config.getoption("--soak")
    if what == "MAE":
        shown = "reconstructions"
        callbacks = [Reconstructions(num_images=4), Neighbours(num_neighbours=3)]
        module, data = make_mae(), make_data()
    else:
        shown = "gradcam"
        callbacks = [
            GradCAM(num_images=4),
            Neighbours(num_neighbours=3, network="backbone"),
            EMAWeightAveraging(),
        ]
        sizes = {"backbone_args": {"channels": (8, 8, 16, 16), "stem_width": 8}}
        module, data = Classifier("resnet10t", num_classes=2, **sizes), make_data()
    gauge = soak(tmp_path, module, data, epochs, *callbacks)
    start = time.monotonic()
    size = write_report(tmp_path / "run").stat().st_size / 1e6
    seconds = time.monotonic() - start
    pictures = len(read_lines(tmp_path / "run" / shown))
    slopes, (by_clock, slower) = gauge.slopes(), gauge.slower()
    assert pictures == EACH[what] * epochs
    memory = slopes.pop("memory")
    assert memory < MEMORY and slower < SLOWER
    assert all(abs(slope) < 0.02 for slope in slopes.values()), slopes
    tell(
        f"a long run of a tiny {what}",
        caused=f"{epochs} epochs with every callback, checkpoints, CSVLogger and W&B offline",
        times=epochs,
        happened=f"an epoch adds {memory:+.3f} MB of memory and "
        + ", ".join(f"{slope:+.2f} {name}" for name, slope in slopes.items())
        + f"; the last third took {slower:.2f} of the second's CPU time and {by_clock:.2f} of its "
        f"time; {pictures:,} pictures, the report {size:.1f} MB in {seconds:.1f} s",
    )
