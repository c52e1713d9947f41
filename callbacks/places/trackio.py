"""Pictures in Trackio: a key, and so a slider, for each image."""

from typing import Any

import numpy as np

from litcam.callbacks.places.pictures import Views


def to_trackio(experiment: Any, views: Views, epoch: int, step: int) -> None:
    """Logs one record."""
    import trackio

    record = {
        f"{key}/{image.name}": trackio.Image(np.asarray(image.picture), caption=image.caption)
        for key, images in views.items()
        for image in images
    }
    experiment.log({**record, "epoch": epoch}, step=step)
