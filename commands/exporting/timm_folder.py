"""A network as timm and Hugging Face's hub keep them: config.json and model.safetensors."""

import json
from pathlib import Path
from typing import Any

import torch
from timm.models import save_for_hf

from litcam.commands.explaining.models import Model
from litcam.files import write_whole

__all__ = ["write_timm"]

# What timm's config of a network says of the network itself, not of the weights it was made for.
OF_THE_NETWORK = ("architecture", "classifier", "first_conv", "fixed_input_size", "pool_size")


def write_timm(model: Model, folder: Path) -> None:
    """Write what ``timm.create_model("local-dir:FOLDER", pretrained=True)`` reads.

    Mean, std, crop, interpolation and image size are those of the training, and the names of the
    classes are there. What timm says of the weights it has itself (their licence, paper and
    origin) is left out: these are others.

    Raises:
        ValueError: If an argument that the network was made with cannot be written.
        OSError: If the folder cannot be written to.
    """
    network: Any = model.network
    own, size = network.pretrained_cfg, model.image_size
    network.pretrained_cfg = {
        **{name: own[name] for name in OF_THE_NETWORK if own.get(name) is not None},
        **vars(model.config),
        "crop_mode": "center",
        "input_size": (3, *size),
        "num_classes": network.num_classes,
    }
    if size != tuple(own["input_size"][1:]):
        network.pretrained_cfg.pop("pool_size", None)
    arguments = {
        name: value
        for name, value in model.backbone_args.items()
        if not name.endswith(("drop_rate", "path_rate"))
    }
    if getattr(getattr(network, "patch_embed", None), "img_size", None):
        arguments["img_size"] = list(size)
    names = list(model.classes)
    save_for_hf(
        network.to(memory_format=torch.contiguous_format),  # safetensors takes nothing else
        str(folder),
        model_config={"label_names": names} if names else None,
        model_args=arguments,
        safe_serialization=True,
    )
    # The number of classes stands beside them as well, and transformers takes no second one.
    config = json.loads((folder / "config.json").read_text())
    config.get("model_args", {}).pop("num_classes", None)
    write_whole(folder / "config.json", json.dumps(config, indent=2) + "\n")
