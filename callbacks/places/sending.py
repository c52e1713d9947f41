"""Which logger takes pictures, and how: found by the client it uses, not by its class."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import lightning.pytorch as pl

from litcam.callbacks.places.comet import to_comet
from litcam.callbacks.places.mlflow import to_mlflow
from litcam.callbacks.places.pictures import Views, current_step
from litcam.callbacks.places.run_folder import to_folder
from litcam.callbacks.places.tensorboard import to_tensorboard
from litcam.callbacks.places.trackio import to_trackio
from litcam.callbacks.places.wandb_media import to_wandb

Send = Callable[[Views, int, int], None]
Place = Callable[[Any], Send | None]

_added: list[Place] = []


def add_place(place: Place) -> Place:
    """Makes a further kind of logger take the pictures of every callback.

    Args:
        place: from one of the run's loggers to a function of views, epoch and step that sends the
            pictures there, or None where it is another kind of logger. Views are log keys, such as
            `val/gradcam/predicted`, each with its list of `LoggedImage`: `picture` `(height, width,
            3)` in uint8, `caption`, and `name`, the same at every epoch.

    Returns:
        The same, so that it can be a decorator. What was added last is asked first.

    Example:
        >>> @add_place
        ... def to_my_logger(logger):
        ...     if not hasattr(logger, "show_picture"):
        ...         return None
        ...     def send(views, epoch, step):
        ...         for key, images in views.items():
        ...             for image in images:
        ...                 logger.show_picture(f"{key}/{image.name}", image.picture, step)
        ...     return send
    """
    _added.insert(0, place)
    return place


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
    to_folder(views, folder, trainer.current_epoch, step)
    for logger in trainer.loggers:
        found = (place(logger) for place in [*_added, _find])
        send = next((send for send in found if send is not None), None)
        if send is not None:
            send(views, trainer.current_epoch, step)


def find_clients(trainer: pl.Trainer, library: str) -> list[Any]:
    """Clients of a library, such as `wandb`, that the run's loggers use: on rank zero."""
    clients = [getattr(logger, "experiment", None) for logger in trainer.loggers]
    return [client for client in clients if _library(client) == library]


def _find(logger: Any) -> Send | None:
    client = getattr(logger, "experiment", None)
    library = _library(client)
    if library == "mlflow":
        return partial(to_mlflow, client, run_id=logger.run_id)
    if library in ("wandb", "comet_ml", "trackio"):
        send = {"wandb": to_wandb, "comet_ml": to_comet, "trackio": to_trackio}[library]
        return partial(send, client)
    if hasattr(client, "add_image") and hasattr(client, "add_text"):
        return partial(to_tensorboard, client)
    return None


def _library(client: Any) -> str:
    return type(client).__module__.partition(".")[0]
