import itertools
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from timm.data import ImageDataset, create_loader, create_transform
from torchvision.transforms import RandomResizedCrop, v2

from litcam.datamodules.pixels.data_config import DataConfig, data_config
from litcam.datamodules.pixels.decode import decode
from litcam.datamodules.pixels.transforms import (
    CropAndFlip,
    erase,
    eval_transform,
    normalize,
    train_transform,
)

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
BILINEAR = DataConfig(IMAGENET_MEAN, IMAGENET_STD, 0.875, "bilinear")


def smooth_photo(height: int, width: int) -> np.ndarray:
    y, x = np.mgrid[:height, :width]
    waves = [np.sin(x / 9 + phase) + np.cos(y / 7 - phase) for phase in (0.0, 1.0, 2.0)]
    return np.uint8(np.stack(waves, axis=-1) * 60 + 128)


@pytest.fixture
def photo(tmp_path):
    path = tmp_path / "photo.png"
    Image.fromarray(smooth_photo(90, 140)).save(path)
    return path


@pytest.mark.parametrize(
    ("backbone", "mean", "std", "crop_pct", "interpolation"),
    [
        ("", IMAGENET_MEAN, IMAGENET_STD, 0.875, "bicubic"),
        ("resnet34", IMAGENET_MEAN, IMAGENET_STD, 0.95, "bicubic"),
        ("resnet34.tv_in1k", IMAGENET_MEAN, IMAGENET_STD, 0.875, "bilinear"),
        ("vit_base_patch16_224", (0.5,) * 3, (0.5,) * 3, 0.9, "bicubic"),
        ("swin_base_patch4_window7_224", IMAGENET_MEAN, IMAGENET_STD, 0.9, "bicubic"),
    ],
)
def test_the_config_is_the_models_own(backbone, mean, std, crop_pct, interpolation):
    config = data_config(backbone)
    assert (config.mean, config.std) == (mean, std)
    assert (config.crop_pct, config.interpolation) == (crop_pct, interpolation)


def test_each_part_of_the_config_can_be_given():
    given = {"mean": (0.0, 0.2, 1.0), "std": (1.0, 0.2, 0.1), "interpolation": "bilinear"}
    for name, value in given.items():
        config = data_config("vit_base_patch16_224", **{name: value})
        assert config == replace(data_config("vit_base_patch16_224"), **{name: value})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"interpolation": "nearest"}, "interpolation must be bicubic or bilinear, got 'nearest'"),
        ({"mean": (124, 116, 104)}, r"mean must be three numbers in \[0, 1\], got \[124, "),
        ({"std": (0.2, 0.2, 0.0)}, r"std must be three numbers in \(0, 1\], got \[0.2, 0.2, 0.0"),
        ({"std": (0.2,)}, "std must be three numbers"),
    ],
)
def test_a_part_of_the_config_that_cannot_be_is_refused(options, message):
    with pytest.raises(ValueError, match=message) as error:
        data_config("resnet34", **options)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("backbone", "hint"),
    [
        ("resnet_34", "did you mean .*resnet34"),
        ("resnet34.tv_1n1k", "did you mean resnet34.tv_in1k"),
    ],
)
def test_an_unknown_backbone_gets_close_matches(backbone, hint):
    with pytest.raises(ValueError, match=f"got '{backbone}'; {hint}") as error:
        data_config(backbone)
    assert "\n" not in str(error.value)


@pytest.fixture(scope="module")
def real_photos():
    if "LITCAM_TEST_DATA" not in os.environ:
        pytest.skip("LITCAM_TEST_DATA does not name the folder of real photos")
    return Path(os.environ["LITCAM_TEST_DATA"])


def timm_difference(path: Path, config: DataConfig, size: int) -> tuple[float, float]:
    peer = create_transform(
        (3, size, size),
        interpolation=config.interpolation,
        crop_pct=config.crop_pct,
        normalize=False,
        mean=config.mean,
        std=config.std,
    )
    with Image.open(path) as image:
        expected = np.asarray(peer(image.convert("RGB")), dtype=np.float32)
    ours = (
        eval_transform(size, config)(decode(path.read_bytes(), str(path)))
        .numpy()
        .astype(np.float32)
    )
    assert ours.shape == expected.shape == (3, size, size)
    difference = np.abs(ours - expected)
    return float(difference.mean()), float(difference.max())


@pytest.mark.parametrize("backbone", ["resnet34", "resnet34.tv_in1k", "vit_base_patch16_224"])
def test_eval_pixels_are_timms(photo, backbone):
    mean, worst = timm_difference(photo, data_config(backbone), 64)
    assert mean < 0.5
    assert worst <= 2


@pytest.mark.parametrize(
    "backbone", ["resnet34", "resnet34.tv_in1k", "swin_base_patch4_window7_224"]
)
def test_eval_pixels_are_timms_on_real_photos(real_photos, backbone):
    paths = sorted(real_photos.glob("pets/val/*/*.jpg"))[::10]
    config = data_config(backbone)
    differences = [timm_difference(path, config, 224)[0] for path in paths]
    assert len(differences) == 20
    assert max(differences) < 0.25


@pytest.mark.slow
@pytest.mark.filterwarnings(  # timm's reader leaves files to the garbage collector
    "ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"
)
@pytest.mark.parametrize(
    "interpolation", ["bicubic", pytest.param("bilinear", marks=pytest.mark.slow)]
)
def test_a_network_decides_as_on_timms_own_loader(real_photos, tmp_path, interpolation):
    """Of random weights, so that its margins are smaller than those of any trained one."""
    config = DataConfig(IMAGENET_MEAN, IMAGENET_STD, 0.875, interpolation)
    for folder in sorted(real_photos.glob("imagenet-sample/train/*"))[::6]:
        (tmp_path / folder.name).symlink_to(folder)
    dataset = ImageDataset(str(tmp_path))
    loader = create_loader(
        dataset,
        (3, 224, 224),
        batch_size=50,
        use_prefetcher=False,
        interpolation=config.interpolation,
        crop_pct=config.crop_pct,
        mean=config.mean,
        std=config.std,
        num_workers=0,
    )
    transform = eval_transform(224, config)
    paths = iter([Path(name) for name in dataset.filenames(absolute=True)])
    torch.manual_seed(0)
    network = timm.create_model("resnet18")
    decisions, worst, total = [], 0.0, 0.0
    for number, (theirs, _) in enumerate(loader):
        files = [(path.read_bytes(), str(path)) for path in itertools.islice(paths, len(theirs))]
        ours = normalize(torch.stack([transform(decode(*file)) for file in files]), config)
        levels = (ours - theirs).abs() * 255 * torch.tensor(config.std).view(3, 1, 1)
        worst, total = max(worst, levels.max().item()), total + levels.mean().item()
        with torch.no_grad():
            if number == 0:
                calibrate(network, theirs)
            decisions.append(torch.stack([network(theirs).argmax(1), network(ours).argmax(1)]))
    theirs, ours = torch.cat(decisions, dim=1)
    assert len(theirs) == 100
    assert len(theirs.unique()) > 10  # it does tell photos apart
    assert (theirs != ours).sum() <= 1
    assert worst < 2.5
    assert total / len(decisions) < 0.01


def calibrate(network: torch.nn.Module, images: torch.Tensor) -> None:
    """Sets the statistics of batch normalisation to those of the images."""
    for layer in network.modules():
        if isinstance(layer, torch.nn.BatchNorm2d):
            layer.momentum = None  # the mean over all batches
    network.train()
    for batch in images.chunk(3):
        network(batch)
    network.eval()


@pytest.mark.parametrize("auto_augment", ["", "rand", "trivial"])
def test_the_train_transform_is_random_seeded_and_uint8(photo, auto_augment):
    transform = train_transform(48, BILINEAR, auto_augment=auto_augment)
    image = decode(photo.read_bytes(), "photo")
    torch.manual_seed(0)
    first, second = transform(image), transform(image)
    torch.manual_seed(0)
    again = transform(image)
    assert first.shape == (3, 48, 48)
    assert first.dtype == torch.uint8
    assert (first == again).all()
    assert (first != second).any()


def test_the_train_crop_is_the_photo_where_nothing_is_random(photo):
    whole = train_transform(90, BILINEAR, crop_scale=(1.0, 1.0), hflip=0.0)
    mirrored = train_transform(90, BILINEAR, crop_scale=(1.0, 1.0), hflip=1.0)
    image = decode(photo.read_bytes(), "photo")
    torch.manual_seed(0)
    plain = whole(image)
    torch.manual_seed(0)
    assert (mirrored(image) == plain.flip(-1)).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_normalising_is_the_formula(dtype):
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (2, 3, 8, 9), generator=generator, dtype=torch.uint8)
    before = images.clone()
    config = data_config("resnet34")
    result = normalize(images, config, dtype=dtype)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (config.mean, config.std))
    expected = (images.double() / 255 - mean) / std
    assert result.dtype == dtype
    tolerance = 1e-6 if dtype == torch.float32 else torch.finfo(dtype).eps
    torch.testing.assert_close(result.double(), expected, atol=2 * tolerance, rtol=tolerance)
    assert (images == before).all()


def test_training_can_use_what_validation_normalised_first():
    images = torch.zeros(1, 3, 4, 4, dtype=torch.uint8)
    config = DataConfig((0.1, 0.2, 0.3), (0.4, 0.5, 0.6), 1.0, "bilinear")
    with torch.inference_mode():
        normalize(images, config)
    weight = torch.ones(1, requires_grad=True)
    (normalize(images, config) * weight).sum().backward()
    assert weight.grad is not None


def test_erasing_fills_boxes_of_some_images():
    images = torch.full((64, 3, 16, 16), 7.0)
    erased = erase(images.clone(), 0.5, [0, 0, 0])
    touched = (erased != 7).flatten(1).any(dim=1)
    assert 16 < int(touched.sum()) < 48
    assert (erase(images.clone(), 0.0, [0, 0, 0]) == 7).all()


def test_the_crop_is_torchvisions_from_the_same_box(photo):
    image = decode(photo.read_bytes(), str(photo))
    for mode in ("bilinear", "bicubic"):
        crop = CropAndFlip(64, (0.2, 1.0), hflip=0.0, interpolation=mode)
        torch.manual_seed(0)
        ours = crop(image)
        torch.manual_seed(0)
        box = crop.box(image.shape[1], image.shape[2], torch.rand(41).tolist()[:40])
        size = [64, 64]
        theirs = v2.functional.resized_crop(
            image, *box, size, v2.InterpolationMode(mode), antialias=True
        )
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize(("height", "width"), [(300, 500), (40, 700), (224, 224), (900, 20)])
def test_boxes_are_spread_as_torchvisions(height, width):
    crop = CropAndFlip(64, (0.08, 1.0), hflip=0.0, interpolation="bilinear")
    torch.manual_seed(0)
    ours = [crop.box(height, width, torch.rand(40).tolist()) for _ in range(4000)]
    image, ratio = torch.zeros(3, height, width), (3 / 4, 4 / 3)
    theirs = [RandomResizedCrop.get_params(image, [0.08, 1.0], ratio) for _ in range(4000)]
    ours, theirs = torch.tensor(ours).double(), torch.tensor(theirs).double()
    for quantile in (0.1, 0.5, 0.9):
        one, other = (boxes.quantile(quantile, dim=0) for boxes in (ours, theirs))
        assert torch.allclose(one, other, rtol=0.08, atol=0.03 * max(height, width))
    assert (ours[:, 0] + ours[:, 2] <= height).all()
    assert (ours[:, 1] + ours[:, 3] <= width).all()
