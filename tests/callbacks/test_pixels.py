"""The photo beside the map is the photo on disk: the normalisation is undone."""

from types import SimpleNamespace

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from torch import nn
from torch.utils.data import Dataset, Subset
from torchvision.datasets import FakeData, ImageFolder
from torchvision.transforms import v2

from litcam.callbacks.validation.pixels import Pixels, find_span

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)
SOME = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def find(dataset=None, network=None, given=((), ()), data=None):
    loader, trainer = SimpleNamespace(dataset=dataset), SimpleNamespace(datamodule=data)
    return Pixels.find(trainer, network or nn.Identity(), loader, *given)


def normalised(images=SOME, mean=MEAN, std=STD):
    return v2.functional.normalize(images, list(mean), list(std))


def check(pixels, images=None, expected=SOME):
    shown = pixels.to_pixels(normalised() if images is None else images)
    wanted = (expected * 255).permute(0, 2, 3, 1).numpy()
    assert shown.dtype == np.uint8 and np.abs(shown - wanted).max() <= 0.51


class Wrapper(Dataset):
    """The usual way of giving a Subset a transform of its own."""

    def __init__(self, dataset, transform):
        self.dataset, self.transform = dataset, transform


def test_given_mean_and_std():
    check(find(given=(MEAN, STD)))


@pytest.mark.parametrize(
    "make",
    [
        lambda t: FakeData(transform=t),
        lambda t: Subset(Subset(FakeData(transform=v2.Compose([t])), [0, 1]), [0]),
        lambda t: Wrapper(FakeData(), v2.Compose([t])),
    ],
    ids=["transform", "subset", "wrapper"],
)
def test_normalize_of_the_dataset(make):
    pixels = find(make(v2.Normalize(MEAN, STD)))
    assert "Normalize" in pixels.source
    check(pixels)


def test_timm_config():
    network = nn.Sequential(timm.create_model("resnet10t"))
    config = network[0].pretrained_cfg
    pixels = find(network=network)
    assert "timm" in pixels.source
    check(pixels, normalised(SOME, config["mean"], config["std"]))


@pytest.mark.parametrize("keep", [tuple, list, torch.tensor, np.array])
def test_mean_of_somebody_elses_datamodule(keep):
    check(find(data=SimpleNamespace(mean=keep(MEAN), std=keep(STD))))


def test_a_mean_that_is_no_numbers_is_passed_over():
    data = SimpleNamespace(mean=lambda: 0, std="a string")
    assert find(data=data).source == "min-max"


def test_images_that_were_never_normalised():
    pixels = find(network=timm.create_model("resnet10t"))
    check(pixels, SOME)
    assert pixels.source == "none needed"
    check(find(), (SOME * 255).round())


def test_min_max_where_nothing_is_known():
    pixels = find()
    shown = pixels.to_pixels(normalised()[1:], find_span(normalised()))
    assert pixels.source == "min-max" and (shown.min(), shown.max()) == (0, 255)


def test_grey_images():
    grey = SOME[:, :1]
    pixels = find(FakeData(transform=v2.Normalize([0.3], [0.2])))
    check(pixels, (grey - 0.3) / 0.2, grey.expand(-1, 3, -1, -1))


def test_bright_image_among_normalised_ones():
    """No value below zero in it, and yet it is normalised: the batch tells."""
    images = SOME.clone()
    images[1] = images[1] * 0.1 + 0.85
    shown = find(given=((), ()), dataset=FakeData(transform=v2.Normalize(MEAN, STD)))
    check(shown, normalised(images), images)


def test_photo_is_close_to_its_file(photos):
    steps = [v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD)]
    data = ImageFolder(photos / "val", v2.Compose(steps))
    for place in (0, len(data) - 1):
        shown = find(data).to_pixels(data[place][0][None])[0]
        file = np.asarray(Image.open(data.samples[place][0]).convert("RGB"))
        assert np.abs(shown.astype(int) - file.astype(int)).max() <= 1
