"""Pictures that are logged, and the folder they belong to."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import lightning.pytorch as pl
import torch
from lightning.pytorch.utilities import rank_zero_info

from litcam.explain.figures import Picture, panel


@dataclass
class LoggedImage:
    """A picture of one or more tiles side by side.

    Attributes:
        tiles: uint8 `(height, width, 3)`, of one height.
        titles: a short title for each tile.
        caption: the line under the picture.
        name: the stem of its file, the same at every epoch.
        facts: what made it, as plain values.
    """

    tiles: Sequence[Picture]
    titles: Sequence[str]
    caption: str
    name: str
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def picture(self) -> Picture:
        """The tiles side by side."""
        return panel(self.tiles)


Part = TypeVar("Part")
Views = Mapping[str, Sequence[LoggedImage]]


def current_step(trainer: pl.Trainer) -> int:
    """The step at which Lightning logs this validation's own metrics.

    `trainer.global_step` is one ahead of it; the attribute is private, hence the fallback.
    """
    loop = getattr(trainer.fit_loop, "epoch_loop", None)
    return int(getattr(loop, "_batches_that_stepped", trainer.global_step))


def picture_folder(trainer: pl.Trainer, name: str) -> Path:
    """`name` in the run's folder, which is where its checkpoints lie. Asks every process.

    W&B, MLflow and the like have one folder for all runs: in it each gets its own, by the names
    that `ModelCheckpoint` uses. Pictures are files of this machine, also where logs are not.
    """
    folder = str(trainer.log_dir or trainer.default_root_dir)
    logger: Any = trainer.logger
    if logger is not None and getattr(logger, "log_dir", None) is None:
        version = logger.version if isinstance(logger.version, str) else f"version_{logger.version}"
        folder = trainer.strategy.broadcast(f"{folder}/{logger.name}/{version}")
    if "://" in folder:
        here = Path(folder.rstrip("/").rpartition("/")[2])
        rank_zero_info(
            f"pictures are kept in ./{here / name}: {folder} is no folder of this machine"
        )
        return here / name
    return Path(folder) / name


def gather(trainer: pl.Trainer, part: Part) -> list[Part]:
    """Every process's part on rank zero, and nothing elsewhere. Every process has to call it."""
    if trainer.world_size == 1 or not torch.distributed.is_initialized():
        return [part]
    parts: list[Any] = [None] * trainer.world_size
    torch.distributed.gather_object(part, parts if trainer.is_global_zero else None)
    return parts if trainer.is_global_zero else []
