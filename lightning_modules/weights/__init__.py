"""Anybody's weights into a timm network: read without running code, fitted by name, and told."""

from litcam.lightning_modules.weights.loading import load_weights
from litcam.lightning_modules.weights.normalisation import read_normalisation, warn_of_normalisation
from litcam.lightning_modules.weights.reading import StateDict, read_state_dicts

__all__ = [
    "StateDict",
    "load_weights",
    "read_normalisation",
    "read_state_dicts",
    "warn_of_normalisation",
]
