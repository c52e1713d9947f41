"""Pictures in TensorBoard: a tag, and so a slider, for each image."""

from typing import Any

import numpy as np

from litcam.callbacks.places.pictures import Views


def to_tensorboard(experiment: Any, views: Views, epoch: int, step: int) -> None:
    """Logs each picture and its caption."""
    for key, images in views.items():
        for image in images:
            tag = f"{key}/{image.name}"
            experiment.add_image(tag, np.asarray(image.picture), step, dataformats="HWC")
            experiment.add_text(tag, image.caption, step)
