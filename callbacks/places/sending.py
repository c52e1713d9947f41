"""Where pictures go: the folder and the loggers, found by the client they use, each on its own."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import lightning.pytorch as pl

from litcam.callbacks.notes import Notes, describe_failure
from litcam.callbacks.places.comet import to_comet
from litcam.callbacks.places.mlflow import to_mlflow
from litcam.callbacks.places.pictures import Views, current_step
from litcam.callbacks.places.run_folder import to_folder
from litcam.callbacks.places.tensorboard import to_tensorboard
from litcam.callbacks.places.trackio import to_trackio
from litcam.callbacks.places.wandb_media import to_wandb

Send = Callable[[Views, int, int], None]
Place = Callable[[Any], Send | None]

FOLDER = "the run's folder"

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


class Places:
    """The run's folder and loggers, each on its own: what fails in one is none of the others'.

    A place that fails is said once, asked again at the next validation, and what it missed is
    counted until the run is over. Used on rank zero.

    Args:
        notes: where it is said.
    """

    def __init__(self, notes: Notes) -> None:
        self._notes = notes
        self._missed: dict[str, Counter[str]] = {}

    def log_images(self, trainer: pl.Trainer, views: Views, folder: Path) -> None:
        """Sends pictures to every place there is: once a validation.

        Args:
            trainer: its loggers are used, each at Lightning's own step of this validation.
            views: log key, such as `val/gradcam/predicted`, to its pictures. Keys stay the same
                from epoch to epoch.
            folder: where files are written.
        """
        if getattr(trainer, "fast_dev_run", False):
            return
        epoch, step = trainer.current_epoch, current_step(trainer)
        lost = {"pictures": sum(map(len, views.values()))}
        with self.alone(FOLDER, lost):
            to_folder(views, folder, epoch, step)
        for logger in trainer.loggers:
            with self.alone(type(logger).__name__, lost):
                found = (place(logger) for place in [*_added, _find])
                send = next((send for send in found if send is not None), None)
                if send is not None:
                    send(views, epoch, step)

    def alert(self, trainer: pl.Trainer, title: str, text: str) -> None:
        """Sends an alert to W&B."""
        for logger in trainer.loggers:
            with self.alone(type(logger).__name__, {"alarms": 1}):
                client: Any = getattr(logger, "experiment", None)
                if _library(client) == "wandb":
                    client.alert(title, text, level="WARN")

    @contextmanager
    def alone(self, place: str, lost: Mapping[str, int]) -> Iterator[None]:
        """What is done with one place; `lost` is what it misses where that fails."""
        try:
            yield
        except Exception as error:
            self._missed.setdefault(place, Counter()).update(lost)
            what = f"misses {' and '.join(lost)} in {place} and tries the next"
            self._notes.warn([describe_failure(error, what)])

    def sum_up(self) -> None:
        """Says what each place missed: at the end of a run."""
        for place, missed in self._missed.items():
            counts = " and ".join(f"{count} {what}" for what, count in missed.items())
            self._notes.warn([f"missed up to {counts} in {place} in this run"])
        self._missed = {}


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
