"""How a prediction is explained, in plain PyTorch: no Lightning in this room."""

from litcam.explain.cam import CAM, find_target_layer
from litcam.explain.methods import METHODS, scale_maps
from litcam.explain.networks import NetworkFinder
from litcam.explain.target_layers import TargetLayer

__all__ = ["CAM", "METHODS", "NetworkFinder", "TargetLayer", "find_target_layer", "scale_maps"]
