"""What it is trained on."""

from litcam.datamodules.imagenet import ImageNetDataModule
from litcam.datamodules.synthetic import SyntheticDataModule

__all__ = ["ImageNetDataModule", "SyntheticDataModule"]
