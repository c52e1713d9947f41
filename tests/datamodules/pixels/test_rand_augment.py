"""RandAugment: timm's own operations on tensors, from torch's generator alone."""

# ruff: noqa: NPY002 - timm draws from NumPy's global generator
import random
from collections import Counter

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data.auto_augment import rand_augment_transform

from litcam.datamodules.pixels.data_config import data_config
from litcam.datamodules.pixels.rand_augment import RECIPE, RandAugment
from litcam.datamodules.pixels.transforms import train_transform

CONFIG = data_config("")
FILL = tuple(min(255, round(255 * value)) for value in CONFIG.mean)


@pytest.fixture
def image():
    """A photo's worth of structure: smooth colours, edges, noise."""
    generator = np.random.default_rng(0)
    grid = np.mgrid[0:64, 0:64]
    pixels = np.stack([grid[0] * 4, grid[1] * 4, (grid.sum(0) % 16) * 16]).astype(np.uint8)
    pixels[:, 20:30, 20:30] = generator.integers(0, 256, (3, 10, 10))
    return torch.from_numpy(pixels)


def timms(image, recipe, seed):
    """What timm makes of it, with Python's and NumPy's generators seeded as ours seeds them."""
    options = {
        "translate_const": int(64 * 0.45),
        "img_mean": FILL,
        "interpolation": Image.Resampling.BICUBIC,
    }
    random.seed(seed)
    np.random.seed(seed)
    photo = Image.fromarray(image.permute(1, 2, 0).contiguous().numpy())
    augmented = rand_augment_transform(recipe, options)(photo)
    return torch.from_numpy(np.array(augmented)).permute(2, 0, 1)


@pytest.mark.parametrize("recipe", [RECIPE, "rand-m5-n3", "rand-m9-mstd0.5"])
def test_it_is_timms_to_the_pixel(image, recipe):
    ours, different = RandAugment(recipe, 64, CONFIG), 0
    for number in range(60):
        torch.manual_seed(number)
        state = torch.get_rng_state()
        found = ours(image)
        torch.set_rng_state(state)
        seed = int(torch.randint(2**32 - 1, ()))
        try:
            expected = timms(image, recipe, seed)
        except ValueError:  # Pillow 13 refuses timm's posterising to no bits at all
            continue
        assert torch.equal(found, expected)
        different += not torch.equal(found, image)
    assert different > 30


def test_it_follows_from_torchs_generator_and_leaves_the_others(image):
    ours = RandAugment(RECIPE, 64, CONFIG)
    random.seed(1)
    np.random.seed(1)
    before = random.getstate(), np.random.get_state()[1].tolist()
    found = []
    for seed in (5, 6, 5):
        torch.manual_seed(seed)
        found.append(ours(image))
    assert torch.equal(found[0], found[2])
    assert not torch.equal(found[0], found[1])
    assert (random.getstate(), np.random.get_state()[1].tolist()) == before
    assert found[0].dtype == torch.uint8 and found[0].shape == image.shape


def test_every_operation_comes_at_its_highest_magnitude_too(image):
    ours = RandAugment("rand-m10-n1-p1-inc1", 64, CONFIG)
    names = Counter()
    for operation in ours._augment.ops:
        operation.prob = 1.0
        result = operation(Image.fromarray(image.permute(1, 2, 0).contiguous().numpy()))
        assert result.size == (64, 64)
        names[operation.name] += 1
    assert len(names) == 15


@pytest.mark.parametrize("recipe", ["rand-x9", "original", "rand_m9", "randaugment"])
def test_a_recipe_that_timm_does_not_know(recipe):
    with pytest.raises(ValueError, match=rf"^auto_augment must be .*got '{recipe}'") as caught:
        train_transform(64, CONFIG, auto_augment=recipe)
    assert "\n" not in str(caught.value)
