"""When a prediction is explained: Lightning callbacks."""

from litcam.callbacks.coverage import Coverage
from litcam.callbacks.grad_cam import GradCAM
from litcam.callbacks.neighbours import Neighbours
from litcam.callbacks.reconstructions import Reconstructions
from litcam.callbacks.wandb_logger import WandbLogger

__all__ = ["Coverage", "GradCAM", "Neighbours", "Reconstructions", "WandbLogger"]
