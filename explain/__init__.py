"""How a prediction is explained, in plain PyTorch: no Lightning in this room."""

from litcam.explain.cam import CAM, find_target_layer
from litcam.explain.drift import Drift
from litcam.explain.faithfulness import AverageDropIncrease, DeletionInsertion
from litcam.explain.guided import guided_gradcam
from litcam.explain.methods import METHODS, SLOW_METHODS, scale_maps
from litcam.explain.metrics import (
    METRICS,
    BlankMaps,
    EnergyInside,
    PointingGame,
    Sparseness,
    find_metric,
)
from litcam.explain.networks import NetworkFinder
from litcam.explain.randomisation import randomisation_check
from litcam.explain.road import ROAD
from litcam.explain.slow_methods import count_forwards, slow_map
from litcam.explain.target_layers import TargetLayer

__all__ = [
    "CAM",
    "METHODS",
    "METRICS",
    "ROAD",
    "SLOW_METHODS",
    "AverageDropIncrease",
    "BlankMaps",
    "DeletionInsertion",
    "Drift",
    "EnergyInside",
    "NetworkFinder",
    "PointingGame",
    "Sparseness",
    "TargetLayer",
    "count_forwards",
    "find_metric",
    "find_target_layer",
    "guided_gradcam",
    "randomisation_check",
    "scale_maps",
    "slow_map",
]
