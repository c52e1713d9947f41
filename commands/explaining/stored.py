"""Networks out of files: checkpoints of `Classifier` and `MAE`, and encoders. No file runs code."""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from litcam.datamodules.files import read_whole
from litcam.lightning_modules.backbones import create_backbone
from litcam.lightning_modules.masked.encoders import create_encoder
from litcam.lightning_modules.probing import plain_heads
from litcam.lightning_modules.weights import load_weights
from litcam.lightning_modules.weights.saving import read_facts

GIVE = "give last.ckpt or encoder.safetensors of a run of `litcam fit`"


@dataclass
class Stored:
    """A network out of a file.

    Attributes:
        network: In eval mode.
        backbone: timm's name.
        image_size: Side of the images it was trained on, in pixels, where the file tells.
        classes: Names, where the file tells.
        data_config: Of mean, std, crop_pct and interpolation of its images what the file tells.
        backbone_args: Further arguments of ``timm.create_model``.
    """

    network: nn.Module
    backbone: str
    image_size: int | None = None
    classes: Sequence[str] = ()
    data_config: dict[str, Any] = field(default_factory=dict)
    backbone_args: dict[str, Any] = field(default_factory=dict)


def read_network(path: Path) -> Stored:
    """Takes a network out of a file.

    Raises:
        OSError: If there is no such file.
        ValueError: If it is no checkpoint or encoder of litcam's.
    """
    if not path.is_file():
        raise FileNotFoundError(f"model {path} does not exist; give a file, or a timm model's name")
    if path.suffix == ".safetensors":
        return _read_encoder(path)
    stored = _read_weights(path)
    # LightningCLI keeps notes of its own among the options.
    options = {k: v for k, v in stored["hyper_parameters"].items() if not k.startswith("_")}
    try:
        if any(key.startswith("encoder.") for key in stored["state_dict"]):
            return _make_encoder(path, {**options, **_read_data_config(stored.get("data_config"))})
        return _make_classifier(stored, options)
    except Exception as error:  # options of another program may break anything
        raise ValueError(_refuse(path, _first_line(error))) from None


def _make_classifier(stored: dict[str, Any], options: dict[str, Any]) -> Stored:
    """Out of what tells the network: options of the training change from version to version."""
    name, arguments = options["backbone"], options.get("backbone_args") or {}
    network = create_backbone(name, options.get("num_classes", 1000), **arguments)
    weights = {
        key.removeprefix("backbone."): value
        for key, value in stored["state_dict"].items()
        if key.startswith("backbone.")
    }
    network.load_state_dict(plain_heads(weights))
    return Stored(
        network.eval(),
        name,
        stored.get("image_size"),
        stored.get("class_names") or (),
        _read_data_config(stored.get("data_config")),
        arguments,
    )


def _read_encoder(path: Path) -> Stored:
    facts, beside = read_facts(path), path.with_suffix(".json")
    if not facts and beside.is_file():
        facts = _read_json(beside)
    if "backbone" not in facts:
        raise ValueError(
            f"model {path} does not tell which network it is of; fine-tune it first: "
            f"litcam fit --model.weights {path}"
        )
    try:
        return _make_encoder(path, facts)
    except Exception as error:  # as above
        raise ValueError(_refuse(path, _first_line(error))) from None


def _read_json(path: Path) -> dict[str, Any]:
    try:
        facts = json.loads(read_whole(path))
    except (ValueError, RecursionError):
        facts = None
    if not isinstance(facts, dict):
        raise ValueError(f"{path} is damaged: it holds no facts as JSON; {GIVE}")
    return facts


def _make_encoder(path: Path, facts: dict[str, Any]) -> Stored:
    """Facts are those of `save_pretrained`, or the options of `MAE`."""
    backbone, options = facts["backbone"], dict(facts.get("backbone_args") or {})
    size = facts.get("image_size")
    encoder, size = create_encoder(backbone, size, pretrained=False, options=options)
    load_weights(encoder, path)
    return Stored(encoder.eval(), backbone, size, (), _read_data_config(facts), options)


def _read_data_config(facts: Any) -> dict[str, Any]:
    """Of what `describe_data` told, what is there."""
    found: dict[str, Any] = {}
    for name in ("mean", "std", "crop_pct", "interpolation"):
        if isinstance(facts, dict) and name in facts:
            value = facts[name]
            found[name] = tuple(value) if isinstance(value, list | tuple) else value
    return found


def _read_weights(path: Path) -> dict[str, Any]:
    try:
        stored = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # damage comes as anything from EOFError to KeyError
        if isinstance(error, OSError) and error.filename:  # it cannot be opened
            raise
        code = re.search(r"GLOBAL (\S+)", str(error))
        if code:
            reason = f"it holds {code[1]}, which may run code when it is loaded"
        else:
            reason = "it is damaged, or no file of torch"
        raise ValueError(_refuse(path, reason)) from None
    if not isinstance(stored, dict):
        raise ValueError(_refuse(path, f"it holds a {type(stored).__name__}"))
    weights, options = stored.get("state_dict"), stored.get("hyper_parameters")
    if not isinstance(weights, dict) or not isinstance(options, dict):
        lacks = "state_dict" if not isinstance(weights, dict) else "hyper_parameters"
        raise ValueError(_refuse(path, f"it has no {lacks}, which tells what network it is of"))
    ours = any(key.startswith(("backbone.", "encoder.")) for key in weights)
    if not ours or "backbone" not in options:
        raise ValueError(_refuse(path, "it is of another LightningModule"))
    return stored


def _refuse(path: Path, reason: str) -> str:
    return f"model {path} is not a checkpoint of litcam ({reason}); {GIVE}"


def _first_line(error: Exception) -> str:
    text = " ".join(str(error).strip().split("\n")[:2]) or type(error).__name__
    return " ".join(text.split())[:200]
