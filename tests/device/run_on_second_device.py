"""Trains and validates on the second device, and tells the waits of each kind of step as JSON.

python run_on_second_device.py classifier | mixup | costly | vit | swin | cnn
"""

import collections
import json
import logging
import sys
import tempfile
import warnings

import lightning.pytorch as pl
import second_device
import torch
from lightning.pytorch.accelerators import Accelerator
from lightning.pytorch.strategies import SingleDeviceStrategy

from litcam.callbacks import Coverage, GradCAM, Neighbours, Reconstructions
from litcam.datamodules import SyntheticDataModule
from litcam.lightning_modules import MAE, Classifier

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
    if kind == "mixup":
        options = {"img_size": 64, "depth": 2}
        module = Classifier("vit_tiny_patch16_224", 8, backbone_args=options, mixup=0.8, cutmix=1)
        return module, [GradCAM(num_images=2)], 32, 64
    metrics = ["deletion", "average_drop", "road"] if kind == "costly" else None
    return Classifier("resnet10t", 8), [Coverage(), GradCAM(4, metrics=metrics)], 32, 64


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
            logger=False,
            enable_checkpointing=False,  # PyTorch cannot pickle storages of such a device
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
            default_root_dir=folder,
            callbacks=[first, *callbacks, last],
        )
        trainer.fit(module, SyntheticDataModule(num_train, num_val, batch_size=8))
    waits, lines = {}, collections.Counter()
    for name, all_of_them in watches.items():
        late = all_of_them[len(all_of_them) // EPOCHS :]
        for watch in late:
            found = watch.syncs + collections.Counter(
                {k: n for k, n in watch.copies.items() if k.startswith(second_device.NAME)}
            )
            waits[name] = waits.get(name, 0) + sum(found.values()) / len(late)
            lines.update({f"{name}: {line}": n for line, n in found.items()})
    metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
    return {"waits": waits, "lines": lines.most_common(12), "metrics": metrics}


if __name__ == "__main__":
    print(json.dumps(fit(sys.argv[1])))
