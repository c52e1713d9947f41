"""torchvision's names of the tensors of a network in timm's words."""

import re
from collections.abc import Mapping

import torch
import torchvision
from torch import Tensor, nn

__all__ = ["compare_answers", "find_torchvision", "rename_torchvision"]

_VIT = [
    (r"^class_token$", "cls_token"),
    (r"^conv_proj\.", "patch_embed.proj."),
    (r"^encoder\.pos_embedding$", "pos_embed"),
    (r"^encoder\.ln\.", "norm."),
    (r"^encoder\.layers\.encoder_layer_(\d+)\.", r"blocks.\1."),
    (r"\.ln_(\d)\.", r".norm\1."),
    (r"\.self_attention\.in_proj_", ".attn.qkv."),
    (r"\.self_attention\.out_proj\.", ".attn.proj."),
    (r"\.mlp\.(0|linear_1)\.", ".mlp.fc1."),
    (r"\.mlp\.(3|linear_2)\.", ".mlp.fc2."),
    (r"^heads\.head\.", "head."),
]
_SWIN = [
    (r"^features\.0\.0\.", "patch_embed.proj."),
    (r"^features\.0\.2\.", "patch_embed.norm."),
    (r"\.mlp\.0\.", ".mlp.fc1."),
    (r"\.mlp\.3\.", ".mlp.fc2."),
    (r"^head\.", "head.fc."),
]


def rename_torchvision(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Give a ViT's or Swin's tensors timm's names; anything else comes back as it was."""
    if "encoder.pos_embedding" in tensors:
        return {_rename(key, _VIT): value for key, value in tensors.items()}
    if "features.1.0.attn.relative_position_bias_table" in tensors:
        renamed = {}
        for key, value in tensors.items():
            if key.endswith("relative_position_index"):
                continue
            if match := re.match(r"features\.(\d+)\.(?=norm|reduction|\d+\.)", key):
                # Stages stand at 1, 3, 5 and 7, and what halves the map between them.
                at, rest = int(match[1]), key[match.end() :]
                if at % 2:
                    key = f"layers.{at // 2}.blocks.{rest}"
                elif at:
                    key = f"layers.{at // 2}.downsample.{rest}"
            renamed[_rename(key, _SWIN)] = value
        return renamed
    return dict(tensors)


def _rename(key: str, rules: list[tuple[str, str]]) -> str:
    for pattern, replacement in rules:
        key = re.sub(pattern, replacement, key)
    return key


def find_torchvision(tensors: Mapping[str, Tensor], architecture: str) -> str:
    """Find the torchvision network of a name like `architecture` whose tensors these are, or "".

    Args:
        tensors: A state dict.
        architecture: timm's name of the network they are meant for.
    """
    wanted = _plain(architecture)
    names = torchvision.models.list_models(module=torchvision.models)
    near = [name for name in names if wanted.startswith(_plain(name)[:6])]
    for name in sorted(near, key=lambda name: -_common(_plain(name), wanted)):
        try:
            with torch.device("meta"):
                own = torchvision.models.get_model(name).state_dict()
        except NotImplementedError:  # computes its widths with tensors
            continue
        same = own.keys() == tensors.keys()
        if same and all(own[key].shape[1:] == value.shape[1:] for key, value in tensors.items()):
            return str(name)
    return ""


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())


def _common(a: str, b: str) -> int:
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), len(a))


@torch.no_grad()
def compare_answers(name: str, tensors: Mapping[str, Tensor], model: nn.Module) -> str:
    """Hold a timm model's answers against those of the torchvision network its weights are of.

    Args:
        name: torchvision's.
        tensors: torchvision's state dict.
        model: With the same weights and number of classes; it is left in eval mode.

    Returns:
        What differs, or "".
    """
    num_classes = list(tensors.values())[-1].numel()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        theirs = torchvision.models.get_model(name, num_classes=num_classes).eval()
        images = torch.randn(1, 3, 224, 224)
    theirs.load_state_dict(tensors)
    expected, found = theirs(images), model.eval()(images)
    difference = float((expected - found).abs().max() / expected.abs().max().clamp_min(1e-12))
    if difference < 1e-3:
        return ""
    eps = [{layer.eps for layer in of.modules() if hasattr(layer, "eps")} for of in (theirs, model)]
    reason = f"answers of timm's differ by {difference:.1%}"
    if eps[0] != eps[1] and len(eps[0]) == 1:
        value = f"{eps[0].pop():g}"
        reason += f", as eps is {value} there: backbone_args: {{bn_eps: {value}}}"
    return reason
