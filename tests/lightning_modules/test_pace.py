"""How it goes, within an epoch."""

import csv
from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger
from torch.utils.data import DataLoader

from litcam.lightning_modules import MAE, Classifier

BATCHES = 7
MODULES = {
    "classifier": lambda: Classifier("resnet10t", 4, backbone_args={"channels": (8, 8, 8, 8)}),
    "mae": lambda: MAE("vit_tiny_patch16_224", image_size=32, decoder_dim=32, decoder_depth=1,
                       backbone_args={"patch_size": 8, "depth": 1}, warmup_epochs=0),
}  # fmt: skip


@pytest.mark.parametrize("kind", MODULES)
def test_loss_and_speed_are_logged_within_an_epoch(kind, tmp_path):
    images, labels = torch.randn(4 * BATCHES, 3, 32, 32), torch.arange(4 * BATCHES) % 4
    loader = DataLoader(list(zip(images, labels, strict=True)), 4)
    losses = []

    class Keep(pl.Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            losses.append(outputs["loss"].item())

    trainer = pl.Trainer(
        accelerator="cpu", max_epochs=2, log_every_n_steps=3, enable_progress_bar=False,
        enable_model_summary=False, enable_checkpointing=False, callbacks=[Keep()],
        logger=CSVLogger(tmp_path, name="", version=""),
    )  # fmt: skip
    trainer.fit(MODULES[kind](), loader, loader)
    with (Path(tmp_path) / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    told = {int(r["step"]): float(r["train/loss_step"]) for r in rows if r["train/loss_step"]}
    assert list(told) == [2, 5, 8, 11]
    assert all(losses[step] == pytest.approx(value, rel=1e-5) for step, value in told.items())
    speeds = [float(r["train/images_per_second"]) for r in rows if r["train/images_per_second"]]
    assert len(speeds) == len(told)
    assert min(speeds) > 0
    assert "train/loss_step" in trainer.progress_bar_metrics
