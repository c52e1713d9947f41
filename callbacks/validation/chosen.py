"""Which validation images are shown, and how the network's input becomes pixels again."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import lightning.pytorch as pl
import numpy as np
from lightning.pytorch.utilities import CombinedLoader
from torch import Tensor
from torch.utils.data import DataLoader, DistributedSampler, SequentialSampler, Subset


@dataclass
class ShownImages:
    """The images of one validation loader that are shown, by their index in the dataset.

    The same ones at every epoch and on any number of processes. Where nothing tells the index of
    an image in a batch (a shuffled loader of plain tuples) the first ones that pass are shown.

    Attributes:
        indices: dataset indices, in order; empty while they are not known.
        num_images: how many are shown.
        by_index: whether batches tell, or let one compute, the dataset index.
    """

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
            return cls([], num, by_index=False)
        if wanted:
            # Another loader may be larger.
            here = [index for index in wanted if 0 <= index < size]
            return cls(_below(loader.dataset, here), len(here), by_index=True)
        batch_size = getattr(loader, "batch_size", None)
        if batch_size:
            size = min(size, int(min(num_batches, size) * batch_size * trainer.world_size))
        spread = np.linspace(0, size - 1, min(num, size)).round().astype(int)
        return cls(_below(loader.dataset, sorted(set(spread.tolist()))), num, by_index=True)

    def describe(self) -> str:
        """How many there are, and how they were chosen."""
        order = "by dataset index" if self.by_index else "the first that pass, by unknown index"
        return f"{len(self.indices) or self.num_images} images, {order}"

    def find_all(self, batch: Any, batch_idx: int, loader: Any) -> dict[int, int]:
        """Every position in the batch with its dataset index, or the number of the batch's image.

        Where no index is known, they are counted as if all batches were of one size.
        """
        indices = _indices_of(batch, batch_idx, loader)
        if indices is None:
            self.by_index, size = False, _size_of(batch)
            start = batch_idx * (getattr(loader, "batch_size", None) or size)
            return {row: start + row for row in range(size)}
        return dict(enumerate(indices))

    def find(self, batch: Any, batch_idx: int, loader: Any, seen: set[int]) -> dict[int, int]:
        """Positions in the batch of images to show, with their dataset indices."""
        if self.by_index and self.indices and seen.issuperset(self.indices):
            return {}  # without waiting for the device to tell what this batch holds
        indices = _indices_of(batch, batch_idx, loader) if self.by_index else None
        if indices is None:
            self.by_index = False
            start, size = len(seen), _size_of(batch)
            return {i: start + i for i in range(min(self.num_images - start, size))}
        wanted = set(self.indices) - seen
        found: dict[int, int] = {}
        for position, index in enumerate(indices):
            if index in wanted and index not in found.values():
                found[position] = index
        return found


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
    """The dataset behind a loader, out of `Subset` and the like."""
    dataset: Any = getattr(loader, "dataset", None)
    while hasattr(dataset, "dataset") and not hasattr(dataset, "classes"):
        dataset = dataset.dataset
    return dataset


def _length(dataset: Any) -> int | None:
    try:
        return len(dataset)
    except (TypeError, NotImplementedError):
        return None


def _size_of(batch: Any) -> int:
    if isinstance(batch, Tensor):
        return len(batch) if batch.ndim == 4 else 0
    if not isinstance(batch, Mapping | list | tuple):
        return 0
    values = batch.values() if isinstance(batch, Mapping) else batch
    return next(filter(None, map(_size_of, values)), 0)


def _indices_of(batch: Any, batch_idx: int, loader: Any) -> list[int] | None:
    """Dataset indices of a batch: told by it, or computed where the order is known."""
    if isinstance(batch, Mapping) and isinstance(batch.get("index"), Tensor):
        return batch["index"].tolist()
    batch_size = getattr(loader, "batch_size", None)
    if not isinstance(loader, DataLoader) or batch_size is None:
        return None
    dataset: Any = loader.dataset
    start, sampler = batch_idx * batch_size, loader.sampler
    positions = range(start, start + _size_of(batch))
    if isinstance(sampler, DistributedSampler) and not sampler.shuffle:
        # Past the end a sampler repeats images from the start, so that all processes have as many.
        places = [sampler.rank + position * sampler.num_replicas for position in positions]
        return _below(dataset, [place % len(dataset) for place in places])
    return _below(dataset, positions) if isinstance(sampler, SequentialSampler) else None


def _below(dataset: Any, places: Sequence[int]) -> list[int]:
    """Places in a `Subset` as places in the dataset below, which knows keys and `index`."""
    while isinstance(dataset, Subset):
        places, dataset = [dataset.indices[place] for place in places], dataset.dataset
    return list(places)
