"""What `litcam explain` explains: networks by timm's name or out of a checkpoint, and classes."""

from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import torch
from timm.data import ImageNetInfo, infer_imagenet_subset
from torch import Tensor, nn

from litcam.datamodules.folders import readable_names
from litcam.datamodules.transforms import DataConfig, data_config
from litcam.lightning_modules import Classifier
from litcam.lightning_modules.backbones import create_backbone

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
    """

    name: str
    network: nn.Module
    image_size: tuple[int, int]
    config: DataConfig
    classes: Sequence[str]
    trained: bool

    def resolve(self, wanted: str, probabilities: Tensor) -> tuple[int, str]:
        """Number and name of a class: ``predicted``, a number, a name, ``cat`` or ``dog``.

        Of several classes that fit a word, such as the breeds of a dog, the likeliest is taken.

        Raises:
            ValueError: If there is none; the message has close matches.
        """
        fitting = self._fitting(wanted, len(probabilities))
        if not fitting:
            near = get_close_matches(wanted, self.classes, n=3, cutoff=0.4)
            hint = f"did you mean {', '.join(near)}?" if near else "give a number, or predicted"
            raise ValueError(f"{self.name} has no class {wanted!r}; {hint}")
        number = max(fitting, key=lambda place: float(probabilities[place]))
        return number, self.classes[number] if self.classes else f"class {number}"

    def _fitting(self, wanted: str, num_classes: int) -> list[int]:
        if wanted == "predicted":
            return list(range(num_classes))
        if wanted.isdigit():
            return [int(wanted)] if int(wanted) < num_classes else []
        lower = [name.lower() for name in self.classes]
        if wanted.lower() in lower:
            return [lower.index(wanted.lower())]
        if len(lower) == 1000 and wanted.lower() in GROUPS:
            return list(GROUPS[wanted.lower()])
        return [at for at, name in enumerate(lower) if wanted.lower() in name.split()]


def load_model(name: str, *, pretrained: bool) -> Model:
    """Makes a network by timm's name, or takes it out of a checkpoint of `Classifier`.

    Args:
        name: Of a timm model, or path of a checkpoint.
        pretrained: Whether timm's weights are downloaded; else they are random.

    Raises:
        OSError: If there is no such file.
        ValueError: If there is no such model, or the file is no checkpoint of a classifier.
    """
    if name.endswith(SUFFIXES) or Path(name).exists():
        return _from_checkpoint(Path(name))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = create_backbone(name, 1000, pretrained=pretrained).eval()
    subset = infer_imagenet_subset(network)
    classes = readable_names(ImageNetInfo(subset).label_names()) if subset else []
    return _model(name, name, network, classes, trained=pretrained)


def _from_checkpoint(path: Path) -> Model:
    if not path.is_file():
        raise FileNotFoundError(f"model {path} does not exist; give a file, or a timm model's name")
    if path.suffix == ".safetensors":
        raise ValueError(
            f"model {path} is an encoder and knows no classes; fine-tune it first: "
            f"litcam fit --model.encoder {path}"
        )
    try:
        # Weights only: a checkpoint never runs code.
        stored: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        options = dict(stored["hyper_parameters"])
        module = Classifier(**{**options, "pretrained": False, "encoder": ""})
        module.load_state_dict(stored["state_dict"])
    except OSError:
        raise
    except Exception as error:
        reason = str(error).strip().split("\n")[0][:200]
        raise ValueError(
            f"model {path} is not a checkpoint of litcam's Classifier ({reason}); give last.ckpt "
            "of a run of `litcam fit`"
        ) from None
    title = path.parent.parent.parent.name if path.parent.name == "checkpoints" else path.stem
    classes = stored.get("class_names") or []
    return _model(title, options["backbone"], module.eval().backbone, classes, trained=True)


def _model(
    title: str, backbone: str, network: nn.Module, classes: Sequence[str], *, trained: bool
) -> Model:
    size = getattr(getattr(network, "patch_embed", None), "img_size", None)
    if size is None:
        size = getattr(network, "pretrained_cfg", {}).get("input_size", (3, 224, 224))[1:]
    return Model(title, network, (size[0], size[1]), data_config(backbone), classes, trained)
