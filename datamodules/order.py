"""Which image is taken when: every one of an epoch once, on any number of processes.

The order of an epoch is a function of seed and epoch alone. Each process takes one stretch of it,
batch by batch, so that images that lie together are read together. What an interrupted epoch has
already taken follows from how many batches were done; the rest of the order is then shared out
among the processes there are now, be they more, fewer or the same.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DistributedSampler

from litcam.datamodules.sources.dataset import Draw, ImageDataset

__all__ = ["EvalSampler", "Order", "Stretch", "TrainSampler"]

# Images of so many chunks are shuffled among each other.
CHUNKS_SHUFFLED_TOGETHER = 8

Order = NDArray[np.int64]


class Stretch(NamedTuple):
    """Part of an epoch that was taken by so many processes, each ``num_batches`` batches."""

    num_processes: int
    batch_size: int
    num_batches: int


def shuffled(num_images: int, chunks: Order | None, seed: np.random.SeedSequence) -> Order:
    """The order of an epoch.

    Args:
        num_images: How many there are.
        chunks: int64 ``(num_images,)``, in which chunk each image lies. Chunks are then taken in
            a random order and images shuffled within `CHUNKS_SHUFFLED_TOGETHER` of them.
        seed: Fixes the order.

    Returns:
        Indices, int64 ``(num_images,)``.
    """
    generator = np.random.Generator(np.random.PCG64(seed))
    if chunks is None:
        return generator.permutation(num_images)
    turn = generator.permutation(int(chunks.max(initial=-1)) + 1)
    together = turn[chunks] // CHUNKS_SHUFFLED_TOGETHER
    return np.argsort(together + generator.random(num_images), kind="stable").astype(np.int64)


def remaining(order: Order, stretches: Sequence[Stretch]) -> Order:
    """What is left of an order after some stretches of it, in the same order."""
    for num_processes, batch_size, num_batches in stretches:
        share = len(order) // (num_processes * batch_size) * batch_size
        shares = order[: num_processes * share].reshape(num_processes, share)
        left = shares[:, num_batches * batch_size :].reshape(-1)
        order = np.concatenate([left, order[num_processes * share :]])
    return order


class TrainSampler(DistributedSampler[Draw]):
    """Draws of one process: each image of an epoch at most once on all processes together.

    Fewer images than one batch on every process are left over at the end of an epoch; other ones
    each time. It is Lightning's own kind of sampler, so Lightning leaves it in place.

    Args:
        dataset: To draw from.
        batch_size: Images this process takes at once.
        num_replicas: How many processes share an epoch.
        rank: Which of them this is.
        seed: Fixes the order, and the random transform of each image.
    """

    def __init__(
        self, dataset: ImageDataset, batch_size: int, *, num_replicas: int, rank: int, seed: int
    ) -> None:
        super().__init__(dataset, num_replicas=num_replicas, rank=rank, seed=seed, drop_last=True)
        self.batch_size = batch_size
        self.images = dataset
        self.num_batches = len(dataset) // (num_replicas * batch_size)
        self.stretches: list[Stretch] = []
        self.on_epoch: Callable[[], None] | None = None

    def __len__(self) -> int:
        return self.num_batches * self.batch_size

    def __iter__(self) -> Iterator[Draw]:
        seeds = np.random.SeedSequence([self.seed, self.epoch, 1]).generate_state(len(self.images))
        mine = self.indices()
        yield from map(Draw, mine.tolist(), seeds[mine].tolist())

    def set_epoch(self, epoch: int) -> None:
        """Starts another epoch; the one that is under way stays where it is."""
        if epoch != self.epoch:
            self.epoch, self.stretches = epoch, []
        if self.on_epoch:
            self.on_epoch()

    def indices(self) -> Order:
        """What this process has yet to take of the epoch, int64."""
        rest = self._rest()
        num_batches = len(rest) // (self.num_replicas * self.batch_size)
        share = num_batches * self.batch_size
        return rest[self.rank * share : (self.rank + 1) * share]

    def taken(self) -> Order:
        """What all processes took of this epoch before it was interrupted, int64."""
        return np.setdiff1d(np.arange(len(self.images)), self._rest(), assume_unique=True)

    def _rest(self) -> Order:
        seed = np.random.SeedSequence([self.seed, self.epoch])
        return remaining(shuffled(len(self.images), self.images.chunks, seed), self.stretches)


class EvalSampler(DistributedSampler[int]):
    """Every image exactly once on all processes together, each a stretch as they are stored."""

    def __init__(self, dataset: ImageDataset, *, num_replicas: int, rank: int) -> None:
        super().__init__(dataset, num_replicas=num_replicas, rank=rank, shuffle=False)
        self._order = torch.as_tensor(dataset.storage_order())
        self._mine = self._order.tensor_split(num_replicas)[rank].tolist()

    def __len__(self) -> int:
        return len(self._mine)

    def __iter__(self) -> Iterator[int]:
        return iter(self._mine)
