"""Every n-th validation of a run, whatever Lightning's own intervals make of its epochs."""

from typing import Any

import lightning.pytorch as pl

__all__ = ["Every"]


class Every:
    """Counts the validations of a fit; the first is due, then every n-th, also over a resume.

    Epochs would not do: of `check_val_every_n_epoch=2` only odd ones are validated, and with
    `val_check_interval` one epoch has several. Outside a fit each validation is due; the sanity
    check is none.

    Args:
        n: one is due in so many.
    """

    def __init__(self, n: int) -> None:
        self._n, self._ended = n, 0

    def is_due(self, trainer: pl.Trainer) -> bool:
        """Tells whether this validation is one of them."""
        if trainer.sanity_checking:
            return False
        return trainer.state.fn != "fit" or self._ended % self._n == 0

    def end(self, trainer: pl.Trainer) -> None:
        """Counts a validation that came to its end; one that is broken off is made again."""
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            self._ended += 1

    def state_dict(self) -> dict[str, Any]:
        """For a checkpoint; nothing where every validation is due."""
        return {} if self._n == 1 else {"validations": self._ended}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """What `state_dict` gave."""
        self._ended = state.get("validations", 0)
