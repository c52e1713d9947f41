"""What the callbacks of a validation share: when it is due, when they are off, what they say."""

from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities import rank_zero_info

from litcam.callbacks.notes import RETRY, Notes, describe_failure
from litcam.callbacks.places.sending import Places
from litcam.callbacks.validation.beside import find_sharding

__all__ = ["EachValidation"]


class EachValidation(Callback):
    """Works at every n-th validation of a run, on all processes or on none.

    Validations are counted, also over a resume, and not epochs: of `check_val_every_n_epoch=2` only
    odd ones are validated, and with `val_check_interval` one epoch has several. The first is due.
    Outside a fit each validation is due; the sanity check is none.

    Args:
        every_n_epochs: one validation is due in so many.

    Raises:
        ValueError: it is less than 1.
    """

    _works_sharded = False  # whether one process alone can do the work on a part of the network

    def __init__(self, every_n_epochs: int = 1) -> None:
        if every_n_epochs < 1:
            raise ValueError(f"every_n_epochs must be at least 1, got {every_n_epochs}")
        self.every_n_epochs = every_n_epochs
        self._notes = Notes(type(self).__name__)
        self._ended = 0
        self._forget()

    def _forget(self) -> None:
        """Everything that belongs to one run."""
        self._off = self._agreed = self._active = self._failed = False
        self._problems: list[str] = []
        self._places = Places(self._notes)

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Begins anew."""
        self._ended = 0
        self._forget()
        strategy = "" if self._works_sharded else find_sharding(trainer)
        if strategy:
            self._off = True
            rank_zero_info(
                f"{type(self).__name__} is off under {strategy}, where no process has the whole "
                "network; it works under strategy fsdp2 (--trainer trainer/fsdp.yaml) and ddp"
            )

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Asks whether every process will validate: later those that do not cannot be asked."""
        self._agree(trainer)

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Asks the same outside a fit."""
        if trainer.state.fn != "fit":
            self._agree(trainer)

    on_test_start = on_validation_start

    def on_validation_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Tells whether this validation is due."""
        in_fit = trainer.state.fn == "fit"
        due = not trainer.sanity_checking and not (in_fit and self._ended % self.every_n_epochs)
        self._active, self._failed = due and not self._off, False

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Counts a validation that came to its end; one that is broken off is made again."""
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            self._ended += 1

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Answers those that validate, if this process does not; leaves nothing of the run."""
        if trainer.state.fn != "fit":
            self._agree(trainer)
        self._places.sum_up()
        self._forget()

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        """Says what the run's places missed until then: there will be no `teardown`."""
        self._places.sum_up()

    def state_dict(self) -> dict[str, Any]:
        """For a checkpoint: nothing where every validation is due."""
        return {} if self.every_n_epochs == 1 else {"validations": self._ended}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """What `state_dict` gave."""
        self._ended = state_dict.get("validations", 0)

    def _give_up(self, error: Exception) -> None:
        """For this validation."""
        self._failed = True
        self._problems.append(describe_failure(error, RETRY))

    def _agree(self, trainer: pl.Trainer) -> None:
        """Is off on every process where one has no batch: it would never come to a collective."""
        if self._agreed or trainer.world_size == 1:
            return
        self._agreed = True
        batches = trainer.num_test_batches if trainer.testing else trainer.num_val_batches
        any_here = int(sum(batches) > 0)
        told = torch.tensor([any_here, -any_here], device=trainer.strategy.root_device)
        every, nobody = trainer.strategy.reduce(told, reduce_op="min").tolist()
        if not every and nobody:
            self._off = True
            rank_zero_info(
                f"{type(self).__name__} is off: a process has no batch to validate, and the others "
                "would wait for it; give the loader a batch for every process"
            )
