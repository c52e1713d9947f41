"""Pictures in Weights & Biases: a list under each key, one slider over the validations."""

from typing import Any

from litcam.callbacks.places.pictures import Views


def to_wandb(experiment: Any, views: Views, epoch: int, step: int) -> None:
    """Logs one record: two calls would be two stops of the slider."""
    import wandb

    record: dict[str, Any] = {
        key: [
            # uint8 and JPEG: a float image turns black, PNG takes eleven times as long.
            wandb.Image(image.picture, caption=image.caption, file_type="jpg")
            for image in images
        ]
        for key, images in views.items()
    }
    experiment.log({**record, "epoch": epoch, "trainer/global_step": step})
