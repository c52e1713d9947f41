"""From a file to pixels, and from pixels to what the network takes.

Images stay uint8 until they are on the device: a batch is then a quarter of the size of a float
one on its way from the workers, and turning it into normalised floats is one kernel there.
"""

import difflib
import math
import re
import warnings
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

import timm
import torch
from timm.data import resolve_data_config
from timm.data.random_erasing import RandomErasing
from torch import Tensor
from torchvision.io import ImageReadMode, decode_image
from torchvision.transforms import v2

AutoAugment = Literal["", "rand", "trivial"]


@dataclass(frozen=True)
class DataConfig:
    """What a network expects of its images, in the words of timm's data config.

    Attributes:
        mean: One value a channel, of pixels in [0, 1].
        std: One value a channel, of pixels in [0, 1].
        crop_pct: The share of the resized image's short side that the centre crop keeps.
        interpolation: ``bicubic`` or ``bilinear``.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    crop_pct: float
    interpolation: str


def data_config(backbone: str) -> DataConfig:
    """Looks up the data config of a timm model without building the model.

    >>> data_config("vit_base_patch16_224").mean
    (0.5, 0.5, 0.5)

    Args:
        backbone: timm's name, with or without a tag; "" means timm's ImageNet defaults.

    Raises:
        ValueError: If timm knows no such model.
    """
    pretrained: dict[str, object] = {}
    if backbone:
        pretrained = _pretrained_config(backbone)
    resolved = resolve_data_config({"in_chans": 3}, pretrained_cfg=pretrained)
    return DataConfig(
        mean=tuple(resolved["mean"]),
        std=tuple(resolved["std"]),
        crop_pct=resolved["crop_pct"],
        interpolation=resolved["interpolation"],
    )


def _pretrained_config(backbone: str) -> dict[str, object]:
    try:
        config = timm.get_pretrained_cfg(backbone) if timm.is_model(backbone) else None
    except RuntimeError:  # a known model with an unknown tag
        config = None
    if config is not None:
        return dict(config.to_dict())
    known = timm.list_models() + timm.list_pretrained()
    close = difflib.get_close_matches(backbone, known, n=3)
    hint = f"did you mean {', '.join(close)}?" if close else "timm.list_models() has them all"
    raise ValueError(f"backbone must be the name of a timm model, got {backbone!r}; {hint}")


def read_image(path: Path) -> Tensor:
    """Decodes one file as RGB uint8 ``(3, height, width)``; EXIF rotation is ignored, as usual.

    Raises:
        ValueError: If the file cannot be read, in one line with its path and the reason.
    """
    try:
        # torchvision 0.29 points to torchcodec, which needs a newer torch than litcam does
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "The image decoding", DeprecationWarning)
            image = decode_image(str(path), mode=ImageReadMode.RGB)
    except (RuntimeError, OSError) as error:
        # torchvision puts the place in its own C++ source before the reason
        reason = re.sub(r"^\S+, \S+:\d+, ", "", " ".join(str(error).split()))
        raise ValueError(
            f"cannot read image {path}: {reason.rstrip('.')}; "
            "replace it with a readable JPEG, PNG, WebP or GIF, or delete it"
        ) from None
    if image.ndim == 4:  # an animation stands for its first frame
        image = image[0]
    return v2.functional.to_dtype(image, torch.uint8, scale=True)


def train_transform(
    image_size: int,
    config: DataConfig,
    *,
    crop_scale: tuple[float, float] = (0.08, 1.0),
    hflip: float = 0.5,
    auto_augment: AutoAugment = "",
) -> v2.Transform:
    """Makes the random transform of training, uint8 ``(3, height, width)`` to ``(3, size, size)``.

    Args:
        image_size: Side of the result in pixels.
        config: Gives the interpolation, and the mean colour that fills what augmentation uncovers.
        crop_scale: Smallest and largest share of the image's area that a crop may take.
        hflip: Probability of mirroring.
        auto_augment: ``rand`` (RandAugment, arXiv:1909.13719), ``trivial`` (TrivialAugment,
            arXiv:2103.10158) or "" for neither.
    """
    interpolation = v2.InterpolationMode(config.interpolation)
    steps: list[torch.nn.Module] = [
        v2.RandomResizedCrop(
            image_size, scale=crop_scale, interpolation=interpolation, antialias=True
        ),
        v2.RandomHorizontalFlip(hflip),
    ]
    # Bilinear, because torchvision's affine transforms of tensors know no bicubic.
    fill = [round(255 * value) for value in config.mean]
    if auto_augment == "rand":
        steps.append(v2.RandAugment(interpolation=v2.InterpolationMode.BILINEAR, fill=fill))
    elif auto_augment == "trivial":
        steps.append(v2.TrivialAugmentWide(interpolation=v2.InterpolationMode.BILINEAR, fill=fill))
    return v2.Compose(steps)


def eval_transform(image_size: int, config: DataConfig) -> v2.Transform:
    """Makes timm's eval transform: short side to ``image_size / crop_pct``, then centre crop."""
    return v2.Compose(
        [
            v2.Resize(
                math.floor(image_size / config.crop_pct),
                interpolation=v2.InterpolationMode(config.interpolation),
                antialias=True,
            ),
            v2.CenterCrop(image_size),
        ]
    )


def normalize(images: Tensor, config: DataConfig, *, dtype: torch.dtype = torch.float32) -> Tensor:
    """Turns uint8 images into normalised floats where they are, in one kernel.

    Args:
        images: uint8 ``(batch, 3, height, width)``.
        config: Gives mean and standard deviation.
        dtype: Of the result. The arithmetic is float32 whatever it is.

    Returns:
        ``(images / 255 - mean) / std``, same shape.
    """
    scale, offset = _scale_and_offset(config, images.device)
    return torch.addcmul(offset, images, scale).to(dtype)


@cache
def _scale_and_offset(config: DataConfig, device: torch.device) -> tuple[Tensor, Tensor]:
    # Kept, because copying them for each batch would have the host wait for the GPU each time;
    # outside of inference mode, because training uses those that a validation made.
    with torch.inference_mode(False):
        mean = torch.tensor(config.mean, device=device).view(-1, 1, 1)
        std = torch.tensor(config.std, device=device).view(-1, 1, 1)
        return 1 / (255 * std), -mean / std


def erase(images: Tensor, probability: float) -> Tensor:
    """Fills a random box of some images with noise, in place (arXiv:1708.04896, timm's version).

    Args:
        images: Normalised floats ``(batch, 3, height, width)``.
        probability: That an image gets a box.
    """
    erased: Tensor = RandomErasing(probability, mode="pixel", device=str(images.device))(images)
    return erased
