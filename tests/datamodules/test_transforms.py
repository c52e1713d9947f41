import os
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data import create_transform

from litcam.datamodules.transforms import (
    DataConfig,
    data_config,
    erase,
    eval_transform,
    normalize,
    read_image,
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


@pytest.mark.parametrize("mode", ["L", "RGB", "P", "RGBA", "CMYK"])
def test_any_colour_mode_becomes_rgb(tmp_path, mode):
    path = tmp_path / ("photo.jpg" if mode == "CMYK" else "photo.png")
    Image.fromarray(smooth_photo(40, 50)).convert(mode).save(path)
    image = read_image(path)
    assert image.shape == (3, 40, 50)
    assert image.dtype == torch.uint8


def test_a_png_called_jpeg_a_gif_and_16_bits_are_read(tmp_path):
    pixels = smooth_photo(40, 50)
    Image.fromarray(pixels).save(tmp_path / "png.JPEG", format="PNG")
    frames = [Image.fromarray(pixels), Image.fromarray(255 - pixels)]
    frames[0].save(tmp_path / "moving.gif", save_all=True, append_images=frames[1:])
    Image.fromarray(pixels[..., 0].astype(np.uint16) * 257).save(tmp_path / "deep.png")
    for name in ("png.JPEG", "moving.gif", "deep.png"):
        image = read_image(tmp_path / name)
        assert image.shape == (3, 40, 50)
        assert image.dtype == torch.uint8
    assert (image[0].numpy() == pixels[..., 0]).all()


@pytest.mark.parametrize("damage", ["truncated", "empty", "garbage", "gone", "bmp"])
def test_an_unreadable_image_is_named_in_one_line(tmp_path, damage):
    path = tmp_path / "photo.jpg"
    Image.fromarray(smooth_photo(40, 50)).save(path, format="BMP" if damage == "bmp" else "JPEG")
    if damage == "gone":
        path.unlink()
    elif damage != "bmp":
        whole = path.read_bytes()
        path.write_bytes({"truncated": whole[:-99], "empty": b"", "garbage": b"x" * 99}[damage])
    with pytest.raises(
        ValueError, match=r"^cannot read image .*photo.jpg: \S+.*; replace"
    ) as error:
        read_image(path)
    assert "\n" not in str(error.value)
    assert ".cpp" not in str(error.value)


@pytest.fixture(scope="module")
def pets():
    if "LITCAM_TEST_DATA" not in os.environ:
        pytest.skip("LITCAM_TEST_DATA does not name the folder of real photos")
    return Path(os.environ["LITCAM_TEST_DATA"], "pets")


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
    ours = eval_transform(size, config)(read_image(path)).numpy().astype(np.float32)
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
def test_eval_pixels_are_timms_on_real_photos(pets, backbone):
    paths = sorted(pets.glob("val/*/*.jpg"))[::10]
    config = data_config(backbone)
    differences = [timm_difference(path, config, 224)[0] for path in paths]
    assert len(differences) == 20
    assert max(differences) < 1.5


@pytest.mark.parametrize("auto_augment", ["", "rand", "trivial"])
def test_the_train_transform_is_random_seeded_and_uint8(photo, auto_augment):
    transform = train_transform(48, BILINEAR, auto_augment=auto_augment)
    image = read_image(photo)
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
    image = read_image(photo)
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
    erased = erase(images.clone(), 0.5)
    touched = (erased != 7).flatten(1).any(dim=1)
    assert 16 < int(touched.sum()) < 48
    assert (erase(images.clone(), 0.0) == 7).all()


def test_reading_warns_of_nothing(photo):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        read_image(photo)
