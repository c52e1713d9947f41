"""Images made in seconds, with labels, boxes and masks: what litcam runs on without a download."""

from __future__ import annotations

import warnings
from typing import Any

import lightning.pytorch as pl
import torch
from einops import rearrange
from lightning.pytorch.overrides.distributed import UnrepeatedDistributedSampler
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor
from torch.utils.data import DataLoader

from litcam.datamodules.synthetic.images import SyntheticImages
from litcam.datamodules.synthetic.patterns import PATTERNS

__all__ = ["SyntheticDataModule"]


def _keep(batch: Any) -> Any:
    """Collates nothing: `__getitems__` gives whole batches. A function so that it pickles."""
    return batch


class SyntheticDataModule(pl.LightningDataModule):
    """Patterned objects on photos; the task is to name the pattern. Not real images.

    Every image shows one object with a random outline, size, pose and colours on a random crop of
    one of two photos (see `litcam.datamodules.synthetic.backgrounds` for their credit), among plain
    shapes without a pattern. Its class is its pattern; colour says nothing about it. Images are
    drawn once, from `seed`, and held in memory; train, val and test differ in all but the photos.

    Args:
        num_train: number of training images.
        num_val: number of validation images, and of test images.
        num_classes: 2 to 10, the first of `PATTERNS`.
        image_size: the side of the images in pixels.
        batch_size: images in a batch on one device.
        shortcut: probability that the colour of a patch in the top left corner is that of the
            class, in every split; otherwise it is that of a random class. True is 1. False or 0
            draws no patch. The patch is never inside `mask`.
        seed: the data's own; the same seed draws the same images in any run.
        augment: flips and transposes training images at random.

    Attributes:
        classes: the classes' names as a folder would have them.
        class_names: the same for captions.
        mean: what `on_after_batch_transfer` subtracts from images in [0, 1].
        std: what it divides them by then.

    Raises:
        ValueError: an argument is out of range.

    >>> SyntheticDataModule(num_classes=3).class_names
    ['stripes', 'checks', 'dots']
    """

    mean: tuple[float, float, float] = IMAGENET_DEFAULT_MEAN
    std: tuple[float, float, float] = IMAGENET_DEFAULT_STD

    def __init__(
        self,
        num_train: int = 4000,
        num_val: int = 800,
        *,
        num_classes: int = 8,
        image_size: int = 64,
        batch_size: int = 64,
        shortcut: bool | float = False,
        seed: int = 0,
        augment: bool = True,
    ) -> None:
        super().__init__()
        for name, value, low, high in (
            ("num_train", num_train, 1, None),
            ("num_val", num_val, 1, None),
            ("num_classes", num_classes, 2, len(PATTERNS)),
            ("image_size", image_size, 32, None),
            ("batch_size", batch_size, 1, None),
            ("shortcut", shortcut, 0, 1),
            ("seed", seed, 0, None),
        ):
            if value < low or (high is not None and value > high):
                wanted = f"at least {low}" if high is None else f"between {low} and {high}"
                raise ValueError(f"{name} must be {wanted}, got {value}")
        self.num_train, self.num_val = num_train, num_val
        self.num_classes, self.image_size, self.batch_size = num_classes, image_size, batch_size
        self.shortcut, self.seed, self.augment = float(shortcut), seed, augment
        self.classes = list(PATTERNS)[:num_classes]
        self.class_names = [name.replace("_", " ") for name in self.classes]
        self._splits: dict[str, SyntheticImages] = {}

    def setup(self, stage: str | None = None) -> None:
        """Draws the splits that `stage` needs and that are not there yet."""
        needed = {"fit": ("train", "val"), "validate": ("val",), None: ("train", "val", "test")}
        for split in needed.get(stage, ("test",)):
            if split not in self._splits:
                self._splits[split] = SyntheticImages(
                    split,
                    self.num_train if split == "train" else self.num_val,
                    num_classes=self.num_classes,
                    image_size=self.image_size,
                    shortcut=self.shortcut,
                    seed=self.seed,
                )

    def train_dataloader(self) -> DataLoader[dict[str, Tensor]]:
        """Shuffled; a last batch that is not full is left out, for BatchNorm's sake."""
        return self._loader("train")

    def val_dataloader(self) -> DataLoader[dict[str, Tensor]]:
        """In order, every image exactly once on any number of devices."""
        return self._loader("val")

    def test_dataloader(self) -> DataLoader[dict[str, Tensor]]:
        """As `val_dataloader`, over other images."""
        return self._loader("test")

    def predict_dataloader(self) -> DataLoader[dict[str, Tensor]]:
        """The same as `test_dataloader`."""
        return self._loader("test")

    def _loader(self, split: str) -> DataLoader[dict[str, Tensor]]:
        # Workers would only copy what is already in memory, so Lightning's advice is not for here.
        warnings.filterwarnings("ignore", message=".*does not have many workers.*")
        dataset, train = self._splits[split], split == "train"
        several = self.trainer is not None and self.trainer.world_size > 1
        return DataLoader(
            dataset,
            batch_size=self.batch_size,  # by keyword: Lightning's predict makes the loader again
            shuffle=train,
            sampler=UnrepeatedDistributedSampler(dataset, shuffle=False)
            if several and not train
            else None,
            drop_last=train and len(dataset) >= self.batch_size,
            collate_fn=_keep,
        )

    def on_after_batch_transfer(self, batch: dict[str, Any], dataloader_idx: int) -> dict[str, Any]:
        """Makes `image` float, augments it in training and normalises it, on the device."""
        if self.trainer is not None and self.trainer.training and self.augment:
            batch = _flip(batch)
        mean, std = (
            rearrange(batch["image"].new_tensor(value, dtype=torch.float32), "rgb -> rgb 1 1") * 255
            for value in (self.mean, self.std)
        )
        return {**batch, "image": (batch["image"].float() - mean) / std}


def _flip(batch: dict[str, Any]) -> dict[str, Any]:
    """Mirrors and transposes images at random, with their masks and boxes: all eight poses."""
    image, mask, box = batch["image"], batch["mask"], batch["box"]
    side = image.shape[-1]
    draws = torch.rand(3, len(image), device=image.device) < 0.5
    x1, y1, x2, y2 = box.unbind(1)
    for chosen, axis in ((draws[0], -1), (draws[1], -2)):
        image = torch.where(chosen[:, None, None, None], image.flip(axis), image)
        mask = torch.where(chosen[:, None, None], mask.flip(axis), mask)
        if axis == -1:
            x1, x2 = torch.where(chosen, side - x2, x1), torch.where(chosen, side - x1, x2)
        else:
            y1, y2 = torch.where(chosen, side - y2, y1), torch.where(chosen, side - y1, y2)
    image = torch.where(draws[2][:, None, None, None], image.mT, image)
    mask = torch.where(draws[2][:, None, None], mask.mT, mask)
    x1, y1 = torch.where(draws[2], y1, x1), torch.where(draws[2], x1, y1)
    x2, y2 = torch.where(draws[2], y2, x2), torch.where(draws[2], x2, y2)
    return {**batch, "image": image, "mask": mask, "box": torch.stack([x1, y1, x2, y2], dim=1)}
