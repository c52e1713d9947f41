"""When a prediction is explained: Lightning callbacks."""

from litcam.callbacks.coverage import Coverage
from litcam.callbacks.ema import EMA
from litcam.callbacks.end_together import EndTogether
from litcam.callbacks.grad_cam import GradCAM
from litcam.callbacks.neighbours import Neighbours
from litcam.callbacks.places.csv_logger import SafeCSVLogger
from litcam.callbacks.places.sending import add_place
from litcam.callbacks.places.wandb_logger import WandbLogger
from litcam.callbacks.reconstructions import Reconstructions

__all__ = [
    "EMA",
    "Coverage",
    "EndTogether",
    "GradCAM",
    "Neighbours",
    "Reconstructions",
    "SafeCSVLogger",
    "WandbLogger",
    "add_place",
]
