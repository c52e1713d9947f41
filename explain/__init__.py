"""How a prediction is explained, in plain PyTorch: no Lightning in this room."""

from litcam.explain.cam import CAM, find_target_layer
from litcam.explain.layers.layout import TargetLayer
from litcam.explain.methods.finer import finer_scores
from litcam.explain.methods.formulas import METHODS, SLOW_METHODS, VIT_METHODS, scale_maps
from litcam.explain.methods.guided import guided_gradcam
from litcam.explain.methods.slow import count_forwards, slow_map
from litcam.explain.metrics.drift import Drift, MapMemory
from litcam.explain.metrics.faithfulness import AverageDropIncrease, DeletionInsertion
from litcam.explain.metrics.maps import BlankMaps, EnergyInside, PointingGame, Sparseness
from litcam.explain.metrics.randomisation import randomisation_check
from litcam.explain.metrics.road import ROAD
from litcam.explain.metrics.table import METRICS, find_metric
from litcam.explain.scores import Scored

__all__ = [
    "CAM",
    "METHODS",
    "METRICS",
    "ROAD",
    "SLOW_METHODS",
    "VIT_METHODS",
    "AverageDropIncrease",
    "BlankMaps",
    "DeletionInsertion",
    "Drift",
    "EnergyInside",
    "MapMemory",
    "PointingGame",
    "Scored",
    "Sparseness",
    "TargetLayer",
    "count_forwards",
    "find_metric",
    "find_target_layer",
    "finer_scores",
    "guided_gradcam",
    "randomisation_check",
    "scale_maps",
    "slow_map",
]
