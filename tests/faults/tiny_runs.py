"""Tiny trainings for the faults: what they are started with, and what they left."""

import json
from pathlib import Path

import torch

from litcam.files import read_rows

OPTIONS = {
    "model": "Classifier",
    "model.backbone": "test_resnet",
    "model.drop_rate": 0.2,
    "model.mixup": 0.2,
    "model.warmup_epochs": 1,
    "data": "ImageNetDataModule",
    "data.image_size": 32,
    "data.batch_size": 4,
    "data.num_workers": 0,
    "trainer.max_epochs": 3,
    "trainer.accelerator": "cpu",
    "trainer.devices": 1,
    "trainer.log_every_n_steps": 1,
    "trainer.enable_progress_bar": "false",
    "trainer.num_sanity_val_steps": 0,
}
DIARY = ["--trainer.callbacks+=resumed_run.Diary", "--trainer.callbacks.folder=."]
DIARY += ["--trainer.callbacks.kill_at=-1", "--trainer.callbacks.pause_at=-1"]
PHASES = ["--trainer.callbacks+=phases.Phases"]
STEPS = ["--trainer.callbacks+=ModelCheckpoint", "--trainer.callbacks.filename=last"]
STEPS += ["--trainer.callbacks.enable_version_counter=false"]
LAST = ["--ckpt_path", "last"]


def fit(root, *more, every=0, **options):
    """The words of a training on a folder of images; ``every`` is steps between checkpoints."""
    words = [f"--{name}={value}" for name, value in {**OPTIONS, **options}.items()]
    steps = [*STEPS, f"--trainer.callbacks.every_n_train_steps={every}"] if every else []
    return ["fit", *words, f"--data.root={root}", *DIARY, *PHASES, *steps, *more]


def run_in(folder):
    """The newest run there; one that was killed before its first checkpoint begins anew."""
    return max((folder / "runs/fit").glob("version_*"))


def load(folder):
    return torch.load(run_in(folder) / "checkpoints/last.ckpt", weights_only=True)


def same(one, other):
    """Whether two nests of tensors and plain values are equal to the bit."""
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[name], other[name]) for name in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return one == other


def same_training(one, other):
    """Whether two runs ended with the same weights and the same state of the optimiser."""
    one, other = load(one), load(other)
    names = ("state_dict", "optimizer_states", "lr_schedulers", "global_step")
    return all(same(one[name], other[name]) for name in names)


def rows(folder):
    """The rows of a run's table, in an order of their own.

    But for numbers that are of one process's memory or clock: the mean training loss of an epoch,
    which after a stop is that of its rest, how far maps drifted since the validation before, and
    images a second.
    """
    return rows_of(run_in(folder))


def rows_of(run):
    """The same, of the folder of a run itself."""
    found = read_rows(run / "metrics.csv")
    for row in found:
        for name in ("train/loss", "train/images_per_second", "val/gradcam/drift"):
            row.pop(name, None)
    return sorted(json.dumps(row, sort_keys=True) for row in found)


def whole_checkpoint(file: Path) -> bool:
    try:
        return "state_dict" in torch.load(file, weights_only=True)
    except Exception:
        return False
