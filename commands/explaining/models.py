"""What `litcam explain` explains: networks by timm's name or out of a file, and their classes."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from litcam.commands.explaining.other_networks import class_names, find_network, split_name
from litcam.commands.explaining.stored import read_network
from litcam.commands.explaining.words import tell_apart
from litcam.datamodules.pixels.data_config import DataConfig, data_config
from litcam.datamodules.sources.folders import readable_names
from litcam.lightning_modules.backbones import create_backbone
from litcam.lightning_modules.weights.size import check_size

SUFFIXES = (".ckpt", ".pt", ".pth", ".safetensors")
# ImageNet lists its breeds one after the other.
GROUPS = {"dog": range(151, 269), "cat": range(281, 286)}


@dataclass
class Model:
    """A network with what its images and classes are.

    Attributes:
        name: As it was given, shortened for a title.
        network: In eval mode.
        image_size: Height and width that it takes, in pixels.
        config: Mean, std, crop and interpolation of its images.
        classes: Names; empty where they are not known.
        trained: Whether its weights are more than random numbers.
        has_classes: False for an encoder, which answers with features.
        backbone_args: Further arguments of ``timm.create_model`` that a file of litcam's tells.
    """

    name: str
    network: nn.Module
    image_size: tuple[int, int]
    config: DataConfig
    classes: Sequence[str]
    trained: bool
    has_classes: bool = True
    backbone_args: dict[str, Any] = field(default_factory=dict)

    def resolve(self, wanted: str, probabilities: Tensor, folder: str = "") -> tuple[int, str]:
        """Number and name of a class: ``predicted``, ``true``, a name, a number, ``cat``, ``dog``.

        Of several classes that fit a word, such as the breeds of a dog, the likeliest is taken.

        Args:
            wanted: The word.
            probabilities: ``(num_classes,)``.
            folder: That the photo lies in; its name is the true class.

        Raises:
            ValueError: If there is none; the message has close matches.
        """
        if wanted == "true" and "true" not in self.classes:
            fitting = self._named(folder) or self._named(*readable_names([folder]))
            if not fitting:
                raise ValueError(
                    f"true: the photo's folder is {folder!r}, and {self.name} has no such class"
                    f"{self._hint(folder, '; name the class with --classes')}"
                )
        else:
            fitting = self._fitting(wanted, len(probabilities))
        if not fitting:
            hint = self._hint(wanted, "; give a number, or predicted")
            raise ValueError(f"{self.name} has no class {wanted!r}{hint}")
        number = max(fitting, key=lambda place: float(probabilities[place]))
        return number, self.classes[number] if self.classes else f"class {number}"

    def _hint(self, wanted: str, otherwise: str) -> str:
        near = get_close_matches(wanted, self.classes, n=3, cutoff=0.4)
        return f"; did you mean {', '.join(near)}?" if near else otherwise

    def _fitting(self, wanted: str, num_classes: int) -> list[int]:
        if wanted == "predicted":
            return list(range(num_classes))
        # First by name: folders of digits are sorted as words, so that "10" is not number 10.
        if not (named := self._named(wanted)) and wanted.isdecimal():
            return [int(wanted)] if int(wanted) < num_classes else []
        return named

    def _named(self, wanted: str) -> list[int]:
        wanted = wanted.lower().replace("_", " ")
        names = [name.lower().replace("_", " ") for name in self.classes]
        if wanted in names:
            return [names.index(wanted)]
        if wanted in GROUPS and len(names) == 1000 and names[281].startswith("tabby"):
            return list(GROUPS[wanted])
        return [at for at, name in enumerate(names) if wanted and wanted in name.split()]


def load_model(name: str, *, pretrained: bool) -> Model:
    """Makes a network by timm's name, or takes it out of a checkpoint or an encoder's file.

    Args:
        name: Of a timm model, or path of a file.
        pretrained: Whether timm's weights are downloaded; else they are random.

    Raises:
        OSError: If there is no such file.
        ValueError: If there is no such model, or the file is none of litcam's.
    """
    if other := find_network(name):
        title, classes, size = _titles(name)[0], other.classes, other.image_size
        return _model(title, other.network, other.config, classes, size=size, trained=True)
    if _is_file(name):
        check_size(Path(name), "model")
        stored = read_network(Path(name))
        config = replace(data_config(stored.backbone), **stored.data_config)
        size = (stored.image_size, stored.image_size) if stored.image_size else None
        made = _model(
            _titles(name)[0], stored.network, config, stored.classes, size=size, trained=True
        )
        return replace(made, backbone_args=stored.backbone_args)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        # As many classes as its weights have: another number would give it a head of random ones.
        network = create_backbone(name, None, pretrained=pretrained).eval()
    return _model(name, network, data_config(name), class_names(network), trained=pretrained)


def name_models(models: Sequence[str]) -> dict[str, str]:
    """A title for each: timm's name, or of a file as much as tells it from the others."""
    return tell_apart({name: _titles(name) for name in models})


def _is_file(name: str) -> bool:
    return name.endswith(SUFFIXES) or Path(name).exists()


def _titles(name: str) -> list[str]:
    """What to call a model, from short to long."""
    architecture, file = split_name(name)
    if architecture:
        return [architecture, f"{architecture}, {Path(file).stem}", name]
    if not _is_file(name):
        return [name]
    path = Path(name).absolute()
    parts = [path.stem, *reversed(path.parts[1:-1])]
    if path.parent.name == "checkpoints" and len(parts) > 3:
        run, version = parts[3], parts[2]
        if not version.startswith("version_"):  # of a sweep, or named by --run_folder
            return [version, f"{run}/{version}", f"{run}/{version}/{path.stem}", name]
        return [run, f"{run}/{version}", f"{run}/{version}/{path.stem}", name]
    return ["/".join(reversed(parts[:depth])) for depth in range(1, len(parts) + 1)] + [name]


def _model(
    title: str,
    network: nn.Module,
    config: DataConfig,
    classes: Sequence[str],
    *,
    size: tuple[int, int] | None = None,
    trained: bool,
) -> Model:
    size = getattr(getattr(network, "patch_embed", None), "img_size", None) or size
    if size is None:
        size = getattr(network, "pretrained_cfg", {}).get("input_size", (3, 224, 224))[1:]
    has_classes = getattr(network, "num_classes", 1) != 0
    height, width = size
    return Model(title, network, (height, width), config, classes, trained, has_classes)
