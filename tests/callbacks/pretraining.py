"""Tiny masked autoencoders of the three families, and runs of them."""

import lightning.pytorch as pl
import torch
from strangers import CALM

from litcam.datamodules import SyntheticDataModule
from litcam.lightning_modules import MAE

SIZES = {"vit": 32, "swin": 32, "cnn": 64}
BACKBONES = {
    "vit": (
        "vit_tiny_patch16_224",
        {"patch_size": 8, "embed_dim": 24, "depth": 1, "num_heads": 2, "drop_path_rate": 0.1},
    ),
    "swin": (
        "swin_tiny_patch4_window7_224",
        {
            "patch_size": 2,
            "window_size": 2,
            "embed_dim": 16,
            "depths": (1, 1, 1),
            "num_heads": (1, 2, 2),
        },
    ),
    "cnn": ("resnet10t", {"channels": (8, 8, 16, 16), "stem_width": 8}),
}


def make_mae(family="vit", **kwargs):
    name, options = BACKBONES[family]
    settings = {"decoder_dim": 32, "decoder_depth": 1, "warmup_epochs": 0, "lr": 0.05, **kwargs}
    return MAE(name, image_size=SIZES[family], backbone_args=options, **settings)


def make_data(family="vit", **kwargs):
    sizes = {"num_train": 16, "num_val": 10, "num_classes": 2, "batch_size": 4}
    return SyntheticDataModule(image_size=SIZES[family], **{**sizes, **kwargs})


def pretrain(*callbacks, mae=None, data=None, **kwargs):
    trainer = pl.Trainer(callbacks=list(callbacks), **{**CALM, "max_epochs": 2, **kwargs})
    torch.manual_seed(0)
    trainer.fit(mae or make_mae(), data or make_data())
    return trainer
