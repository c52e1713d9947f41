"""ImageNetDataModule: photos with class labels, wherever they lie, for any timm network."""

from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningDataModule
from lightning.pytorch.utilities import rank_zero_info

from litcam.datamodules.loading import EvalLoader, TrainLoader, loader_options
from litcam.datamodules.order import evaluated
from litcam.datamodules.pixels.data_config import data_config
from litcam.datamodules.pixels.transforms import (
    erase,
    eval_transform,
    normalize,
    train_transform,
)
from litcam.datamodules.processes import BrokenImages, check_alike, check_same
from litcam.datamodules.progress import Progress, num_steps, run_seed
from litcam.datamodules.sources.dataset import ImageDataset
from litcam.datamodules.sources.folders import Folders, readable_names
from litcam.datamodules.sources.shards import Shards, is_sharded

# Of loaders, made in the same order by all processes.
_NUMBERS = count()


class ImageNetDataModule(LightningDataModule):
    """Photos with class labels: folders, Kaggle's ImageNet, or shards on a disk or in a bucket.

    A batch is a dict: ``image`` ``(batch, 3, image_size, image_size)``, uint8 from the workers and
    normalised floats from the device on, ``label`` ``(batch,)`` and ``index`` ``(batch,)``, the
    image's place in ``dataset.keys``. Training takes every image at most once an epoch, and leaves
    out fewer than one batch on each process; validation and test take every one exactly once.
    Order and random transforms are functions of the run's seed, the epoch and the image alone, and
    a checkpoint in the middle of an epoch goes on there, with any number of processes and workers.

    Args:
        root: Folder with ``train`` and ``val`` (``valid``, ``validation``), and ``test`` if there
            is one; Kaggle's folder with ``ILSVRC`` and ``LOC_val_solution.csv`` in it; or what
            `litcam convert` wrote, as a folder or as ``s3://bucket/imagenet`` or ``gs://…``.
        batch_size: Images a process takes at once.
        num_workers: Processes that read images, for each process that trains; by default its share
            of the cores of the machine.
        image_size: Side of the images in pixels.
        backbone: timm model whose mean, std, crop and interpolation to use; "" means ImageNet's.
        train_dir: Training folder, where it is not ``train``; relative to ``root`` or absolute.
        val_dir: Validation folder, where it is not ``val``; relative to ``root`` or absolute.
        images_per_class: Training images taken of each class, the first by name; by default all.
        crop_scale: Smallest and largest share of an image's area that a training crop takes.
        hflip: Probability of mirroring a training image.
        auto_augment: ``rand`` (timm's ``rand-m9-mstd0.5-inc1``), another recipe of timm's in its
            words, ``trivial`` (TrivialAugmentWide) or "" for neither.
        random_erasing: Probability of filling a box of a training image with noise.
        crop_pct: Share of the short side that evaluation sees; by default the backbone's.
        interpolation: ``bicubic`` or ``bilinear``; by default the backbone's.
        mean: One value a channel, of pixels in [0, 1]; by default of weights or backbone.
        std: The same.
        max_broken: Training images that may be unreadable in the whole run, on all processes: each
            is named, and another takes its place. One more stops the run. Validation and test stop
            at the first.
        timeout: Seconds the workers may take for a batch before the run ends with a line, as where
            a mount hangs; 0 waits for ever.
        cache_dir: Where files of a remote ``root`` are kept; by default ``~/.cache/litcam``.
        cache_gb: How many gigabytes of them on this machine, for all its processes; by default all.

    Attributes:
        classes: Names of the class folders, in the order of their numbers.
        class_names: The same as people say them ("tabby cat") where they are ImageNet's.
        num_classes: How many there are.
        mean: One value a channel, of pixels in [0, 1].
        std: One value a channel, of pixels in [0, 1].

    Raises:
        OSError: If ``root``, a split, its images or Kaggle's csv are missing.
        ValueError: If an argument or the classes make no sense.
    """

    def __init__(
        self,
        root: str | Path,
        batch_size: int = 64,
        *,
        num_workers: int | None = None,
        image_size: int = 224,
        backbone: str = "",
        train_dir: str = "",
        val_dir: str = "",
        images_per_class: int | None = None,
        crop_scale: tuple[float, float] = (0.08, 1.0),
        hflip: float = 0.5,
        auto_augment: str = "",
        random_erasing: float = 0.0,
        crop_pct: float | None = None,
        interpolation: str = "",
        mean: tuple[float, float, float] | None = None,
        std: tuple[float, float, float] | None = None,
        max_broken: int = 10,
        timeout: float = 900,
        cache_dir: str | Path | None = None,
        cache_gb: float | None = None,
    ) -> None:
        super().__init__()
        for name, value, least in (
            ("batch_size", batch_size, 1),
            ("image_size", image_size, 1),
            ("images_per_class", 1 if images_per_class is None else images_per_class, 1),
            ("num_workers", num_workers or 0, 0),
            ("max_broken", max_broken, 0),
            ("timeout", timeout, 0),
        ):
            if value < least:
                raise ValueError(f"{name} must be at least {least}, got {value}")
        if not 0 <= random_erasing <= 1:
            raise ValueError(f"random_erasing must be in [0, 1], got {random_erasing}")
        self.image_size, self.batch_size = image_size, batch_size
        self.images_per_class, self.num_workers = images_per_class, num_workers
        self.max_broken, self.timeout = max_broken, timeout
        self.random_erasing = random_erasing
        self._own = self.config = data_config(
            backbone, crop_pct=crop_pct, interpolation=interpolation, mean=mean, std=std
        )
        self._asked = mean is not None or std is not None
        self.mean, self.std = self.config.mean, self.config.std
        self.source: Shards | Folders = (
            Shards(root, cache_dir=cache_dir, cache_gb=cache_gb)
            if is_sharded(root)
            else Folders(root, train_dir=train_dir, val_dir=val_dir)
        )
        self.classes = self.source.classes
        self.class_names = readable_names(self.classes)
        self.num_classes = len(self.classes)
        self._random: Any = {"crop_scale": crop_scale, "hflip": hflip, "auto_augment": auto_augment}
        self._train_transform = train_transform(image_size, self.config, **self._random)
        self._eval_transform = eval_transform(image_size, self.config)
        self._datasets: dict[str, ImageDataset] = {}
        self._loaders: list[EvalLoader] = []
        self._progress = Progress()
        self._broken: BrokenImages | None = None
        self._known_broken: list[int] = []

    def setup(self, stage: str) -> None:
        """Lists the images of the splits that ``fit``, ``validate``, ``test`` or ``predict`` use.

        Raises:
            OSError: If a split has no images.
            ValueError: If Kaggle's csv and its images do not go together, or if processes see
                other images.
        """
        told = getattr(self.trainer and self.trainer.lightning_module, "images_of_weights", None)
        self._follow(told, "the weights were trained")
        splits = ["train"] if stage == "fit" else []
        splits.append("test" if stage == "test" and self.source.has_test else "val")
        for split in splits:
            check_alike(self._dataset(split))
        if stage == "fit":
            self._progress.clear()
            self._known_broken = []
            callbacks: list[Any] = getattr(self.trainer, "callbacks", [])
            if self._progress not in callbacks:
                callbacks.append(self._progress)

    def train_dataloader(self) -> TrainLoader | EvalLoader:
        """Shuffled batches, all of the same size on every process.

        Raises:
            ValueError: If there are too few images for one batch.
        """
        dataset, ranks = self._dataset("train"), self._ranks()
        share = len(dataset) // ranks["num_replicas"]
        if share < self.batch_size:
            raise ValueError(
                f"batch_size must be at most {share} for the {len(dataset)} training images in "
                f"{dataset.folder} on {ranks['num_replicas']} processes, got {self.batch_size}"
            )
        self._broken = BrokenImages(
            self.max_broken, name=str(next(_NUMBERS)), known=self._known_broken
        )
        if getattr(self.trainer, "overfit_batches", 0):
            return self._eval_loader("train")  # the same few batches each time
        loader = TrainLoader(
            dataset,
            self.batch_size,
            self._progress,
            **ranks,
            trainer=self.trainer,
            **self._loader_options(),
            broken=self._broken,
        )
        self._loaders.append(loader)
        return loader

    def state_dict(self) -> dict[str, Any]:
        """Where training is in its epoch; Lightning keeps it in the checkpoint."""
        if self.trainer is None or self._broken is None:
            return {}
        dataset, ranks = self._dataset("train"), self._ranks()
        return {
            **self._progress.state(self.trainer, ranks["num_replicas"], self.batch_size),
            "num_images": len(dataset),
            "fingerprint": dataset.fingerprint,
            "broken": self._broken.indices(),
            "normalisation": [list(self.mean), list(self.std)],
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Has training go on there.

        Raises:
            ValueError: If the data are not those the state is of.
        """
        self._follow(state_dict.get("normalisation"), "the checkpoint was trained")
        if self.trainer is not None and self.trainer.state.fn != "fit":
            return
        dataset = self._dataset("train")
        check_same(dataset, state_dict)
        self._progress.restore(state_dict)
        self._known_broken = state_dict["broken"]

    def val_dataloader(self) -> EvalLoader:
        """Every validation image exactly once."""
        return self._eval_loader("val")

    def test_dataloader(self) -> EvalLoader:
        """Every image of ``test/<class>`` exactly once, of validation where there is none."""
        if not self.source.has_test:
            rank_zero_info("There is no test split: what is tested are the validation images")
        return self._eval_loader("test" if self.source.has_test else "val")

    def predict_dataloader(self) -> EvalLoader:
        """Every validation image exactly once."""
        return self._eval_loader("val")

    def teardown(self, stage: str) -> None:
        """Ends the workers."""
        while self._loaders:
            self._loaders.pop().close()

    def on_exception(self, exception: BaseException) -> None:
        """Ends the workers."""
        self.teardown("fit")

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Makes uint8 images normalised floats on the device; other tensors are left alone."""
        if not isinstance(batch, dict) or batch["image"].dtype != torch.uint8:
            return batch
        module = self.trainer.lightning_module if self.trainer else None
        parameters = module.parameters() if module else iter(())
        dtype = next((p.dtype for p in parameters if p.is_floating_point()), torch.float32)
        images = normalize(batch["image"], self.config, dtype=dtype)
        if self.random_erasing and self.trainer and self.trainer.training:
            numbers = [run_seed(), self._ranks()["rank"], num_steps(self.trainer)]
            images = erase(images, self.random_erasing, numbers)
        return {**batch, "image": images}

    def _dataset(self, split: str) -> ImageDataset:
        if split not in self._datasets:
            train = split == "train"
            dataset = self.source.open(
                split,
                self._train_transform if train else self._eval_transform,
                images_per_class=self.images_per_class if train else None,
            )
            dataset.skip_broken = train
            self._datasets[split] = dataset
        return self._datasets[split]

    def _eval_loader(self, split: str) -> EvalLoader:
        dataset, ranks = self._dataset(split), self._ranks()
        if len(dataset) < ranks["num_replicas"]:
            raise ValueError(
                f"{dataset.folder} has {len(dataset)} images for {ranks['num_replicas']} "
                "processes, and each needs one; use fewer devices"
            )
        images = evaluated(len(dataset), dataset.chunks, **ranks)
        options = {**self._loader_options(), "broken": self._broken if split == "train" else None}
        loader = EvalLoader(dataset, images, self.batch_size, **options)
        self._loaders.append(loader)
        return loader

    def _ranks(self) -> dict[str, int]:
        # Asked of the strategy, because processes that share one model also share their images.
        kwargs = self.trainer.distributed_sampler_kwargs if self.trainer else None
        return {"num_replicas": 1, "rank": 0, **(kwargs or {})}

    def _loader_options(self) -> dict[str, Any]:
        return loader_options(self.num_workers, self.timeout, self.trainer)

    def _follow(self, told: Any, whose: str) -> None:
        """Normalises as weights were trained, unless mean or std were asked for."""
        mean, std = (tuple(each) for each in told or (self._own.mean, self._own.std))
        if not self._asked and (mean, std) != (self.mean, self.std):
            self.mean, self.std = mean, std
            self.config = replace(self._own, mean=mean, std=std)
            self._train_transform = train_transform(self.image_size, self.config, **self._random)
            self._datasets.clear()  # augmentation fills with the mean
            rank_zero_info(f"Images normalised as {whose}: mean {list(mean)}, std {list(std)}")
