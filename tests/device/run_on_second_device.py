"""Trains and validates on the second device, and tells the waits of each kind of step as JSON.

Besides, the operators of the last step of each kind: what a GPU would be asked to launch.

python run_on_second_device.py classifier | mixup | legrad | costly | vit | swin | cnn | explain
"""

import collections
import contextlib
import io
import json
import logging
import sys
import tempfile
import warnings
from pathlib import Path

import lightning.pytorch as pl
import numpy as np
import second_device
import torch
from lightning.pytorch.accelerators import Accelerator
from lightning.pytorch.strategies import SingleDeviceStrategy
from PIL import Image

from litcam.callbacks import Coverage, GradCAM, Neighbours, Reconstructions
from litcam.datamodules import SyntheticDataModule
from litcam.lightning_modules import MAE, Classifier
from litcam.train import main

warnings.filterwarnings("ignore")
logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
torch.set_num_threads(1)
EPOCHS = 3
MASKED = {
    "vit": ("vit_tiny_patch16_224", {"depth": 2}),
    "swin": ("swin_tiny_patch4_window7_224", {"depths": (1, 1, 1, 1), "window_size": 2}),
    "cnn": ("resnet18", {}),
}


class Second(Accelerator):
    """Lightning's view of the second device."""

    def setup_device(self, device):
        pass

    def teardown(self):
        pass

    def get_device_stats(self, device):
        return {}

    @staticmethod
    def parse_devices(devices):
        return [0]

    @staticmethod
    def get_parallel_devices(devices):
        return [torch.device(second_device.NAME, 0)]

    @staticmethod
    def auto_device_count():
        return 1

    @staticmethod
    def is_available():
        return True

    @staticmethod
    def name():
        return second_device.NAME


def make(kind):
    """The module, its callbacks, and how many images are trained and validated."""
    if kind in MASKED:
        backbone, options = MASKED[kind]
        small = {"decoder_dim": 64, "decoder_depth": 1}
        module = MAE(backbone, image_size=64, backbone_args=options, **small)
        return module, [Reconstructions(num_images=2), Neighbours()], 24, 48
    if kind in ("mixup", "legrad"):
        options = {"img_size": 64, "depth": 2}
        mix = {"mixup": 0.8, "cutmix": 1} if kind == "mixup" else {}
        module = Classifier("vit_tiny_patch16_224", 8, backbone_args=options, **mix)
        return module, [GradCAM(2, "legrad" if kind == "legrad" else "gradcam")], 32, 64
    metrics = ["deletion", "average_drop", "road"] if kind == "costly" else None
    return Classifier("resnet10t", 8), [Coverage(), GradCAM(4, metrics=metrics)], 32, 64


def count_waits(watch):
    """What a GPU would be waited for, by line: questions, and copies off it."""
    copies = {k: n for k, n in watch.copies.items() if k.startswith(second_device.NAME)}
    return watch.syncs + collections.Counter(copies)


def fit(kind):
    """Mean waits of the later epochs, by kind of step."""
    watches, opened = collections.defaultdict(list), []

    def begin(*args, **kwargs):
        opened.append(second_device.Watch())
        opened[-1].__enter__()

    def end(kind):
        def hook(*args, **kwargs):
            opened[-1].__exit__(None, None, None)
            watches[kind].append(opened.pop())

        return hook

    first, last = pl.Callback(), pl.Callback()
    first.on_train_batch_start = first.on_validation_batch_start = begin
    first.on_validation_epoch_end = begin
    last.on_train_batch_end, last.on_validation_batch_end = end("train"), end("batch")
    last.on_validation_epoch_end = end("end")
    module, callbacks, num_train, num_val = make(kind)
    pl.seed_everything(0, verbose=False)
    device = torch.device(second_device.NAME, 0)
    with tempfile.TemporaryDirectory() as folder:
        trainer = pl.Trainer(
            devices=1,
            strategy=SingleDeviceStrategy(device=device, accelerator=Second()),
            max_epochs=EPOCHS,
            log_every_n_steps=1,
            logger=False,
            enable_checkpointing=False,  # PyTorch cannot pickle storages of such a device
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
            default_root_dir=folder,
            callbacks=[first, *callbacks, last],
        )
        trainer.fit(module, SyntheticDataModule(num_train, num_val, batch_size=8))
    waits, operators, lines = {}, {}, collections.Counter()
    for name, all_of_them in watches.items():
        late = all_of_them[len(all_of_them) // EPOCHS :]
        operators[name] = late[-1].ops
        for watch in late:
            found = count_waits(watch)
            waits[name] = waits.get(name, 0) + sum(found.values()) / len(late)
            lines.update({f"{name}: {line}": n for line, n in found.items()})
    metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
    counted = {"waits": waits, "operators": operators, "lines": lines.most_common(12)}
    return {**counted, "metrics": metrics}


def explain():
    """What `litcam explain` gives on both devices, and its waits on the second one.

    The waits of a second photo are told apart: with the first a layer is looked for.
    """
    numbers = np.random.default_rng(0).integers(0, 256, (2, 90, 120, 3), dtype=np.uint8)
    words = ["--models", "test_resnet", "test_vit", "--classes", "cat", "7", "predicted"]
    words += ["--methods", "gradcam", "layercam", "eigencam"]
    found = {}
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        for at, pixels in enumerate(numbers):
            Image.fromarray(pixels).save(f"{at}.png")
        runs = {"cpu": ["cpu", ["0.png", "1.png"]], "one": ["auto", ["0.png"]]}
        runs["two"] = [f"{second_device.NAME}:0", ["0.png", "1.png"]]
        for name, (device, photos) in runs.items():
            with second_device.Watch() as watch, contextlib.redirect_stdout(io.StringIO()):
                main(["explain", *photos, *words, "--device", device, "--out", name])
            record = json.loads(Path(name, "explain.json").read_text())
            maps = [np.asarray(Image.open(Path(name, at["file"])), int) for at in record]
            found[name] = record, maps, count_waits(watch)
    (cpu, maps, _), (_, _, one), (there, maps_there, two) = (found[name] for name in runs)
    waits = {"first": one.total(), "second": (two - one).total()}
    return {
        "cpu": cpu,
        "there": there,
        # Of 255; also the other device's attention adds up in its own order.
        "apart": max(int(np.abs(a - b).max()) for a, b in zip(maps, maps_there, strict=True)),
        "waits": waits,
        "lines": (two - one).most_common(12),
    }


if __name__ == "__main__":
    kind = sys.argv[1]
    print(json.dumps(explain() if kind == "explain" else fit(kind)))
