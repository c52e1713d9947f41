"""From pixels to what the network takes.

Images stay uint8 until they are on the device: a batch is then a quarter of the size of a float
one on its way from the workers, and turning it into normalised floats is one kernel there.
"""

import math
import random
from functools import cache

import numpy as np
import torch
import torch.nn.functional as F
from lightning.pytorch.utilities.seed import isolate_rng
from timm.data.random_erasing import RandomErasing
from torch import Tensor
from torchvision.transforms import v2

from litcam.datamodules.pixels.data_config import DataConfig
from litcam.datamodules.pixels.rand_augment import RECIPE, RandAugment


class CropAndFlip(torch.nn.Module):
    """A random resized crop (arXiv:1409.4842, section 6), mirrored at random.

    What torchvision's `RandomResizedCrop` and `RandomHorizontalFlip` do, with all random numbers
    drawn at once: their forty small draws and checks cost as much as the resizing.

    Args:
        size: Side of the result in pixels.
        scale: Smallest and largest share of the image's area.
        hflip: Probability of mirroring.
        interpolation: ``bicubic`` or ``bilinear``, both antialiased.
    """

    NUM_TRIES = 10
    RATIO = 4 / 3

    def __init__(
        self, size: int, scale: tuple[float, float], *, hflip: float, interpolation: str
    ) -> None:
        super().__init__()
        self.size, self.scale, self.hflip, self.mode = size, scale, hflip, interpolation

    def forward(self, image: Tensor) -> Tensor:
        """Crops uint8 ``(3, height, width)`` to ``(3, size, size)``."""
        *draws, mirror = torch.rand(4 * self.NUM_TRIES + 1).tolist()
        top, left, height, width = self.box(image.shape[1], image.shape[2], draws)
        crop = image[None, :, top : top + height, left : left + width]
        crop = F.interpolate(crop, (self.size, self.size), mode=self.mode, antialias=True)[0]
        return crop.flip(-1) if mirror < self.hflip else crop

    def box(self, height: int, width: int, draws: list[float]) -> tuple[int, int, int, int]:
        """Chooses a box that fits into an image, as top, left, height and width.

        Args:
            height: Of the image.
            width: Of the image.
            draws: In [0, 1), four for each try: share of the area, ratio of the sides, place.
        """
        low, high = self.scale
        for area, ratio, down, right in zip(*[iter(draws)] * 4, strict=True):
            wanted = height * width * (low + (high - low) * area)
            sides = self.RATIO ** (2 * ratio - 1)
            w, h = round(math.sqrt(wanted * sides)), round(math.sqrt(wanted / sides))
            if 0 < w <= width and 0 < h <= height:
                return int(down * (height - h + 1)), int(right * (width - w + 1)), h, w
        # As much of the middle as a box of an allowed ratio can hold.
        h, w = min(height, round(width * self.RATIO)), min(width, round(height * self.RATIO))
        return (height - h) // 2, (width - w) // 2, h, w


def train_transform(
    image_size: int,
    config: DataConfig,
    *,
    crop_scale: tuple[float, float] = (0.08, 1.0),
    hflip: float = 0.5,
    auto_augment: str = "",
) -> v2.Transform:
    """Makes the random transform of training, uint8 ``(3, height, width)`` to ``(3, size, size)``.

    Args:
        image_size: Side of the result in pixels.
        config: Gives the interpolation, and the mean colour that fills what augmentation uncovers.
        crop_scale: Smallest and largest share of the image's area that a crop may take.
        hflip: Probability of mirroring.
        auto_augment: ``rand`` (RandAugment as `RECIPE`), another recipe of timm's such as
            ``rand-m7-n3``, ``trivial`` (TrivialAugment, arXiv:2103.10158) or "" for neither.

    Raises:
        ValueError: If an argument makes no sense.
    """
    # A config may say null.
    if not crop_scale or len(crop_scale) != 2 or not 0 < crop_scale[0] <= crop_scale[1] <= 1:
        raise ValueError(f"crop_scale must be 0 < smallest <= largest <= 1, got {crop_scale}")
    if not 0 <= hflip <= 1:
        raise ValueError(f"hflip must be in [0, 1], got {hflip}")
    steps: list[torch.nn.Module] = [
        CropAndFlip(image_size, crop_scale, hflip=hflip, interpolation=config.interpolation)
    ]
    if auto_augment == "trivial":
        # Bilinear, because torchvision's affine transforms of tensors know no bicubic.
        fill = [round(255 * value) for value in config.mean]
        steps.append(v2.TrivialAugmentWide(interpolation=v2.InterpolationMode.BILINEAR, fill=fill))
    elif auto_augment:
        recipe = RECIPE if auto_augment == "rand" else auto_augment
        steps.append(RandAugment(recipe, image_size, config))
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
    if images.is_cuda:
        return torch.addcmul(offset, images, scale).to(dtype)
    floats = images.float()  # on a CPU the mixed types of one kernel cost twice the time of two
    return torch.addcmul(offset, floats, scale, out=floats).to(dtype)


@cache
def _scale_and_offset(config: DataConfig, device: torch.device) -> tuple[Tensor, Tensor]:
    # Kept, because copying them for each batch would have the host wait for the GPU each time;
    # outside of inference mode, because training uses those that a validation made.
    with torch.inference_mode(False):
        mean = torch.tensor(config.mean, device=device).view(-1, 1, 1)
        std = torch.tensor(config.std, device=device).view(-1, 1, 1)
        return 1 / (255 * std), -mean / std


def erase(images: Tensor, probability: float, seeds: list[int]) -> Tensor:
    """Fills a random box of some images with noise, in place (arXiv:1708.04896, timm's version).

    Args:
        images: Normalised floats ``(batch, 3, height, width)``.
        probability: That an image gets a box.
        seeds: What the boxes follow from, so that a resumed run draws what it would have drawn.
    """
    with isolate_rng():
        first, second = np.random.SeedSequence(seeds).generate_state(2).tolist()
        torch.manual_seed(first)
        random.seed(second)
        erased: Tensor = RandomErasing(probability, mode="pixel", device=str(images.device))(images)
    return erased
