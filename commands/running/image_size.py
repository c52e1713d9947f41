"""One option for the size of the images: what the data give is what the network is made for."""

import re
from collections.abc import Sequence
from typing import Any

from lightning.pytorch.utilities import rank_zero_info

from litcam.datamodules.pixels.data_config import fixed_image_size

DATA = r"--data\.(init_args\.)?image_size\b"
MODEL = r"--model\.(init_args\.)?(image_size|backbone_args)\b"


def follow_data(config: Any, words: Sequence[str]) -> None:
    """Has the network made for images of `--data.image_size`, where it takes one size alone.

    `MAE` gets it as its `image_size`; a backbone that timm made for another size (ViT, Swin) as
    `backbone_args: {img_size: …}`, so that its positions are resampled. What stands on the command
    line wins over the model's size in a config.

    Args:
        config: of the subcommand; changed in place.
        words: of the command line.

    Raises:
        ValueError: two options for the size disagree, or timm knows no such backbone.
    """
    size, model = _arguments(config, "data").get("image_size"), _arguments(config, "model")
    if not isinstance(size, int):
        return
    follows = _stands(DATA, words) and not _stands(MODEL, words)
    if "image_size" in model:
        if not follows:
            _check(size, model["image_size"], "--model.image_size")
        model["image_size"] = size
        return
    given = model.get("backbone_args") or {}
    if "backbone_args" not in model or "dynamic_img_size" in given:
        return
    own = given.get("img_size")
    if not follows:
        _check(size, own, "--model.backbone_args.img_size")
    own = own or fixed_image_size(model["backbone"])
    if own not in (None, size):
        model["backbone_args"] = {**given, "img_size": size}
        rank_zero_info(f"{model['backbone']} is made for {size}x{size} pixels instead of {own}")


def check_patches(model: Any, image_size: Any) -> None:
    """Holds the size of the images against a network's patches.

    Raises:
        ValueError: they do not divide it.
    """
    embed: Any = getattr(getattr(model, "backbone", None), "patch_embed", None)
    if not getattr(embed, "strict_img_size", False) or not isinstance(image_size, int):
        return
    side = embed.patch_size[0]
    if image_size % side:
        near = [image_size // side * side, (image_size // side + 1) * side]
        raise ValueError(
            f"--data.image_size must be a multiple of the patch size {side} of the backbone, got "
            f"{image_size}; take {' or '.join(str(each) for each in near if each)}"
        )


def _arguments(config: Any, group: str) -> Any:
    return (config.get(group) or {}).get("init_args") or {}


def _stands(option: str, words: Sequence[str]) -> bool:
    return any(re.match(option, word) for word in words)


def _check(size: int, asked: Any, option: str) -> None:
    if asked not in (None, size, [size, size], (size, size)):
        raise ValueError(
            f"--data.image_size {size} disagrees with {option} {asked}; on the command line give "
            "the first alone, and the second follows"
        )
