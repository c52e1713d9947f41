"""Which validation images are shown, and how the network's input becomes pixels again."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import lightning.pytorch as pl
import numpy as np
from lightning.pytorch.utilities import CombinedLoader
from torch.utils.data import DataLoader, DistributedSampler, SequentialSampler, Subset

from litcam.callbacks.validation.batch import Batch
from litcam.callbacks.validation.device import read_once


@dataclass
class ShownImages:
    """The images of one validation loader that are shown, by their index in the dataset.

    The same ones at every epoch and on any number of processes. Where nothing tells the index of
    an image in a batch (a shuffled loader of plain tuples) the first ones that pass are shown.

    Attributes:
        loader: gives the batches.
        indices: dataset indices, in order; empty while they are not known.
        num_images: how many are shown.
        by_index: whether batches tell, or let one compute, the dataset index.
    """

    loader: Any
    indices: list[int]
    num_images: int
    by_index: bool

    @classmethod
    def choose(
        cls, trainer: pl.Trainer, loader: Any, num_batches: float, wanted: Sequence[int], num: int
    ) -> "ShownImages":
        """Spreads `num` images evenly over what is validated, unless `wanted` names them."""
        size = _length(getattr(loader, "dataset", None))
        if size is None:
            return cls(loader, [], num, by_index=False)
        if wanted:
            # Another loader may be larger.
            here = [index for index in wanted if 0 <= index < size]
            return cls(loader, _below(loader.dataset, here), len(here), by_index=True)
        batch_size = getattr(loader, "batch_size", None)
        if batch_size:
            size = min(size, int(min(num_batches, size) * batch_size * trainer.world_size))
        spread = np.linspace(0, size - 1, min(num, size)).round().astype(int)
        chosen = _below(loader.dataset, sorted(set(spread.tolist())))
        return cls(loader, chosen, num, by_index=True)

    def describe(self) -> str:
        """How many there are, and how they were chosen."""
        order = "by dataset index" if self.by_index else "the first that pass, by unknown index"
        return f"{len(self.indices) or self.num_images} images, {order}"

    def find_all(self, batch: Batch, batch_idx: int) -> dict[int, int]:
        """Every position in the batch with its dataset index, or the number of the image.

        Where no index is known, they are counted as if all batches were of one size.
        """
        indices = self._indices_of(batch, batch_idx)
        if indices is None:
            self.by_index = False
            start = batch_idx * (getattr(self.loader, "batch_size", None) or batch.size)
            return {row: start + row for row in range(batch.size)}
        return dict(enumerate(indices))

    def find(self, batch: Batch, batch_idx: int, seen: set[int]) -> dict[int, int]:
        """Positions in the batch of images to show that were not seen, with dataset indices."""
        wanted = set(self.indices) - seen
        if self.by_index and self.indices and not wanted:
            return {}  # without waiting for the device to tell what this batch holds
        indices = self._indices_of(batch, batch_idx) if self.by_index else None
        if indices is None:
            self.by_index = False
            start = len(seen)
            return {i: start + i for i in range(min(self.num_images - start, batch.size))}
        found: dict[int, int] = {}
        for position, index in enumerate(indices):
            if index in wanted and index not in found.values():
                found[position] = index
        return found

    def _indices_of(self, batch: Batch, batch_idx: int) -> list[int] | None:
        """Dataset indices of a batch: told by it, or computed where the order is known.

        They are fewer than its images where some are not known, and None where nothing tells.
        """
        if batch.index is not None:
            return read_once(batch.index)
        loader, batch_size = self.loader, getattr(self.loader, "batch_size", None)
        if not isinstance(loader, DataLoader) or batch_size is None:
            return None
        dataset: Any = loader.dataset
        start, sampler = batch_idx * batch_size, cast(Any, loader.sampler)
        spread = isinstance(sampler, DistributedSampler) and not sampler.shuffle
        if not spread and not isinstance(sampler, SequentialSampler):
            return None
        expected = min(batch_size, len(sampler) - start)
        if batch.size != expected:
            # Of a batch that is too short images were left out, and nobody knows which.
            return [] if batch.size < expected else None
        positions = range(start, start + batch.size)
        if not isinstance(sampler, DistributedSampler):
            return _below(dataset, positions)
        # Past the end a sampler repeats images from the start, so that all processes have as many.
        places = [sampler.rank + position * sampler.num_replicas for position in positions]
        return _below(dataset, [place % len(dataset) for place in places])


def check_indices(loaders: Sequence[Any], wanted: Sequence[int]) -> None:
    """Looks dataset indices up.

    Raises:
        IndexError: one is in no loader's dataset.
    """
    sizes = [_length(getattr(loader, "dataset", None)) for loader in loaders]
    if None in sizes:
        return
    most = max((size for size in sizes if size is not None), default=0)
    wrong = [index for index in wanted if not 0 <= index < most]
    if wrong:
        raise IndexError(f"image {wrong[0]} does not exist: the set has {most} images")


def find_loaders(trainer: pl.Trainer) -> tuple[list[Any], Sequence[float]]:
    """The loaders that are evaluated now, and how many batches of each."""
    loaders = trainer.test_dataloaders if trainer.testing else trainer.val_dataloaders
    batches = trainer.num_test_batches if trainer.testing else trainer.num_val_batches
    return CombinedLoader(loaders, "sequential").flattened, batches


def find_dataset(loader: Any) -> Any:
    """The dataset behind a loader that names classes or images, out of `Subset` and the like."""
    dataset: Any = getattr(loader, "dataset", None)
    while not hasattr(dataset, "classes"):
        inner = getattr(dataset, "dataset", None)
        # Of a ConcatDataset's parts the first names the classes of all.
        parts = getattr(dataset, "datasets", None)
        first = parts[0] if isinstance(parts, list | tuple) and parts else None
        if inner is None and first is None:
            break
        dataset = inner if inner is not None else _Classes(getattr(first, "classes", None))
    return dataset


@dataclass
class _Classes:
    """Names of classes without names of images: places in a whole are none in its first part."""

    classes: Any


def _length(dataset: Any) -> int | None:
    try:
        return len(dataset)
    except (TypeError, NotImplementedError):
        return None


def _below(dataset: Any, places: Sequence[int]) -> list[int]:
    """Places in a `Subset` as places in the dataset below, which knows keys and `index`."""
    while isinstance(dataset, Subset):
        places, dataset = [dataset.indices[place] for place in places], dataset.dataset
    return list(places)
