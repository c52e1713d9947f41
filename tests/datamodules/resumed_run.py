"""A training run that can be killed at any step: python resumed_run.py '{"root": …, …}'."""

import json
import multiprocessing
import os
import signal
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint

from litcam.callbacks import Coverage
from litcam.datamodules import ImageNetDataModule
from litcam.lightning_modules import Classifier

EVERYTHING_RANDOM = {"mixup": 0.4, "cutmix": 0.4, "drop_rate": 0.2, "drop_path_rate": 0.2}


class Diary(Callback):
    """Writes down what each batch saw, and dies or waits where it is told to."""

    def __init__(self, folder: Path, kill_at: int, pause_at: int) -> None:
        self.folder, self.kill_at, self.pause_at = folder, kill_at, pause_at

    def write(self, trainer, kind, batch, batch_idx):
        at = [trainer.current_epoch, trainer.global_step, batch_idx]
        entry = [kind, *at, batch["index"].tolist()]
        with (self.folder / f"diary-{trainer.global_rank}.jsonl").open("a") as file:
            file.write(json.dumps(entry) + "\n")

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        if trainer.global_step == self.kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        if trainer.global_step == self.pause_at:
            pause = self.folder / "paused"
            pause.touch()
            while pause.exists():  # until the test has done what it wants to
                time.sleep(0.05)
        self.write(trainer, "train", batch, batch_idx)

    def on_validation_batch_start(self, trainer, module, batch, batch_idx, dataloader_idx=0):
        self.write(trainer, "val", batch, batch_idx)


class Stop(Callback):
    """Stops the run in one of its batches, at a place in it, in one of the ways there are.

    Args:
        how: ``exception``, or the name of a signal.
        where: ``start``, ``forward``, ``backward``, ``optimizer`` (before it changes a weight),
            ``step`` (right after it has), ``callback`` (at the end of the batch), ``validation``
            (its second batch), ``measured`` (at its end) or ``epoch`` (at the end of one).
        epoch: From 0.
        batch: Of the epoch, from 0; of no meaning for the last three places.
    """

    def __init__(self, how: str, where: str, epoch: int, batch: int) -> None:
        self.how, self.where, self.at = how, where, (epoch, batch)

    def stop(self, where, *at):
        if (where, *at) != (self.where, *self.at[: len(at)]):
            return
        if self.how == "exception":
            raise RuntimeError(f"stopped in {where}")
        os.kill(os.getpid(), getattr(signal, self.how))

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        at = (trainer.current_epoch, batch_idx)
        self.now = at
        self.stop("start", *at)
        if at == self.at:
            head = module.backbone.get_classifier()
            handles = [head.register_forward_hook(lambda *_: self.stop("forward", *self.now))]
            weight = next(module.parameters())
            handles.append(weight.register_hook(lambda grad: self.stop("backward", *self.now)))
            optimizer = trainer.optimizers[0]
            handles.append(
                optimizer.register_step_post_hook(lambda *_: self.stop("step", *self.now))
            )
            self.handles = handles

    def on_before_optimizer_step(self, trainer, module, optimizer):
        self.stop("optimizer", *self.now)

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        for handle in self.__dict__.pop("handles", ()):
            handle.remove()
        self.stop("callback", *self.now)

    def on_validation_batch_start(self, trainer, module, batch, batch_idx, dataloader_idx=0):
        if batch_idx == 1:
            self.stop("validation", trainer.current_epoch)

    def on_validation_epoch_end(self, trainer, module):
        self.stop("measured", trainer.current_epoch)

    def on_train_epoch_end(self, trainer, module):
        self.stop("epoch", trainer.current_epoch)


class Counts(Callback):
    """Keeps what `Coverage` counted."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def on_train_epoch_end(self, trainer, module):
        if trainer.is_global_zero:
            found = trainer.callback_metrics.items()
            counts = {k: float(v) for k, v in found if "images" in k and "per_second" not in k}
            with (self.folder / "counts.jsonl").open("a") as file:
                file.write(json.dumps([trainer.current_epoch, counts]) + "\n")


def run(
    root: str,
    folder: str,
    *,
    kill_at: int = -1,
    pause_at: int = -1,
    workers: int = 0,
    devices: int = 1,
    batch_size: int = 4,
    epochs: int = 3,
    every: int | None = 1,
    backbone: str = "test_resnet",
    stop: dict[str, Any] | None = None,
    options: dict[str, Any] | None = None,
    **data_options: Any,
) -> None:
    """Trains from scratch, or from `last.ckpt` if there is one, and keeps the weights.

    Args:
        root: Of the images.
        folder: For what the run leaves.
        kill_at: Step at which it kills itself.
        pause_at: Step at which it waits.
        workers: Of each loader.
        devices: Processes.
        batch_size: Of each.
        epochs: How many.
        every: Steps between checkpoints; None is at the end of epochs and at exceptions.
        backbone: timm's name.
        stop: See `Stop`.
        options: Of the trainer.
        **data_options: Of the data module.
    """
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    # Workers of a fork server do not notice that the run was killed.
    multiprocessing.set_start_method("fork", force=True)
    out = Path(folder)
    out.mkdir(exist_ok=True)
    L.seed_everything(7, verbose=False)
    data = ImageNetDataModule(
        root,
        batch_size,
        num_workers=workers,
        image_size=32,
        auto_augment="rand",
        random_erasing=0.5,
        **data_options,
    )
    model = Classifier(backbone, data.num_classes, warmup_epochs=1, **EVERYTHING_RANDOM)
    last = ModelCheckpoint(
        out,
        filename="last",
        every_n_train_steps=every,
        enable_version_counter=False,
        save_on_exception=every is None,
    )
    callbacks: list[Callback] = [last, Diary(out, kill_at, pause_at), Coverage(), Counts(out)]
    if stop:
        callbacks.append(Stop(**stop))
    trainer = L.Trainer(
        accelerator="cpu",
        devices=devices,
        strategy="ddp" if devices > 1 else "auto",
        max_epochs=epochs,
        num_sanity_val_steps=0,
        log_every_n_steps=1,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=callbacks,
        **(options or {}),
    )
    checkpoint = out / "last.ckpt"
    trainer.fit(model, data, ckpt_path=checkpoint if checkpoint.exists() else None)
    if trainer.is_global_zero:
        torch.save(model.state_dict(), out / "weights.pt")


if __name__ == "__main__":
    run(**json.loads(sys.argv[1]))
