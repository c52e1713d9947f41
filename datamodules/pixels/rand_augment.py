"""RandAugment as timm has it, on tensors, repeatable from torch's generator."""

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from PIL import Image
from timm.data.auto_augment import rand_augment_transform
from timm.data.transforms import str_to_pil_interp
from torch import Tensor

from litcam.datamodules.pixels.data_config import DataConfig

__all__ = ["RECIPE", "RandAugment"]

# Of DeiT, Swin, MAE's fine-tuning and most of timm's own training.
RECIPE = "rand-m9-mstd0.5-inc1"


class RandAugment(torch.nn.Module):
    """RandAugment (arXiv:1909.13719) by timm's own operations on Pillow images.

    Two operations an image, each applied with probability 0.5; ``m9`` is their magnitude of 10,
    ``mstd0.5`` its spread, and ``inc1`` takes the operations that grow stronger with it. What they
    uncover is filled with the mean colour. Operations and magnitudes follow from one number out of
    torch's generator; Python's and NumPy's are left as they were.

    Args:
        recipe: In timm's words.
        size: Side of the images in pixels, of which translations are a share.
        config: Gives the interpolation and the mean colour.

    Raises:
        ValueError: If timm does not understand the recipe.
    """

    def __init__(self, recipe: str, size: int, config: DataConfig) -> None:
        super().__init__()
        self.recipe = recipe
        options = {
            "translate_const": int(size * 0.45),
            "img_mean": tuple(min(255, round(255 * value)) for value in config.mean),
            "interpolation": str_to_pil_interp(config.interpolation),
        }
        try:
            self._augment = rand_augment_transform(recipe, options)
        except (AssertionError, ValueError, KeyError, IndexError) as error:
            raise ValueError(
                f"auto_augment must be '', 'trivial', 'rand' or a recipe of timm such as "
                f"{RECIPE!r}, got {recipe!r} ({error or 'unknown part'})"
            ) from None
        for operation in self._augment.ops:
            if operation.name.startswith("Posterize"):
                operation.level_fn = _one_bit_at_least(operation.level_fn)

    def forward(self, image: Tensor) -> Tensor:
        """Augments uint8 ``(3, height, width)``."""
        seed = int(torch.randint(2**32 - 1, ()))
        python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002 - timm draws there
        random.seed(seed)
        np.random.seed(seed)  # noqa: NPY002
        try:
            # By channels, which are planes here: three times as fast as to interleave pixels.
            photo = Image.merge("RGB", [Image.fromarray(plane) for plane in image.numpy()])
            planes = [np.asarray(plane) for plane in self._augment(photo).split()]
        finally:
            random.setstate(python)
            np.random.set_state(numpy)  # noqa: NPY002
        return torch.from_numpy(np.stack(planes))


def _one_bit_at_least(level_fn: Callable[..., tuple[Any, ...]]) -> Callable[..., tuple[int, ...]]:
    # timm asks for none at the highest magnitude; Pillow used to paint the image black, and from
    # version 13 on refuses.
    def level(*args: Any) -> tuple[int, ...]:
        return (max(1, level_fn(*args)[0]),)

    return level
