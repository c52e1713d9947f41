"""1003 images on two processes with two workers each: none missing, none twice, same accuracy."""

import json
import os
import subprocess
import sys
from pathlib import Path

import lightning as L
import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import Callback
from PIL import Image

from litcam.callbacks import Coverage
from litcam.datamodules import ImageNetDataModule
from litcam.datamodules.convert import convert
from litcam.lightning_modules import Classifier

COUNT, BATCH = 1003, 16


class Seen(Callback):
    """Remembers which images came by."""

    def __init__(self) -> None:
        self.train, self.val = [], []

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        self.train += batch["index"].tolist()

    def on_validation_batch_end(self, trainer, module, outputs, batch, batch_idx, **kwargs):
        self.val += batch["index"].tolist()


def run(root: str, out: str, devices: int) -> None:
    """Validates and fits, and writes what this process saw."""
    torch.set_num_threads(1)
    L.seed_everything(0, verbose=False)
    data = ImageNetDataModule(root, BATCH, num_workers=2, image_size=16, crop_pct=1.0)
    model = Classifier("test_resnet", data.num_classes)
    seen = Seen()
    trainer = L.Trainer(
        accelerator="cpu",
        devices=devices,
        strategy="ddp" if devices > 1 else "auto",
        max_epochs=1,
        num_sanity_val_steps=0,
        logger=False,
        enable_progress_bar=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        callbacks=[seen, Coverage()],
    )
    (measured,) = trainer.validate(model, data, verbose=False)
    validated, seen.val = seen.val, []
    trainer.fit(model, data)
    counted = {name: float(value) for name, value in trainer.callback_metrics.items()}
    report = {
        "measured": measured,
        "validated": validated,
        "train": seen.train,
        "val": seen.val,
        "counted": counted,
    }
    Path(out, f"{devices}-{trainer.global_rank}.json").write_text(json.dumps(report))


@pytest.fixture(scope="module")
def roots(tmp_path_factory):
    root = tmp_path_factory.mktemp("many")
    generator = np.random.default_rng(0)
    for split in ("train", "val"):
        for number in range(COUNT):
            folder = root / "folders" / split / "abcdefg"[number % 7]
            folder.mkdir(parents=True, exist_ok=True)
            pixels = generator.integers(0, 256, (16, 16, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / f"{number}.png")
    convert(root / "folders", root / "shards", chunk_bytes=50_000, say=lambda line: None)
    return root


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["folders", pytest.param("shards", marks=pytest.mark.slow)])
def test_two_processes_see_what_one_sees(roots, tmp_path, layout):
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    for devices in (1, 2):
        subprocess.run(
            [sys.executable, __file__, str(roots / layout), str(tmp_path), str(devices)],
            check=True,
            timeout=200,
            env=environment,
            capture_output=True,
        )
    names = ("1-0", "2-0", "2-1")
    alone, zero, one = (json.loads((tmp_path / f"{name}.json").read_text()) for name in names)
    assert zero["measured"]["val/acc1"] == alone["measured"]["val/acc1"]
    assert zero["measured"]["val/loss"] == pytest.approx(alone["measured"]["val/loss"], rel=1e-6)
    for key in ("validated", "val"):
        assert sorted(zero[key] + one[key]) == sorted(alone[key]) == list(range(COUNT))
    assert len(zero["train"]) == len(one["train"]) == COUNT // (2 * BATCH) * BATCH
    train = zero["train"] + one["train"]
    assert len(set(train)) == len(train) > COUNT - 2 * BATCH
    assert zero["counted"] == pytest.approx(one["counted"])
    counted = {
        name: value
        for name, value in zero["counted"].items()
        if "images" in name and "per_second" not in name
    }
    assert counted == {
        "train/images_unique": 992,
        "train/images_repeated": 0,
        "train/images_missing": 11,
        "val/images_unique": COUNT,
        "val/images_repeated": 0,
        "val/images_missing": 0,
    }


if __name__ == "__main__":
    run(sys.argv[1], sys.argv[2], int(sys.argv[3]))
