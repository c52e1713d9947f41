"""ImageNetDataModule: photos in class folders, ready for any timm network."""

import dataclasses
import os
import warnings
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningDataModule
from lightning.pytorch.overrides.distributed import UnrepeatedDistributedSampler
from torch import Tensor
from torch.utils.data import DataLoader, DistributedSampler
from torchvision.transforms import v2

from litcam.datamodules.folders import FolderDataset, readable_names
from litcam.datamodules.layouts import find_layout
from litcam.datamodules.transforms import (
    AutoAugment,
    data_config,
    erase,
    eval_transform,
    normalize,
    train_transform,
)


class ImageNetDataModule(LightningDataModule):
    """Images in ``train/<class>`` and ``val/<class>``, or as Kaggle unpacks ImageNet.

    A batch is a dict: ``image`` ``(batch, 3, image_size, image_size)``, uint8 from the workers and
    normalised floats from the device on, ``label`` ``(batch,)`` and ``index`` ``(batch,)``, the
    image's place in ``dataset.keys``. Validation and test take every image exactly once, on any
    number of processes.

    Args:
        root: Folder with ``train`` and ``val`` (``valid``, ``validation``), and ``test`` if there
            is one, or Kaggle's folder with ``ILSVRC`` and ``LOC_val_solution.csv`` in it.
        batch_size: Images a process takes at once.
        num_workers: Processes that read images, for each process that trains; by default four, or
            one a core.
        image_size: Side of the images in pixels.
        backbone: timm model whose mean, std, crop and interpolation to use; "" means ImageNet's.
        train_dir: Training folder, where it is not ``train``; relative to ``root`` or absolute.
        val_dir: Validation folder, where it is not ``val``; relative to ``root`` or absolute.
        images_per_class: Training images taken of each class, the first by name; by default all.
        crop_scale: Smallest and largest share of an image's area that a training crop takes.
        hflip: Probability of mirroring a training image.
        auto_augment: ``rand`` (RandAugment), ``trivial`` (TrivialAugmentWide) or "" for neither.
        random_erasing: Probability of filling a box of a training image with noise.
        crop_pct: Share of the short side that evaluation sees; by default the backbone's.

    Attributes:
        classes: Names of the class folders, in the order of their numbers.
        class_names: The same as people say them ("tabby cat") where they are ImageNet's.
        num_classes: How many there are.
        mean: One value a channel, of pixels in [0, 1].
        std: One value a channel, of pixels in [0, 1].

    Raises:
        FileNotFoundError: If ``root``, a split, its images or Kaggle's csv are missing.
        ValueError: If an argument or the classes make no sense.
    """

    def __init__(
        self,
        root: str | Path,
        batch_size: int = 64,
        *,
        num_workers: int = min(4, os.cpu_count() or 1),
        image_size: int = 224,
        backbone: str = "",
        train_dir: str = "",
        val_dir: str = "",
        images_per_class: int | None = None,
        crop_scale: tuple[float, float] = (0.08, 1.0),
        hflip: float = 0.5,
        auto_augment: AutoAugment = "",
        random_erasing: float = 0.0,
        crop_pct: float | None = None,
    ) -> None:
        super().__init__()
        _check_counts(
            batch_size=batch_size,
            image_size=image_size,
            images_per_class=1 if images_per_class is None else images_per_class,
        )
        if num_workers < 0:
            raise ValueError(f"num_workers must be at least 0, got {num_workers}")
        _check_shares(hflip=hflip, random_erasing=random_erasing)
        if crop_pct is not None and not 0 < crop_pct <= 1:
            raise ValueError(f"crop_pct must be in (0, 1], got {crop_pct}")
        if not 0 < crop_scale[0] <= crop_scale[1] <= 1:
            raise ValueError(f"crop_scale must be 0 < smallest <= largest <= 1, got {crop_scale}")
        if auto_augment not in ("", "rand", "trivial"):
            raise ValueError(f"auto_augment must be '', 'rand' or 'trivial', got {auto_augment!r}")
        self.batch_size = batch_size
        self.images_per_class = images_per_class
        self.num_workers = num_workers
        self.random_erasing = random_erasing
        self.config = data_config(backbone)
        if crop_pct is not None:
            self.config = dataclasses.replace(self.config, crop_pct=crop_pct)
        self.mean, self.std = self.config.mean, self.config.std
        self.layout = find_layout(root, train_dir=train_dir, val_dir=val_dir)
        self.classes = self.layout.classes
        self.class_names = readable_names(self.classes)
        self.num_classes = len(self.classes)
        self._train_transform = train_transform(
            image_size, self.config, crop_scale=crop_scale, hflip=hflip, auto_augment=auto_augment
        )
        self._eval_transform = eval_transform(image_size, self.config)
        self._datasets: dict[str, FolderDataset] = {}

    def setup(self, stage: str) -> None:
        """Lists the images of the splits that ``fit``, ``validate``, ``test`` or ``predict`` use.

        Raises:
            FileNotFoundError: If a split has no images.
            ValueError: If Kaggle's csv and its images do not go together.
        """
        if stage == "fit":
            self._dataset("train", self._train_transform).warn_of_empty_classes()
        if stage == "test" and self.layout.test:
            self._dataset("test", self._eval_transform)
        else:
            self._dataset("val", self._eval_transform)

    def train_dataloader(self) -> DataLoader[dict[str, Tensor]]:
        """Shuffled batches, all of the same size on every process.

        Raises:
            ValueError: If there are too few images for one batch.
        """
        dataset = self._dataset("train", self._train_transform)
        ranks = self._ranks()
        share = len(dataset) // ranks["num_replicas"]
        if share < self.batch_size:
            raise ValueError(
                f"batch_size must be at most {share} for the {len(dataset)} training images in "
                f"{dataset.folder} on {ranks['num_replicas']} processes, got {self.batch_size}"
            )
        sampler: DistributedSampler[dict[str, Tensor]] | None = None
        if ranks["num_replicas"] > 1:
            seed = int(os.environ.get("PL_GLOBAL_SEED", 0))
            sampler = DistributedSampler(dataset, **ranks, shuffle=True, seed=seed, drop_last=True)
        return self._loader(dataset, sampler=sampler, shuffle=sampler is None, drop_last=True)

    def val_dataloader(self) -> DataLoader[dict[str, Tensor]]:
        """Every validation image exactly once, in the order of the dataset."""
        return self._eval_loader("val")

    def test_dataloader(self) -> DataLoader[dict[str, Tensor]]:
        """Every image of ``test/<class>`` exactly once, of validation where there is none."""
        return self._eval_loader("test" if self.layout.test else "val")

    def predict_dataloader(self) -> DataLoader[dict[str, Tensor]]:
        """Every validation image exactly once, in the order of the dataset."""
        return self._eval_loader("val")

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Makes uint8 images normalised floats on the device; other tensors are left alone."""
        if not isinstance(batch, dict) or batch["image"].dtype != torch.uint8:
            return batch
        module = self.trainer.lightning_module if self.trainer else None
        parameters = module.parameters() if module else iter(())
        dtype = next((p.dtype for p in parameters if p.is_floating_point()), torch.float32)
        images = normalize(batch["image"], self.config, dtype=dtype)
        if self.random_erasing and self.trainer and self.trainer.training:
            images = erase(images, self.random_erasing)
        return {**batch, "image": images}

    def _dataset(self, split: str, transform: v2.Transform) -> FolderDataset:
        if split not in self._datasets:
            self._datasets[split] = FolderDataset(
                getattr(self.layout, split),
                self.classes,
                transform=transform,
                solution=self.layout.solution if split == "val" else None,
                images_per_class=self.images_per_class if split == "train" else None,
            )
        return self._datasets[split]

    def _eval_loader(self, split: str) -> DataLoader[dict[str, Tensor]]:
        dataset = self._dataset(split, self._eval_transform)
        ranks = self._ranks()
        if len(dataset) < ranks["num_replicas"]:
            raise ValueError(
                f"{dataset.folder} has {len(dataset)} images for {ranks['num_replicas']} "
                "processes, and each needs one; use fewer devices"
            )
        sampler = None
        if ranks["num_replicas"] > 1:
            sampler = UnrepeatedDistributedSampler(dataset, **ranks, shuffle=False)
        return self._loader(dataset, sampler=sampler, shuffle=False, drop_last=False)

    def _ranks(self) -> dict[str, int]:
        # Asked of the strategy, because processes that share one model also share their images.
        kwargs = self.trainer.distributed_sampler_kwargs if self.trainer else None
        return {"num_replicas": 1, "rank": 0, **(kwargs or {})}

    def _loader(
        self, dataset: FolderDataset, *, sampler: Any, shuffle: bool, drop_last: bool
    ) -> DataLoader[dict[str, Tensor]]:
        if self.num_workers < 2:
            # Chosen on purpose; Lightning would advise otherwise at every start.
            warnings.filterwarnings("ignore", message=".*does not have many workers.*")
        return DataLoader(
            dataset,
            batch_size=self.batch_size,
            shuffle=shuffle,
            sampler=sampler,
            drop_last=drop_last,
            num_workers=self.num_workers,
            pin_memory=torch.cuda.is_available(),
            persistent_workers=self.num_workers > 0,
            prefetch_factor=4 if self.num_workers else None,
        )


def _check_counts(**counts: int) -> None:
    for name, count in counts.items():
        if count < 1:
            raise ValueError(f"{name} must be at least 1, got {count}")


def _check_shares(**shares: float) -> None:
    for name, share in shares.items():
        if not 0 <= share <= 1:
            raise ValueError(f"{name} must be in [0, 1], got {share}")
