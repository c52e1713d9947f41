"""How many images an epoch really trained: each of them, some twice, or some never."""

from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor

from litcam.callbacks.each_validation import EachValidation
from litcam.callbacks.validation.batch import find_index

__all__ = ["Coverage"]


class Coverage(EachValidation):
    """Counts the images of each epoch by their ``index``, over all processes, and logs the counts.

    Logged for training and validation, as ``train/images_unique``, ``train/images_repeated`` and
    ``train/images_missing``, and ``val/…`` alike. Validation is to have none missing and none
    repeated, and says so aloud if it has; training leaves out less than one batch of every process.
    It costs one count a batch on the device and two reductions an epoch. Batches without ``index``
    are not counted, nor are those of a sanity check or of runs with ``limit_…_batches``.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> trainer = Trainer(callbacks=[Coverage()], logger=False)
    """

    _works_sharded = True

    def __init__(self) -> None:
        super().__init__()

    def _forget(self) -> None:
        super()._forget()
        self._counts: dict[str, Tensor] = {}
        self._expected: dict[str, int] = {}

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Counts a batch that was trained; of an epoch that was resumed, also those before."""
        self._count("train", batch, trainer.train_dataloader, here=trainer.is_global_zero)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Logs the counts of training."""
        loader: Any = trainer.train_dataloader
        if "train" not in self._counts and hasattr(loader, "taken"):
            # All of it was trained before the run was resumed.
            self._begin("train", loader, pl_module.device, here=trainer.is_global_zero)
        self._log("train", pl_module, limit=trainer.limit_train_batches or 0)

    def on_validation_batch_start(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Counts a batch of the first loader."""
        loaders = trainer.val_dataloaders
        first = loaders[0] if isinstance(loaders, list | tuple) else loaders
        if dataloader_idx == 0 and self._active:
            self._count("val", batch, first, here=False)

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Logs the counts of validation."""
        if self._active:
            self._log("val", pl_module, limit=trainer.limit_val_batches or 0)

    def _begin(self, split: str, loader: Any, device: torch.device, *, here: bool) -> None:
        """Begins to count; ``here`` also what was trained before the run was resumed."""
        dataset = loader.dataset
        self._expected[split] = len(dataset)
        while hasattr(dataset, "dataset"):  # a Subset; indices are of what it is a part of
            dataset = dataset.dataset
        # One more, for what is no place in it: a GPU would end the run at a wrong index.
        counts = torch.zeros(len(dataset) + 1, dtype=torch.int32, device=device)
        if here and hasattr(loader, "taken"):
            counts[torch.as_tensor(loader.taken(), device=device)] += 1
        self._counts[split] = counts

    def _count(self, split: str, batch: Any, loader: Any, *, here: bool) -> None:
        index = find_index(batch)
        if index is None or not hasattr(getattr(loader, "dataset", None), "__len__"):
            return
        if split not in self._counts:
            self._begin(split, loader, index.device, here=here)
        counts = self._counts[split]
        index = index.long()
        known = index.where((index >= 0) & (index < len(counts) - 1), len(counts) - 1)
        counts.index_add_(0, known, torch.ones_like(known, dtype=torch.int32))

    def _log(self, split: str, pl_module: pl.LightningModule, *, limit: int | float) -> None:
        counts = self._counts.pop(split, None)
        # 1.0 is everything, and 1 is one batch.
        if isinstance(limit, int) or limit < 1:
            return
        reduce, size = pl_module.trainer.strategy.reduce, 0 if counts is None else len(counts)
        sizes = torch.tensor([size, -size], device=pl_module.device)
        least, most = reduce(sizes, reduce_op="min").tolist()
        if counts is None or least != -most:
            return  # a process saw no batch with an index
        counts = reduce(counts[:-1], reduce_op="sum")
        unique = int((counts > 0).sum())
        found = {
            "unique": unique,
            "repeated": int(counts.sum()) - unique,
            "missing": self._expected[split] - unique,
        }
        for name, value in found.items():
            # The same on every process already.
            pl_module.log(f"{split}/images_{name}", float(value), rank_zero_only=False)
        if split == "val" and (found["missing"] or found["repeated"]):
            self._notes.warn(
                [
                    f"validation is not exact: of {self._expected[split]} images "
                    f"{found['missing']} were not seen and {found['repeated']} seen again"
                ]
            )
