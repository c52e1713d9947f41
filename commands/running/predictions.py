"""`predictions.csv`: what `litcam predict` says of every image."""

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import BasePredictionWriter


class PredictionsFile(BasePredictionWriter):
    r"""Writes a line an image: its name, the class in words and its probability.

    Bytes of a name that are not UTF-8 are written as ``\udcXX``, so that the file is UTF-8.
    Several processes write a file each, with their rank in its name.
    """

    def __init__(self) -> None:
        super().__init__(write_interval="batch")
        self.file = Path()

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Begins the file. Asks every process: `trainer.log_dir` is a collective."""
        folder = Path(trainer.log_dir or trainer.default_root_dir)
        folder.mkdir(parents=True, exist_ok=True)
        rank = f"-{trainer.global_rank}" if trainer.world_size > 1 else ""
        self.file = folder / f"predictions{rank}.csv"
        self._write([("image", "class", "probability")], "w")

    def write_on_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        prediction: Any,
        batch_indices: Sequence[int] | None,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int,
    ) -> None:
        """Adds the images of a batch."""
        datamodule: Any = trainer.datamodule  # type: ignore[attr-defined]
        loaders: Any = trainer.predict_dataloaders
        dataset = getattr(loaders, "dataset", None)
        keys, names = getattr(dataset, "keys", []), getattr(datamodule, "class_names", [])
        columns = (prediction[name].tolist() for name in ("index", "label", "probability"))
        rows = [
            (
                keys[index] if index < len(keys) else index,
                names[label] if label < len(names) else label,
                f"{probability:.4f}",
            )
            for index, label, probability in zip(*columns, strict=True)
        ]
        self._write(rows, "a")

    def _write(self, rows: Sequence[Sequence[Any]], mode: str) -> None:
        with self.file.open(mode, newline="", encoding="utf-8", errors="backslashreplace") as file:
            csv.writer(file).writerows(rows)
