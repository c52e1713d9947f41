"""Where pictures go: Weights & Biases, TensorBoard and a folder.

A new place is one function here and its line in `log_images`.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import lightning.pytorch as pl
import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_info
from PIL import Image

from litcam.explain.figures import Picture, panel, sheet


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


def log_images(trainer: pl.Trainer, views: Views, folder: Path) -> None:
    """Sends pictures to every place there is: on rank zero, once a validation.

    Args:
        trainer: its loggers are used, each at Lightning's own step of this validation.
        views: log key, such as `val/gradcam/predicted`, to its pictures. Keys stay the same from
            epoch to epoch.
        folder: where files are written.
    """
    if getattr(trainer, "fast_dev_run", False):
        return
    step = current_step(trainer)
    _to_folder(views, folder, trainer.current_epoch, step)
    for logger in find_loggers(trainer, "WandbLogger"):
        _to_wandb(logger, views, trainer.current_epoch, step)
    for logger in find_loggers(trainer, "TensorBoardLogger"):
        _to_tensorboard(logger, views, step)


def find_loggers(trainer: pl.Trainer, name: str) -> list[Any]:
    """The run's loggers that are Lightning's `name` or made from it.

    By name: `pytorch_lightning` has classes of its own, which are the same but for the import.
    """
    return [
        logger
        for logger in trainer.loggers
        if any(kind.__name__ == name for kind in type(logger).__mro__)
    ]


def _to_wandb(logger: Any, views: Views, epoch: int, step: int) -> None:
    """One record: two calls would be two stops of the slider."""
    import wandb

    record: dict[str, Any] = {
        key: [
            # uint8 and JPEG: a float image turns black, PNG takes eleven times as long.
            wandb.Image(image.picture, caption=image.caption, file_type="jpg")
            for image in images
        ]
        for key, images in views.items()
    }
    logger.experiment.log({**record, "epoch": epoch, "trainer/global_step": step})


def _to_tensorboard(logger: Any, views: Views, step: int) -> None:
    for key, images in views.items():
        for image in images:
            tag = f"{key}/{image.name}"
            logger.experiment.add_image(tag, np.asarray(image.picture), step, dataformats="HWC")
            logger.experiment.add_text(tag, image.caption, step)


def _to_folder(views: Views, folder: Path, epoch: int, step: int) -> None:
    """Pictures by epoch, and a JSON line each, flushed at once so that a kill loses nothing."""
    # Validation and test come one after the other at the same step.
    test = "-test" if next(iter(views), "").startswith("test/") else ""
    place = folder / f"epoch-{epoch:03d}-step-{step:06d}{test}"
    place.mkdir(parents=True, exist_ok=True)
    with (folder / "images.jsonl").open("a", encoding="utf-8") as lines:
        for key, images in views.items():
            view = key.split("/", 2)[-1].replace("/", "-")
            for image in images:
                path = place / f"{view}-{image.name}.jpg"
                Image.fromarray(image.picture).save(path, quality=92)
                line = {"file": f"{place.name}/{path.name}", "key": key, "epoch": epoch}
                line |= {"step": step, "caption": image.caption, "tiles": len(image.tiles)}
                line |= image.facts
                lines.write(json.dumps(line) + "\n")
                lines.flush()
    # On one sheet: the first view's tiles, then only the last tile of each other view.
    together: dict[tuple[str, str], list[tuple[Picture, str]]] = {}
    for key, images in views.items():
        for image in images:
            row = together.setdefault((key.partition("/dataloader_idx_")[2], image.name), [])
            row += list(zip(image.tiles, image.titles, strict=True))[-1 if row else 0 :]
    if together:
        rows = [[tile for tile, _ in row] for row in together.values()]
        titles = [[title for _, title in row] for row in together.values()]
        Image.fromarray(sheet(rows, titles)).save(place / "sheet.jpg", quality=92)
