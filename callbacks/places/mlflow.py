"""Pictures in MLflow: one sheet for each view, because its slider is that of one picture."""

from typing import Any

from litcam.callbacks.places.pictures import Views
from litcam.callbacks.places.run_folder import draw_sheet


def to_mlflow(experiment: Any, views: Views, epoch: int, step: int, *, run_id: str) -> None:
    """Logs each view's sheet at its step."""
    for key, images in views.items():
        if picture := draw_sheet({key: images}):
            experiment.log_image(run_id, picture, key=key, step=step)
