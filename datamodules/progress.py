"""What was trained and what to go on with: the only place that knows Lightning's counters.

Lightning (2.6.6) counts a batch four times: ready, started, processed, completed. Trained is what
was processed, less what waits for the rest of its window of accumulated gradients, which no
checkpoint holds. A checkpoint may be asked for anywhere: after a step, in a validation, by an
exception in the middle of a backward pass. Here each is made to say how many batches were trained
and whether their validation is still due, and no more: `Progress.on_save_checkpoint`.
"""

import os
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.trainer.states import TrainerStatus

from litcam.datamodules.order import Stretch, remaining, taken, total

__all__ = ["Progress", "num_steps", "run_seed"]

COUNTERS = ("ready", "started", "processed", "completed")


def run_seed() -> int:
    """The seed of ``seed_everything``, else 0."""
    return int(os.environ.get("PL_GLOBAL_SEED", 0))


def num_steps(trainer: Trainer) -> int:
    """The number of the training batch under way, over all epochs; a resumed run counts on."""
    return int(_batches(trainer).total.ready)


class Progress(Callback):
    """Which part of the epoch under way was trained, by how many processes, in what batches.

    A callback, because Lightning shows a checkpoint to no data module before it is written.

    Attributes:
        seed: Of the order of all epochs; a resumed run keeps the one it began with.
        epoch: The epoch under way, from 0.
        before: What was trained of it before this run was resumed.
    """

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        """Begins a run."""
        self.seed = run_seed()
        self.epoch = 0
        self.before: list[Stretch] = []
        self._counted = 0  # batches that Lightning counts for what is in `before`
        self._complete = False  # whether only the validation of the epoch was to come
        self._resumed: dict[str, Any] = {}

    def start_epoch(self, epoch: int) -> None:
        """Goes on to an epoch; one that is under way stays where it is."""
        if epoch != self.epoch:
            self.epoch, self.before, self._counted, self._complete = epoch, [], 0, False

    def left(self, num_images: int) -> list[range]:
        """The places of the epoch's order that were not trained before this run was resumed."""
        return [] if self._complete else remaining(num_images, self.before)

    def taken(self, num_images: int) -> list[range]:
        """The places of the epoch's order that were."""
        return taken(num_images, self.before)

    def state(self, trainer: Trainer, num_processes: int, batch_size: int) -> dict[str, Any]:
        """What was trained of the epoch under way, in plain numbers; alike on all processes.

        Args:
            trainer: That trains.
            num_processes: How many share an epoch.
            batch_size: Of each.
        """
        if not _under_way(trainer):
            epoch = _epochs(trainer).processed
            return {"epoch": int(epoch), "seed": self.seed, "stretches": []}
        now = Stretch(num_processes, batch_size, _num_trained(trainer) - self._counted)
        before = [*self.before]
        if before and before[-1][:2] == now[:2]:
            now = now._replace(num_batches=now.num_batches + before.pop().num_batches)
        return {
            "epoch": self.epoch,
            "seed": self.seed,
            "stretches": [list(stretch) for stretch in (*before, now) if stretch.num_batches],
            "complete": _all_trained(trainer),
            "num_stepped": _num_stepped(trainer),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Goes on where `state` was asked."""
        self.epoch, self.seed = state["epoch"], state["seed"]
        self.before = [Stretch(*stretch) for stretch in state["stretches"]]
        self._complete = bool(state.get("complete"))
        self._resumed = {**state}

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Has a checkpoint of the epoch under way say what was trained, and no more.

        Left to itself Lightning skips the validation of a checkpoint made by the step before it,
        forgets the rest of an epoch that ``max_steps`` or ``max_time`` ended, and loses the batches
        of a window of accumulated gradients.
        """
        if not _under_way(trainer):
            return
        loops, trained = checkpoint["loops"]["fit_loop"], _num_trained(trainer)
        batches = loops["epoch_loop.batch_progress"]
        surplus = batches["current"]["ready"] - trained
        due = not surplus and _validation_is_due(trainer)
        # Where Lightning goes on with a validation, or passes one over, it counts a step after it.
        counts_again = not surplus and _validates_now(trainer)
        loops["epoch_loop.state_dict"]["_batches_that_stepped"] = (
            _num_stepped(trainer) - counts_again
        )
        for which in ("current", "total"):
            count = batches[which]["ready"] - surplus
            batches[which].update(dict.fromkeys(COUNTERS, count))
            epochs = loops["epoch_progress"][which]
            processed = epochs["started"] - 1
            epochs.update(processed=processed, completed=processed)
            # One that was started and not processed has Lightning run the validation from its
            # beginning; that all are equal has it go on without.
            validated = loops["epoch_loop.val_loop.batch_progress"][which]
            validated.update(dict.fromkeys(COUNTERS, 0))
            if due and which == "total":
                validated.update(ready=1, started=1)

    def align(self, trainer: Trainer, num_images: int, num_processes: int, batch_size: int) -> None:
        """Has Lightning count as if there had always been as many processes as now.

        It ends an epoch, and validates, after so many batches; those that were trained before the
        run was resumed may have been of another size. To be called as the first epoch begins.

        Args:
            trainer: That trains.
            num_images: Of the whole epoch.
            num_processes: That share it now.
            batch_size: Of each.
        """
        if not self._resumed.pop("stretches", None):
            return
        loop = trainer.fit_loop.epoch_loop
        num_batches, at_once = int(trainer.num_training_batches), num_processes * batch_size
        limited = num_batches < num_images // at_once
        budget = num_batches * at_once if limited else num_images
        num_left = max(0, budget - total(self.taken(num_images))) // at_once
        if self._complete:
            num_left = 0
        self._counted = num_batches - num_left
        for name in COUNTERS:
            setattr(_batches(trainer).current, name, self._counted)
        if not num_left and not self._complete:
            # Larger batches than before: what is left fills none of them, and is validated.
            validated: Any = loop.val_loop.batch_progress.total
            validated.ready, validated.started, validated.processed = 1, 1, 0
            loop.val_loop.update_restart_stage()

    def count_steps(self, trainer: Trainer) -> None:
        """Has loggers go on with the step at which they stopped; before the first batch."""
        if "num_stepped" in self._resumed:
            trainer.fit_loop.epoch_loop._batches_that_stepped = self._resumed.pop("num_stepped")


def _batches(trainer: Trainer) -> Any:
    """Lightning's counters of training batches; their type does not tell what they count."""
    return trainer.fit_loop.epoch_loop.batch_progress


def _epochs(trainer: Trainer) -> Any:
    """Lightning's counters of the epochs of this run."""
    return trainer.fit_loop.epoch_progress.current


def _under_way(trainer: Trainer) -> bool:
    """Whether an epoch was begun and has batches, or their validation, yet to come."""
    epochs = _epochs(trainer)
    if epochs.started < epochs.ready:  # in `on_train_epoch_start`
        return False
    if epochs.processed < epochs.ready:
        return True
    # At the end of an epoch, or where `max_steps`, `max_time` or a callback stopped it.
    return epochs.ready > 0 and not _all_trained(trainer)


def _all_trained(trainer: Trainer) -> bool:
    batches = _batches(trainer)
    every = batches.current.processed >= trainer.num_training_batches
    return every or (batches.is_last_batch and batches.current.processed == batches.current.ready)


def _num_trained(trainer: Trainer) -> int:
    """Batches of the epoch under way whose gradients are in the weights."""
    processed = int(_batches(trainer).current.processed)
    module, strategy = trainer.lightning_module, trainer.strategy
    if not module.automatic_optimization or strategy.handles_gradient_accumulation:
        return processed
    if _all_trained(trainer):  # Lightning steps with the last batch in any case
        return processed
    return processed - processed % trainer.accumulate_grad_batches


def _num_stepped(trainer: Trainer) -> int:
    """Steps that loggers count, with the one that Lightning counts after its validation."""
    loop = trainer.fit_loop.epoch_loop
    batches = _batches(trainer).current
    before_validation = batches.completed == batches.processed - 1 or bool(trainer.validating)
    taken_now = batches.processed == batches.ready and not loop._should_accumulate()
    return loop._batches_that_stepped + (taken_now and before_validation)


def _validates_now(trainer: Trainer) -> bool:
    """Whether a validation follows the batch that was trained last."""
    fetcher: Any = trainer.fit_loop._data_fetcher
    return trainer.fit_loop.epoch_loop._should_check_val_fx(fetcher)


def _validation_is_due(trainer: Trainer) -> bool:
    """Whether the validation that follows the batch that was trained last has not been finished."""
    loop = trainer.fit_loop.epoch_loop
    if trainer.validating:
        unfinished = loop.val_loop.batch_progress.current.completed < sum(loop.val_loop.max_batches)
        return unfinished or trainer.state.status == TrainerStatus.INTERRUPTED
    batches = _batches(trainer).current
    return batches.completed == batches.processed - 1 and _validates_now(trainer)
