"""When a prediction is explained: Lightning callbacks."""

from litcam.callbacks.coverage import Coverage
from litcam.callbacks.end_together import EndTogether
from litcam.callbacks.grad_cam import GradCAM
from litcam.callbacks.neighbours import Neighbours
from litcam.callbacks.reconstructions import Reconstructions
from litcam.callbacks.wandb_logger import WandbLogger

__all__ = ["Coverage", "EndTogether", "GradCAM", "Neighbours", "Reconstructions", "WandbLogger"]
