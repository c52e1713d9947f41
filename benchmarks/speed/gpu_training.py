"""Parts 3 and 4 of `python -m benchmarks --gpu`: training steps, and waits for the GPU."""

import collections
import warnings
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import lightning.pytorch as pl
import torch
import torch.nn.functional as F
from chips import count_flops, tell_speed
from gpu_plan import PRECISION, Plan, Report
from timing import Stopwatch

from litcam.callbacks import GradCAM
from litcam.lightning_modules import MAE, Classifier

NUM_CLASSES = 1000
SYNC = "synchronizing CUDA operation"


class Steps(pl.Callback):
    """Marks the end of every training step."""

    def __init__(self, device: torch.device) -> None:
        self.watch = Stopwatch(device)

    def on_train_batch_end(self, *args: Any, **kwargs: Any) -> None:
        """A mark."""
        self.watch.mark()


def train(plan: Plan, report: Report) -> None:
    """Part 3: steps of a whole training, from the end of one to the end of the next."""
    report.table(
        f"Training steps, batch of {plan.batch} at {plan.image_size}, {PRECISION}",
        *("training", "ms a step", "images/s", "speed", "peak memory (MiB)"),
    )
    cnn, vit, encoder = plan.trained
    last: dict[str, Any] = {"channels_last": True}
    modules: dict[str, Any] = {
        f"Classifier {cnn}": lambda: Classifier(cnn, NUM_CLASSES),
        f"Classifier {cnn}, channels last": lambda: Classifier(cnn, NUM_CLASSES, **last),
        f"Classifier {cnn}, channels last, compiled": lambda: Classifier(cnn, NUM_CLASSES, **last),
        f"Classifier {vit}": lambda: Classifier(vit, NUM_CLASSES),
        f"Classifier {vit}, compiled": lambda: Classifier(vit, NUM_CLASSES),
        f"MAE {encoder}": lambda: MAE(encoder, image_size=plan.image_size),
    }
    # The same images over and over: they are not what is measured.
    loader = plan.loader(3 * plan.batch)
    for name, make in modules.items():
        with report.attempt(name), TemporaryDirectory() as folder:
            torch.manual_seed(0)
            module = make()
            flops = plan.batch * count_step(module, plan.image_size)
            if "compiled" in name:
                module.backbone.compile(backend=plan.backend)
            steps = Steps(plan.device)
            trainer = plan.trainer(
                folder, max_steps=plan.steps, max_epochs=-1, limit_val_batches=0, callbacks=[steps]
            )
            memory = plan.memory(lambda t=trainer, m=module: t.fit(m, loader))
            seconds = median(steps.watch.spans()[plan.steps // 3 :])
            speed = tell_speed(flops, seconds, plan.device)
            report.row(name, f"{1000 * seconds:.3g}", f"{plan.batch / seconds:.0f}", speed, memory)


def count_step(module: Any, image_size: int) -> float:
    """Operations of forward and backward, for one image."""

    def step() -> None:
        images = torch.randn(2, 3, image_size, image_size)
        loss = module(images)
        if not isinstance(module, MAE):
            loss = F.cross_entropy(loss, torch.zeros(2, dtype=torch.long))
        loss.backward()

    flops = count_flops(step)
    module.zero_grad()
    return flops / 2


class Waits:
    """How often each kind of step waits, by `torch.cuda.set_sync_debug_mode`.

    That sees copies to the CPU, `.item()` and their like, not NCCL or an explicit synchronisation.

    Args:
        log: where warnings go.
    """

    def __init__(self, log: list[warnings.WarningMessage]) -> None:
        self._log, self._begins = log, list[int]()
        self.found: dict[str, list[int]] = collections.defaultdict(list)
        self.lines: collections.Counter[str] = collections.Counter()
        self.first, self.last = pl.Callback(), pl.Callback()
        for name in ("train_batch_start", "validation_batch_start", "validation_epoch_end"):
            setattr(self.first, f"on_{name}", self._begin)
        for name in ("train_batch_end", "validation_batch_end", "validation_epoch_end"):
            setattr(self.last, f"on_{name}", self._end(name))

    def _begin(self, *args: Any, **kwargs: Any) -> None:
        self._begins.append(len(self._log))

    def _end(self, kind: str) -> Any:
        def end(*args: Any, **kwargs: Any) -> None:
            waits = [each for each in self._log[self._begins.pop() :] if SYNC in str(each.message)]
            self.found[kind].append(len(waits))
            for each in waits:
                self.lines[f"{kind} {'/'.join(Path(each.filename).parts[-2:])}:{each.lineno}"] += 1

        return end


def count_waits(plan: Plan, report: Report) -> None:
    """Part 4: waits a step, of a training with `GradCAM()`."""
    report.table("Waits for the GPU, means after the first epoch", "of", "waits", "where")
    if plan.device.type != "cuda":
        report.row("all", "not counted", f"{plan.device} has no such debug mode")
    log: list[warnings.WarningMessage]
    with TemporaryDirectory() as folder, warnings.catch_warnings(record=True) as log:
        warnings.simplefilter("always")
        waits, epochs = Waits(log), 3
        torch.manual_seed(0)
        module, loader = Classifier(plan.trained[0], NUM_CLASSES), plan.loader(4 * plan.batch)
        callbacks = [waits.first, GradCAM(num_images=4), waits.last]
        options: dict[str, Any] = {"max_epochs": epochs, "num_sanity_val_steps": 0}
        trainer = plan.trainer(folder, callbacks=callbacks, **options)
        mode = "warn" if plan.device.type == "cuda" else "default"
        if mode == "warn":
            torch.cuda.set_sync_debug_mode(mode)
        try:
            trainer.fit(module, loader, loader)
        finally:
            if mode == "warn":
                torch.cuda.set_sync_debug_mode("default")
    if plan.device.type == "cuda":
        tell_waits(waits, epochs, report)


def tell_waits(waits: Waits, epochs: int, report: Report) -> None:
    """A row for each kind of step: the mean of the later epochs, and the lines that wait."""
    for kind, counts in waits.found.items():
        late = counts[len(counts) // epochs :]
        lines = [f"{line.split()[1]} ({n})" for line, n in waits.lines.items() if kind in line]
        name = kind.removesuffix("_end").replace("_", " ")
        report.row(name, f"{sum(late) / len(late):.1f}", ", ".join(lines[:6]))
