"""How many images an epoch really showed: each of them, some twice, or some never."""

from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from litcam.callbacks.notes import Notes

__all__ = ["Coverage"]


class Coverage(Callback):
    """Counts the images of each epoch by their ``index``, over all processes, and logs the counts.

    Logged for training and validation, as ``train/images_unique``, ``train/images_repeated`` and
    ``train/images_missing``, and ``val/…`` alike. Validation is to have none missing and none
    repeated, and says so aloud if it has; training leaves out less than one batch of every process.
    It costs one count a batch on the device and one reduction an epoch. Batches without ``index``
    are not counted, nor are those of a sanity check or of runs with ``limit_…_batches``.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> trainer = Trainer(callbacks=[Coverage()], logger=False)
    """

    def __init__(self) -> None:
        self._notes = Notes("Coverage")
        self._counts: dict[str, Tensor] = {}

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Counts a batch; of an epoch that was resumed, also what was shown before."""
        if "train" not in self._counts and self._count("train", batch, trainer.train_dataloader):
            sampler: Any = getattr(trainer.train_dataloader, "sampler", None)
            if trainer.is_global_zero and hasattr(sampler, "taken"):
                self._counts["train"][torch.as_tensor(sampler.taken())] += 1
            return
        self._count("train", batch, trainer.train_dataloader)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Logs the counts of training."""
        self._log("train", pl_module, limited=trainer.limit_train_batches != 1.0)

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
        if dataloader_idx == 0 and not trainer.sanity_checking:
            self._count("val", batch, first)

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Logs the counts of validation."""
        self._log("val", pl_module, limited=trainer.limit_val_batches != 1.0)

    def _count(self, split: str, batch: Any, loader: Any) -> bool:
        index = batch.get("index") if isinstance(batch, dict) else None
        if not isinstance(index, Tensor):
            return False
        if split not in self._counts:
            num_images = len(loader.dataset)
            self._counts[split] = torch.zeros(num_images, dtype=torch.int32, device=index.device)
        ones = torch.ones_like(index, dtype=torch.int32)
        self._counts[split].index_add_(0, index, ones)
        return True

    def _log(self, split: str, pl_module: pl.LightningModule, *, limited: bool) -> None:
        counts = self._counts.pop(split, None)
        if counts is None or limited:
            return
        counts = pl_module.trainer.strategy.reduce(counts, reduce_op="sum")
        found = {
            "unique": int((counts > 0).sum()),
            "repeated": int((counts - 1).clamp_min(0).sum()),
            "missing": int((counts == 0).sum()),
        }
        for name, value in found.items():
            # The same on every process already.
            pl_module.log(f"{split}/images_{name}", float(value), rank_zero_only=False)
        if split == "val" and (found["missing"] or found["repeated"]):
            self._notes.warn(
                [
                    f"validation is not exact: of {len(counts)} images {found['missing']} were not "
                    f"seen and {found['repeated']} seen again; metrics are of other images"
                ]
            )
