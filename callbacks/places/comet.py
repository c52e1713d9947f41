"""Pictures in Comet: a name, and so a slider, for each image."""

from typing import Any

from litcam.callbacks.places.pictures import Views


def to_comet(experiment: Any, views: Views, epoch: int, step: int) -> None:
    """Logs each picture, its caption beside it."""
    for key, images in views.items():
        for image in images:
            about = {"caption": image.caption, "epoch": epoch}
            name = f"{key}/{image.name}"
            experiment.log_image(image.picture, name=name, step=step, metadata=about)
