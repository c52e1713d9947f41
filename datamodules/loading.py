"""The training loader: it knows where it is, goes on exactly there, and names broken images."""

import logging
from collections.abc import Iterator, Sequence
from itertools import count
from typing import Any

import numpy as np
from lightning.pytorch import Trainer
from torch import Tensor
from torch.utils.data import DataLoader, default_collate

from litcam.datamodules.order import Order, Stretch, TrainSampler
from litcam.datamodules.sources.dataset import Broken

__all__ = ["EvalLoader", "TrainLoader", "collate"]

BROKEN = "broken"

# Not `warnings`: a run under `python -W error` is not to die of what it was allowed to skip.
log = logging.getLogger("lightning.pytorch.litcam")


def collate(samples: Sequence[dict[str, Tensor] | Broken]) -> dict[str, Any]:
    """Makes a batch; a broken image's place is taken by another of the batch, to keep its size."""
    whole = [sample for sample in samples if not isinstance(sample, Broken)]
    broken = [sample for sample in samples if isinstance(sample, Broken)]
    if not whole:
        return {BROKEN: broken}
    whole += [whole[i % len(whole)] for i in range(len(broken))]
    batch: dict[str, Any] = default_collate(whole)
    return {**batch, BROKEN: broken} if broken else batch


class EvalLoader(DataLoader[dict[str, Tensor]]):
    """A loader that has the files of a remote dataset fetched before they are read."""

    def __iter__(self) -> Iterator[dict[str, Tensor]]:  # type: ignore[override]
        dataset: Any = self.dataset
        advance = dataset.prefetch(self._order())
        batches = super().__iter__()
        try:
            # Threads are started after workers were forked.
            for number in count():
                advance(number * (self.batch_size or 1))
                if (batch := next(batches, None)) is None:
                    return
                yield batch
        finally:
            advance(-1)

    def _order(self) -> Order:
        sampler: Any = self.sampler
        return np.fromiter(sampler, dtype=np.int64)


class TrainLoader(EvalLoader):
    """Batches of one process, resumable in the middle of an epoch.

    Its state is the same on all processes and holds on any other number of them, of workers, and
    for any batch size: what an epoch has already shown is not shown again, and the rest is.

    Args:
        sampler: What to take.
        max_broken: Images that may be unreadable before the run is stopped.
        trainer: That it is for, if there is one.
        **kwargs: Of `torch.utils.data.DataLoader`.
    """

    def __init__(
        self,
        sampler: TrainSampler,
        *,
        max_broken: int,
        trainer: Trainer | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            sampler.dataset,
            sampler=sampler,
            batch_size=sampler.batch_size,
            drop_last=True,
            collate_fn=collate,
            **kwargs,
        )
        self.max_broken, self._trainer = max_broken, trainer
        self._broken: set[int] = set()
        self._num_batches = 0

    sampler: TrainSampler

    def __iter__(self) -> Iterator[dict[str, Tensor]]:  # type: ignore[override]
        self._num_batches = 0
        for batch in super().__iter__():
            self._report(batch.pop(BROKEN, []))
            if not batch:
                raise ValueError(
                    f"not one image of a training batch in {self.sampler.images.folder} can be "
                    "read; the warnings before name them"
                )
            self._num_batches += 1
            yield batch

    def _order(self) -> Order:
        return self.sampler.indices()

    def state_dict(self) -> dict[str, Any]:
        """Where in the epoch this loader is, in plain numbers."""
        sampler = self.sampler
        now = Stretch(sampler.num_replicas, sampler.batch_size, self._num_batches)
        return {
            "epoch": sampler.epoch,
            "stretches": [list(stretch) for stretch in (*sampler.stretches, now)],
            "seed": sampler.seed,
            "num_images": len(sampler.images),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on where `state_dict` was asked; a finished epoch is followed by the next.

        Raises:
            ValueError: If the data are not those the state is of.
        """
        sampler = self.sampler
        num_images = len(sampler.images)
        if state["num_images"] != num_images:
            raise ValueError(
                f"the checkpoint was in the middle of an epoch of {state['num_images']} training "
                f"images, and now there are {num_images}; give it the same data, or start a new "
                "run from its weights"
            )
        sampler.seed, sampler.epoch = state["seed"], state["epoch"]
        sampler.stretches = [Stretch(*stretch) for stretch in state["stretches"]]
        if not self._num_left():
            sampler.set_epoch(sampler.epoch + 1)
        sampler.on_epoch = self._align

    def _num_left(self) -> int:
        return len(self.sampler.indices()) // self.sampler.batch_size

    def _align(self) -> None:
        """Has Lightning count batches as if there had always been as many processes as now.

        It ends an epoch, and validates, after so many batches; those that were taken before by
        more or fewer processes were of another size.
        """
        self.sampler.on_epoch = None
        if not self._trainer:
            return
        progress = self._trainer.fit_loop.epoch_loop.batch_progress
        num_batches = int(self._trainer.num_training_batches)
        done = num_batches if progress.is_last_batch else num_batches - self._num_left()
        shift = done - progress.current.ready
        for name in ("ready", "started", "processed", "completed"):
            setattr(progress.current, name, getattr(progress.current, name) + shift)

    def _report(self, broken: Any) -> None:
        for index, reason in broken:
            if index in self._broken:
                continue
            self._broken.add(index)
            if len(self._broken) > self.max_broken:
                raise ValueError(
                    f"{reason}. More training images are broken than "
                    f"max_broken={self.max_broken} allows"
                )
            log.warning(
                f"broken image {len(self._broken)} of at most {self.max_broken}: {reason}. "
                "Another one takes its place"
            )
