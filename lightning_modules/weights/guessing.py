"""Which of timm's networks a state dict is of, for the message that it is not of the one asked."""

import time
from collections.abc import Mapping
from difflib import get_close_matches

import timm
import torch
from torch import Tensor

__all__ = ["guess_architecture"]

# A tensor that networks of one of timm's modules have, and most others do not.
MARKS = {
    "layers.0.blocks.0.attn.relative_position_bias_table": "swin_transformer",
    "blocks.0.attn.qkv.weight": "vision_transformer",
    "stages.0.blocks.0.conv_dw.weight": "convnext",
    "s1.b1.conv1.conv.weight": "regnet",
    "layer1.0.conv1.weight": "resnet",
    "bn2.weight": "efficientnet",
    "blocks.1.0.conv_pw.weight": "mobilenetv3",
    "features.0.weight": "vgg",
    "features.conv0.weight": "densenet",
}
USUAL = ("deit_", "efficientnet_b", "tf_efficientnet_lite", "vit_base_", "vit_small_", "vit_tiny_")
SECONDS = 3.0  # that a refusal may take to be helpful


def guess_architecture(tensors: Mapping[str, Tensor], heads: tuple[str, ...], asked: str) -> str:
    """Find the timm network whose tensors these are, but for the head, or "".

    Args:
        tensors: A state dict.
        heads: What names of the head begin with.
        asked: timm's name of the network they do not fit; similar ones are tried first.
    """
    module = next((module for mark, module in MARKS.items() if mark in tensors), None)
    names = timm.list_models(module=module) if module else []
    given = _shapes(tensors, heads)
    begun = time.monotonic()
    # Then those that are asked for most, and short ones, which plain networks have.
    usual = sorted(names, key=lambda name: (not name.startswith(USUAL), len(name)))
    near = dict.fromkeys([*get_close_matches(asked, names, 10, 0.8), *usual])
    for name in near:
        if time.monotonic() - begun > SECONDS:
            break
        with torch.device("meta"):
            own = timm.create_model(name, num_classes=0).state_dict()
        if _shapes(own, heads) == given:
            return str(name)
    return ""


def _shapes(tensors: Mapping[str, Tensor], heads: tuple[str, ...]) -> dict[str, torch.Size]:
    return {
        key: value.shape
        for key, value in tensors.items()
        if value.ndim and not key.startswith(heads)
    }
