"""Batches of images, read ahead by worker processes."""

import os
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from lightning.pytorch import Trainer
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate, get_worker_info

from litcam.datamodules.order import Images, as_images, part, seeds
from litcam.datamodules.processes import BrokenImages
from litcam.datamodules.progress import Progress
from litcam.datamodules.sources.dataset import Broken, Draw, ImageDataset

__all__ = ["EvalLoader", "TrainLoader", "collate", "loader_options", "num_cores"]

BROKEN = "broken"
BLOCK = 4096
# A worker that is forked while a thread of the process group gives back the last collective's
# tensors can wait for ever (cpython#112275, mended in 3.11.10). So long they are given for it.
SETTLE = 0.02 if sys.version_info < (3, 11, 10) else 0.0


def collate(samples: Sequence[dict[str, Tensor] | Broken]) -> dict[str, Any]:
    """Makes a batch; a broken image's place is taken by another of the batch, to keep its size."""
    whole = [sample for sample in samples if not isinstance(sample, Broken)]
    broken = [sample for sample in samples if isinstance(sample, Broken)]
    if not whole:
        return {BROKEN: broken}
    whole += [whole[i % len(whole)] for i in range(len(broken))]
    batch: dict[str, Any] = default_collate(whole)
    return {**batch, BROKEN: broken} if broken else batch


class _Queue:
    """What the workers are to read, as they ask for it, numbered; it knows how much that was."""

    def __init__(self, length: int) -> None:
        self.draws: Iterable[int | Draw] = ()
        self.length = length
        self.asked = 0

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[tuple[int, int | Draw]]:
        for place, draw in enumerate(self.draws):
            self.asked = place + 1
            yield place, draw


class _Reading(Dataset[Any]):
    """A dataset as a worker reads it, which tells all processes how far it is."""

    def __init__(self, dataset: ImageDataset, num_workers: int) -> None:
        self._dataset = dataset
        self._fronts = torch.zeros(max(1, num_workers), dtype=torch.int64).share_memory_()

    def __getitems__(self, draws: Sequence[tuple[int, int | Draw]]) -> list[Any]:
        worker = get_worker_info()
        mine = self._fronts[worker.id if worker else 0]
        mine.fill_(draws[0][0])
        samples = [self._dataset[draw] for _, draw in draws]
        mine.fill_(draws[-1][0] + 1)
        return samples

    def begin(self) -> None:
        """Another pass begins."""
        self._fronts.zero_()

    def num_read(self) -> int:
        """So many images, the first of the pass, have been read by all workers."""
        return int(self._fronts.min())


class EvalLoader:
    """The images of one process in a fixed order, each once.

    An iterable for Lightning and anybody else, around a `torch.utils.data.DataLoader` that lives as
    long as it does. Not one itself, because Lightning makes some of those anew with a sampler of
    its own (for `predict` and ``overfit_batches``), which is not exact.

    Args:
        dataset: To read from.
        images: Which of them, int64 ``(num_images,)``.
        batch_size: Images a batch; the last one may have fewer.
        timeout: Seconds that a batch may take to come; 0 for ever.
        broken: Counts images that cannot be read; without it the first one is an error.
        drop_last: Whether a smaller last batch is left out.
        **kwargs: Of `torch.utils.data.DataLoader`.
    """

    def __init__(
        self,
        dataset: ImageDataset,
        images: Images,
        batch_size: int,
        *,
        timeout: float = 0,
        broken: BrokenImages | None = None,
        drop_last: bool = False,
        **kwargs: Any,
    ) -> None:
        self.dataset, self.batch_size, self.drop_last = dataset, batch_size, drop_last
        self.timeout, self.broken = timeout, broken
        self._images = images
        workers = kwargs.get("num_workers", 0)
        self._queue, self._reading = _Queue(len(images)), _Reading(dataset, workers)
        self._batches: DataLoader[dict[str, Tensor]] = DataLoader(
            self._reading,
            batch_size,
            sampler=self._queue,
            collate_fn=collate,
            drop_last=drop_last,
            timeout=timeout if workers else 0,
            **kwargs,
        )

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        yield from self._read(self._images, map(int, self._images))

    def close(self) -> None:
        """Ends the workers; another pass starts new ones."""
        batches: Any = self._batches._iterator
        self._batches._iterator = None
        if hasattr(batches, "_shutdown_workers"):
            batches._shutdown_workers()

    def _read(self, images: Images, draws: Iterable[int | Draw]) -> Iterator[dict[str, Tensor]]:
        follower, taken = self.dataset.follow(images), 0
        self._queue.draws, self._queue.asked = draws, 0
        self._reading.begin()
        if self._batches.num_workers and dist.is_initialized():
            time.sleep(SETTLE)
        try:
            batches = iter(self._batches)
            while True:
                follower.at(self._queue.asked, max(taken, self._reading.num_read()))
                if (batch := self._next(batches)) is None:
                    return
                taken += self.batch_size
                broken = batch.pop(BROKEN, [])
                if self.broken is not None:
                    self.broken.report(broken)
                if not batch:
                    raise ValueError(
                        f"not one image of a training batch in {self.dataset.folder} can be read; "
                        "the warnings before name them"
                    )
                yield batch
        finally:
            follower.close()

    def _next(self, batches: Iterator[Any]) -> Any:
        try:
            return next(batches, None)
        except RuntimeError as error:
            if "timed out" not in str(error):
                raise
            raise OSError(
                f"the workers have read no batch from {self.dataset.folder} for {self.timeout:g} s;"
                " look whether the disk or the mount answers, or allow more with data.timeout"
            ) from None


class TrainLoader(EvalLoader):
    """What is left of the epoch under way for one process, in batches of one size.

    Args:
        dataset: To read from.
        batch_size: Images this process takes at once.
        progress: What was trained.
        rank: Which process this is.
        num_replicas: How many share an epoch.
        trainer: That it is for, if there is one.
        **kwargs: Of `EvalLoader`.
    """

    def __init__(
        self,
        dataset: ImageDataset,
        batch_size: int,
        progress: Progress,
        *,
        rank: int = 0,
        num_replicas: int = 1,
        trainer: Trainer | None = None,
        **kwargs: Any,
    ) -> None:
        self.progress, self._trainer = progress, trainer
        self.rank, self.num_replicas = rank, num_replicas
        share = len(dataset) // (num_replicas * batch_size) * batch_size
        super().__init__(dataset, np.empty(share, np.int64), batch_size, drop_last=True, **kwargs)

    @property
    def sampler(self) -> "TrainLoader":
        """Itself: Lightning tells the epoch to a loader's sampler."""
        return self

    def set_epoch(self, epoch: int) -> None:
        """Goes on to an epoch, or on with the one that was under way."""
        self.progress.start_epoch(epoch)
        if self._trainer is not None:
            self.progress.align(
                self._trainer, len(self.dataset), self.num_replicas, self.batch_size
            )

    def indices(self) -> Images:
        """What this process has yet to take of the epoch, int64."""
        rest = self.progress.left(len(self.dataset))
        return self._order(part(rest, self.rank, self.num_replicas, self.batch_size))

    def taken(self) -> Images:
        """What all processes took of this epoch before the run was resumed, int64."""
        return self._order(self.progress.taken(len(self.dataset)))

    def _order(self, spans: list[range]) -> Images:
        return as_images(
            spans,
            len(self.dataset),
            self.dataset.chunks,
            seed=self.progress.seed,
            epoch=self.progress.epoch,
        )

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        # A generator, so this runs as the first batch is asked for, when the epoch is known.
        if self._trainer is not None:
            self.progress.count_steps(self._trainer)
        images = self.indices()
        yield from self._read(images, self._draws(images))

    def _draws(self, images: Images) -> Iterator[Draw]:
        for at in range(0, len(images), BLOCK):  # as a list of all they would be 100 bytes each
            block = images[at : at + BLOCK]
            of_block = seeds(block, seed=self.progress.seed, epoch=self.progress.epoch)
            yield from map(Draw, block.tolist(), of_block.tolist())

    def state_dict(self) -> dict[str, Any]:
        """Nothing: the data module keeps it. Lightning warns of loaders without this method."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Does nothing, as `state_dict`."""


def loader_options(
    num_workers: int | None, timeout: float, trainer: Trainer | None
) -> dict[str, Any]:
    """Chooses how a loader reads.

    Args:
        num_workers: By default a process's share of the cores.
        timeout: Seconds that a batch may take.
        trainer: Tells how many processes there are on this machine, by default one.
    """
    if num_workers is None:
        num_workers = max(1, num_cores() // (trainer.num_devices if trainer else 1))
    return {
        "num_workers": num_workers,
        "timeout": timeout,
        "pin_memory": torch.cuda.is_available(),
        "persistent_workers": num_workers > 0,
        # Eight batches ahead are enough for any GPU; more would only fill memory and caches.
        "prefetch_factor": max(2, -(-8 // num_workers)) if num_workers else None,
    }


def num_cores() -> int:
    """How many cores this process may use; a container or a cluster may have left it fewer."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # not Linux
        return os.cpu_count() or 1
