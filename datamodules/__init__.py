"""What it is trained on."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from litcam.datamodules.imagenet import ImageNetDataModule
    from litcam.datamodules.synthetic import SyntheticDataModule

__all__ = ["ImageNetDataModule", "SyntheticDataModule"]

_ROOMS = {"ImageNetDataModule": "imagenet", "SyntheticDataModule": "synthetic"}


def __getattr__(name: str) -> Any:
    # Late, because the process that fetches files of a remote data set imports its own room alone,
    # and would wait ten seconds for torch and Lightning.
    if name not in _ROOMS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_ROOMS[name]}"), name)
