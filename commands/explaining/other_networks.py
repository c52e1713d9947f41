"""Networks for `litcam explain` that are neither litcam's own files nor plain names of timm's."""

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from timm.data import ImageNetInfo, infer_imagenet_subset
from torch import Tensor, nn

from litcam.commands.cli.errors import unknown
from litcam.datamodules.pixels.data_config import DataConfig, data_config, data_config_of
from litcam.datamodules.sources.folders import readable_names
from litcam.lightning_modules.backbones import create_backbone
from litcam.lightning_modules.weights import load_weights

__all__ = ["Network", "class_names", "find_network", "split_name"]

SOURCES = ("hf-hub:", "local-dir:")  # timm's own names for where weights are


@dataclass
class Network:
    """A network and what it expects and answers.

    Attributes:
        network: In eval mode; images to logits.
        config: Mean, std, crop and interpolation of its images.
        classes: Their names; empty where they are not known.
        image_size: Height and width in pixels, where something tells.
    """

    network: nn.Module
    config: DataConfig
    classes: Sequence[str] = ()
    image_size: tuple[int, int] | None = None


def find_network(name: str) -> Network | None:
    """Makes a network of any origin, or answers with None if the name is of no such kind.

    - ``NAME=FILE``: timm's network of that name with the weights of a file or folder
    - a folder of Hugging Face's hub, of timm's or of transformers'
    - ``hf-hub:…``, as timm has it
    - ``module:function``: what a function of one's own gives; nothing but this runs foreign code

    Raises:
        OSError: If there is no such file.
        ValueError: If it cannot be made, in one line.
    """
    architecture, file = split_name(name)
    if architecture:
        return _of_timm(architecture, file)
    if Path(name).is_dir():
        return _of_folder(Path(name))
    if name.startswith(SOURCES):
        network: Any = create_backbone(name, None, pretrained=True)
        return _described(network)
    if ":" in name and not Path(name).exists():
        return _of_function(name)
    return None


def split_name(name: str) -> tuple[str, str]:
    """Parts ``NAME=FILE``; the name is empty where it is none, as of ``best-epoch=003.ckpt``.

    >>> split_name("resnet34=w.pth"), split_name("runs/sweeps/lr/lr=0.1,seed=0/mistyped.ckpt")
    (('resnet34', 'w.pth'), ('', 'runs/sweeps/lr/lr=0.1,seed=0/mistyped.ckpt'))
    """
    architecture, equals, file = name.partition("=")
    is_path = "/" in architecture and not architecture.startswith(SOURCES)
    return (
        (architecture, file) if equals and not is_path and not Path(name).exists() else ("", name)
    )


def class_names(network: nn.Module) -> list[str]:
    """Names of the classes of a timm network with ImageNet's weights, or with names of its own."""
    config = getattr(network, "pretrained_cfg", None) or {}
    if config.get("label_names"):
        return list(config["label_names"])
    subset = infer_imagenet_subset(network)
    return readable_names(ImageNetInfo(subset).label_names()) if subset else []


def _of_timm(architecture: str, file: str) -> Network:
    if not file:
        raise ValueError(f"model {architecture}= lacks a file; write {architecture}=weights.pth")
    network: Any = create_backbone(architecture, None)
    print(load_weights(network, file, head_of_file=True))  # the log is quiet here
    return _described(network)


def _described(network: Any) -> Network:
    config = data_config_of(network.pretrained_cfg)
    # Of as many classes as ImageNet has, in all likelihood ImageNet's.
    return Network(network.eval(), config, class_names(network))


def _of_folder(folder: Path) -> Network:
    file = folder / "config.json"
    try:
        config = json.loads(file.read_text()) if file.is_file() else {}
        kind = {"architecture", "model_type"} & config.keys()
    except (ValueError, AttributeError):
        raise ValueError(f"model {folder}: {file} is no JSON object") from None
    if "architecture" in kind:
        return _described(create_backbone(f"local-dir:{folder}", None, pretrained=True))
    if "model_type" in kind:
        return _of_transformers(folder)
    raise ValueError(
        f"model {folder}: the folder has no config.json of timm or transformers; "
        f"write NAME={folder} with timm's name of the network"
    )


class Logits(nn.Module):
    """A network of transformers that answers with its logits.

    Args:
        network: An image classifier.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        """Maps images (batch, 3, height, width) to logits (batch, num_classes)."""
        logits: Tensor = self.network(pixel_values=images).logits
        return logits


def _of_transformers(folder: Path) -> Network:
    if find_spec("transformers") is None:
        raise ValueError(f"model {folder} is of transformers; pip install transformers")
    from transformers import AutoImageProcessor, AutoModelForImageClassification

    try:
        # Files alone: no network, and no code out of the folder.
        made = AutoModelForImageClassification.from_pretrained(folder, local_files_only=True)
        processor: Any = AutoImageProcessor.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"model {folder}: transformers cannot read it ({reason})") from None
    config = data_config("")
    if getattr(processor, "image_mean", None):
        mean, std = tuple(processor.image_mean), tuple(processor.image_std)
        config = replace(config, mean=mean, std=std, crop_pct=1.0)
    size = dict(getattr(processor, "size", None) or {})
    side = size.get("shortest_edge") or 224
    labels = made.config.id2label
    names = [labels[number] for number in sorted(labels)]
    shape = (size.get("height") or side, size.get("width") or side)
    return Network(Logits(made.eval()), config, names, shape)


def _of_function(name: str) -> Network:
    module_name, _, function_name = name.partition(":")
    sys.path.insert(0, str(Path.cwd()))
    try:
        module = import_module(module_name)
    except ImportError as error:
        raise ValueError(
            f"model {name}: cannot import {module_name!r} ({error}); "
            "name a module of this folder or an installed one"
        ) from None
    finally:
        sys.path.pop(0)
    function = getattr(module, function_name, None)
    if not callable(function):
        known = [each for each in vars(module) if not each.startswith("_")]
        raise ValueError(unknown(f"function of {module_name}", function_name, known))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = function()
    if not isinstance(network, nn.Module):
        raise ValueError(f"model {name} gives {type(network).__name__}, not a torch.nn.Module")
    config = getattr(network, "pretrained_cfg", None)
    if config:
        return _described(network)
    return Network(network.eval(), data_config(""))
