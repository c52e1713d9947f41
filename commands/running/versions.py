"""What a run is made with, for its report."""

import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import yaml
from lightning.pytorch import Trainer

from litcam.files import write_whole

FILE = "versions.yaml"
PACKAGES = (
    "litcam torch torchvision timm lightning torchmetrics grad-cam wandb einops safetensors obstore"
)


def keep_versions(trainer: Trainer, folder: Path) -> None:
    """Writes versions of packages, processes, precision and system into a run's folder."""
    found = {name: _version(name) for name in PACKAGES.split()}
    found["python"] = platform.python_version()
    found["processes"] = f"{trainer.world_size}, {type(trainer.accelerator).__name__}"
    found["precision"] = str(trainer.precision)
    found["system"] = platform.platform()
    write_whole(folder / FILE, yaml.safe_dump(found, sort_keys=False))


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed as a package"
