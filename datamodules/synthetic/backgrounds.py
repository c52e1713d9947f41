"""Photos, or a procedural stand-in for them, that synthetic objects are pasted on.

The photos are the two that come with scikit-learn, which comes with grad-cam. Their credit, from
its `sklearn/datasets/images/README.txt`, both under CC BY 2.0
(https://creativecommons.org/licenses/by/2.0/):

* `china.jpg`, "Some rights reserved by danielbuechele",
  https://www.flickr.com/photos/danielbuechele/6061409035/sizes/z/in/photostream/
* `flower.jpg`, the same line there, its address being
  https://www.flickr.com/photos/vultilion/6056698931/sizes/z/in/photostream/
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

__all__ = ["load_photos", "photo_levels", "random_crops", "textures"]

# How much of a photo's short side one crop shows. The photos are shrunk once, with antialiasing,
# so that a crop is a slice: resampling every image would cost more than drawing it.
_CROP_SHARES = (0.25, 0.4, 0.65, 0.95)


def load_photos() -> list[Tensor] | None:
    """The two sample photos, each `(3, height, width)` in [0, 1]; None without scikit-learn."""
    try:
        from sklearn.datasets import load_sample_images

        photos = load_sample_images().images
    except ImportError:  # scikit-learn itself, or the Pillow that it reads the files with
        return None
    return [
        rearrange(torch.tensor(photo), "height width rgb -> rgb height width").float() / 255
        for photo in photos
    ]


def textures(generator: torch.Generator, *, height: int = 427, width: int = 640) -> list[Tensor]:
    """Procedural stand-ins for the photos: noise at several scales, in random colours.

    Returns:
        Four pictures `(3, height, width)` in [0, 1].
    """
    pictures = []
    for _ in range(4):
        picture = torch.zeros(1, 3, height, width)
        for octave in range(2, 9):
            # Amplitude falls with frequency, as it does in photos.
            size = (2**octave, math.ceil(2**octave * width / height))
            noise = torch.randn(1, 3, *size, generator=generator)
            grey = torch.randn(1, 1, *size, generator=generator)
            layer = 0.4 * noise + grey
            picture += 0.75**octave * F.interpolate(layer, (height, width), mode="bilinear")
        tint = torch.rand(3, 1, 1, generator=generator)
        pictures.append((0.25 + 0.5 * tint + 0.28 * picture[0]).clamp(0, 1))
    return pictures


def photo_levels(photos: list[Tensor], image_size: int) -> list[Tensor]:
    """Each photo at each scale crops are taken from, as `(3, height, width)` in [0, 1]."""
    levels = []
    for photo in photos:
        for share in _CROP_SHARES:
            scale = image_size / (share * min(photo.shape[1:]))
            size = [max(image_size, round(side * scale)) for side in photo.shape[1:]]
            level = F.interpolate(photo[None], size, mode="bilinear", antialias=True)
            levels.append(level[0].clamp(0, 1))
    return levels


def random_crops(
    levels: list[Tensor], num_images: int, image_size: int, generator: torch.Generator
) -> Tensor:
    """Random square crops, mirrored at random, in random brightness and order of the colours.

    Returns:
        `(num_images, 3, image_size, image_size)` in [0, 1].
    """
    choice = torch.randint(len(levels), (num_images,), generator=generator)
    where = torch.rand(num_images, 2, generator=generator)
    mirrored = torch.rand(num_images, 1, 1, 1, generator=generator) < 0.5
    gain = 0.7 + 0.6 * torch.rand(num_images, 1, 1, 1, generator=generator)
    shuffled = torch.rand(num_images, 3, generator=generator).argsort(dim=1)
    # Half keep their colours: a blue lawn everywhere would no longer look like a photo.
    kept = torch.rand(num_images, 1, generator=generator) < 0.5
    order = torch.where(kept, torch.arange(3), shuffled)
    crops = torch.empty(num_images, 3, image_size, image_size)
    for number, level in enumerate(levels):
        chosen = (choice == number).nonzero()[:, 0]
        windows = level.unfold(1, image_size, 1).unfold(2, image_size, 1)
        top = (where[chosen, 0] * windows.shape[1]).long()
        left = (where[chosen, 1] * windows.shape[2]).long()
        crops[chosen] = rearrange(windows[:, top, left], "rgb n h w -> n rgb h w")
    crops = crops.gather(1, order[:, :, None, None].expand_as(crops))
    return (gain * torch.where(mirrored, crops.flip(-1), crops)).clamp(0, 1)
