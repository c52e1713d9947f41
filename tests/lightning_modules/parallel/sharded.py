"""A run on real photos by one process or by several that divide the weights, for the tests.

``python sharded.py OPTIONS`` with a JSON of `main`'s arguments. Every process writes what it saw;
process `r` takes the images `r, r + world, …` of each split, so that a batch of all processes holds
the images of one process's batch, and one of them has a validation batch more than the others.
"""

import json
import signal
import sys
from pathlib import Path

import lightning.pytorch as pl
import numpy as np
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities.exceptions import SIGTERMException
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from litcam.callbacks import Coverage, EndTogether, GradCAM, Neighbours, Reconstructions, grad_cam
from litcam.callbacks.explained.shown_maps import log_maps
from litcam.datamodules import ImageNetDataModule
from litcam.lightning_modules import MAE, Classifier

torch.set_num_threads(1)

VIT = {"patch_size": 16, "depth": 4, "embed_dim": 48, "num_heads": 3, "img_size": 64}
SWIN = {"embed_dim": 24, "depths": (2, 2, 2, 2), "num_heads": (2, 2, 4, 4), "window_size": 4}
CNN = {"depths": (1, 1, 2, 1), "dims": (8, 16, 24, 32)}
FAMILIES = {
    "vit": ("vit_tiny_patch16_224", VIT),
    "average": ("vit_tiny_patch16_224", {**VIT, "global_pool": "avg", "class_token": False}),
    "swin": ("swin_tiny_patch4_window7_224", {**SWIN, "img_size": 64}),
    "cnn": ("convnext_atto", CNN),
    "resnet": ("resnet10t", {"channels": (8, 8, 16, 24)}),
}


class Photos(Dataset):
    """Cats and dogs of 64x64 pixels, in turn."""

    def __init__(self, folder, count):
        kinds = [sorted(path.iterdir()) for path in sorted(Path(folder).iterdir())]
        files = [kinds[i % 2][i // 2] for i in range(count)]
        arrays = [np.asarray(Image.open(f).convert("RGB").resize((64, 64))) for f in files]
        images = torch.tensor(np.stack(arrays)).permute(0, 3, 1, 2) / 255
        self.images = (images - 0.45) / 0.23

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        return {"image": self.images[index], "label": index % 2, "index": index}


class Data(pl.LightningDataModule):
    num_classes, image_size, mean, std = 2, 64, (0.45,) * 3, (0.23,) * 3
    class_names = ("cat", "dog")

    def __init__(self, folder, batch, num_val=9):
        super().__init__()
        self.batch = batch
        self.train, self.val = Photos(f"{folder}/train", 24), Photos(f"{folder}/val", num_val)

    def _load(self, photos):
        rank, world = self.trainer.global_rank, self.trainer.world_size
        return DataLoader(photos, self.batch // world, sampler=range(rank, len(photos), world))

    def train_dataloader(self):
        return self._load(self.train)

    def val_dataloader(self):
        return self._load(self.val)

    test_dataloader = val_dataloader


class Watch(pl.Callback):
    """Losses of all steps and maps of all validations; and a signal or a bad weight at a step."""

    def __init__(self, kill, how, poison):
        self.losses, self.maps, self.poison = [], [], poison
        self.kill, self.signal = kill, signal.Signals[how]

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        # Only one process sees it before the gradients are added up.
        if trainer.global_step == self.poison and trainer.global_rank == trainer.world_size - 1:
            batch["image"].fill_(float("nan"))

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        loss = outputs["loss"].detach().clone()
        self.losses.append(float(trainer.strategy.reduce(loss, reduce_op="mean")))
        self.held = count_held(module, trainer.optimizers[0])
        if trainer.global_step == self.kill:
            signal.raise_signal(self.signal)

    def on_validation_batch_end(self, trainer, module, *args, **kwargs):
        for part in module.parameters():
            assert type(part) is torch.nn.Parameter  # whole, as a stranger's callback expects them


def count_held(module, optimizer):
    """How many numbers of weights and of the optimiser's state a process holds between steps."""
    state = [value for kept in optimizer.state.values() for value in kept.values()]
    tensors = [value for value in (*module.parameters(), *state) if torch.is_tensor(value)]
    return sum(getattr(tensor, "_local_tensor", tensor).numel() for tensor in tensors)


def main(
    family, folder, photos, mae=False, imagenet=False, every=3, options=None, epochs=2, resume=None,
    num_val=9, refused=False, **given,
):  # fmt: skip
    pl.seed_everything(0, verbose=False)
    name, args = FAMILIES[family]
    world = int(given.get("devices", 1))
    watch = Watch(given.pop("kill", None), given.pop("how", "SIGKILL"), given.pop("poison", None))
    sizes = {"image_size": 64} if mae else {"num_classes": 2}
    if mae and family != "swin":
        sizes |= {"decoder_dim": 32, "decoder_depth": 2}
    sizes |= options or {}
    module = (MAE if mae else Classifier)(
        name, backbone_args=args, scale_lr=False, warmup_epochs=0, **sizes
    )
    shown = Reconstructions(num_images=3, steps=[2]) if mae else GradCAM(indices=[0, 3, 4, 7, 8])
    shown = [shown, *([Neighbours()] if mae else [])]
    if not refused:  # it would have the processes go apart
        shown.append(EndTogether())
    keep = ModelCheckpoint(
        f"{folder}/kept",
        save_last=True,
        every_n_train_steps=every,
        save_top_k=-1,
        save_on_exception=True,
    )
    trainer = pl.Trainer(
        accelerator="cpu", max_epochs=epochs, default_root_dir=folder, logger=False,
        callbacks=[*shown, Coverage(), watch, keep], use_distributed_sampler=False,
        enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=1, **given,
    )  # fmt: skip

    def log_and_keep(trainer, explained, *rest):
        watch.maps.append({each.index: each.maps for each in explained})
        log_maps(trainer, explained, *rest)

    grad_cam.log_maps = log_and_keep
    data = Data(photos, batch=8, num_val=num_val)
    module.allow_zero_length_dataloader_with_multiple_devices = True
    if imagenet:
        trainer.limit_val_batches = 1
        data = ImageNetDataModule(
            photos, batch_size=8 // world, num_workers=0, image_size=64, images_per_class=12,
            backbone=name,
        )  # fmt: skip
    try:
        trainer.fit(module, data, ckpt_path=resume, weights_only=False)
    except SIGTERMException:
        return
    except ValueError as error:
        if not refused:
            raise
        print(f"process {trainer.global_rank} was refused: {error}", flush=True)
        return
    if trainer.received_sigterm:
        return
    metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
    tested, last = {}, f"{folder}/kept/last.ckpt"
    if not mae:
        given = {"verbose": False, "weights_only": False}
        tested = trainer.test(module, data, ckpt_path=last, **given)[0]
    saved = {"losses": watch.losses, "maps": watch.maps, "metrics": metrics, "tested": tested}
    saved["held"] = watch.held
    torch.save(saved, f"{folder}/{trainer.global_rank}.pt")
    assert trainer.world_size == world


if __name__ == "__main__":
    for each in json.loads(sys.argv[1]):
        main(**each)
