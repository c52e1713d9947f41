"""The maps are right: against pytorch-grad-cam, captum and the formula by hand."""

import copy
import os
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from captum.attr import LayerGradCam
from PIL import Image
from pytorch_grad_cam import GradCAM as PeerGradCAM
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
from torch import nn

from litcam.explain import CAM

MODELS = [
    ("resnet34", "layer4", "NCHW"),
    ("mobilenetv3_large_100", "blocks[-1]", "NCHW"),
    ("regnety_008", "s4", "NCHW"),
    ("efficientnet_b0", "bn2", "NCHW"),
    pytest.param("vit_base_patch16_224", "blocks[-1].norm1", "tokens", marks=pytest.mark.slow),
    pytest.param("swin_base_patch4_window7_224", "norm", "NHWC", marks=pytest.mark.slow),
]

SIZE = {"resnet10t": {}, "test_vit": {"img_size": 64}}
SMALL_SWIN = {
    "img_size": 64, "window_size": 4, "embed_dim": 24, "depths": (2, 2), "num_heads": (2, 4)
}  # fmt: skip


def make(name, **options):
    torch.manual_seed(0)
    return timm.create_model(name, **options).eval()


def photos():
    """Two ImageNet photos at 224, or smooth noise where there are none."""
    root = Path(os.environ.get("LITCAM_TEST_DATA", "/nowhere"), "imagenet-sample/train")
    files = sorted(root.glob("*/*.JPEG"))[::40][:2]
    if len(files) == 2:
        images = [np.asarray(Image.open(f).convert("RGB").resize((224, 224))) for f in files]
        return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2) / 127.5 - 1
    torch.manual_seed(1)
    noise = nn.functional.interpolate(torch.randn(2, 3, 14, 14), (224, 224), mode="bicubic")
    return noise + 0.2 * torch.randn(2, 3, 224, 224)


def to_maps(output, kind):
    if kind == "tokens":
        batch, num_tokens, channels = output.shape
        side = int((num_tokens - 1) ** 0.5)
        return output[:, 1:].reshape(batch, side, side, channels).permute(0, 3, 1, 2)
    return output.permute(0, 3, 1, 2) if kind == "NHWC" else output


def formula(activations, gradients):
    """Equations 1 and 2 of Selvaraju et al., one image at a time."""
    maps = []
    for activation, gradient in zip(activations, gradients, strict=True):
        weights = gradient.double().flatten(1).mean(1)[:, None, None]
        maps.append((weights * activation).sum(0).clamp(min=0).float())
    return torch.stack(maps)


def by_hand(network, layer, kind, images, classes):
    kept = []

    def keep(module, args, output):
        kept.append(output)
        return output.clone()

    hook = layer.register_forward_hook(keep)
    logits = network(images)
    hook.remove()
    chosen = sum(row[c] for row, c in zip(logits, classes, strict=True))
    (gradients,) = torch.autograd.grad(chosen, kept[0])
    return formula(to_maps(kept[0].detach(), kind), to_maps(gradients, kind))


def visible_classes(cam):
    """For each image a class with something to see: the ReLU leaves many without."""
    maps = cam([list(range(40))] * len(cam.logits))
    return (maps.amax((2, 3)) - maps.amin((2, 3))).argmax(1).tolist()


def assert_close(ours, theirs, tolerance=1e-5):
    """To `tolerance` of the largest value, with something there to compare."""
    assert all(m.max() > m.min() for m in theirs), "a flat map shows nothing"
    assert (ours - theirs).abs().max() <= tolerance * theirs.abs().max()


@pytest.mark.parametrize(("name", "layer", "kind"), MODELS)
def test_maps_equal_pytorch_grad_cam(name, layer, kind):
    network, images = make(name), photos()
    with CAM(network, target_layer=layer) as cam, torch.no_grad():
        logits = network(images)
    classes = visible_classes(cam)
    raw, ours = cam(classes), cam.heatmaps(classes, (224, 224))

    module = cam.target_layer.module
    assert_close(raw, by_hand(network, module, kind, images, classes))

    found = CAM(network)
    with found, torch.no_grad():
        assert torch.equal(network(images), logits)
    assert found.target_layer.name == cam.target_layer.name
    assert torch.equal(found(classes), raw)

    with PeerGradCAM(network, [module], lambda output: to_maps(output, kind)) as peer:
        # The peer divides by its maximum + 1e-7, which is not nothing for maps of random weights.
        weights = network.get_classifier().weight
        weights.data *= 1000
        theirs = torch.from_numpy(peer(images, [ClassifierOutputTarget(c) for c in classes]))
    assert theirs.shape == ours.shape
    assert all(m.max() > 0.99 for m in theirs), "a flat map shows nothing"
    assert (ours - theirs).abs().max() <= 1e-5


@pytest.mark.slow
def test_vgg16_equals_captum_and_itself_without_in_place_relu():
    network, images = make("vgg16"), photos()[:1]
    with CAM(network) as cam, torch.inference_mode():
        network(images)
    assert cam.target_layer.name == "features.28"
    classes = visible_classes(cam)
    ours = cam(classes)

    captum = LayerGradCam(network, network.features[28])
    assert_close(ours, captum.attribute(images, classes[0], relu_attributions=True)[:, 0].detach())

    for module in network.modules():
        if isinstance(module, nn.ReLU):
            module.inplace = False
    with CAM(network, target_layer="features.28") as cam, torch.no_grad():
        network(images)
    assert torch.equal(cam(classes), ours)


@pytest.mark.parametrize("target_layer", [None, "4"])
def test_an_in_place_relu_after_the_layer_changes_nothing(target_layer):
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(inplace=True), nn.AvgPool2d(2),
        nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(inplace=True),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5),
    ).eval()  # fmt: skip
    safe, images = copy.deepcopy(network), torch.randn(2, 3, 16, 16)
    for module in safe.modules():
        if isinstance(module, nn.ReLU):
            module.inplace = False
    maps = []
    for one in (network, safe):
        with CAM(one, target_layer=target_layer) as cam, torch.no_grad():
            one(images)
        assert cam.target_layer.name == "4"
        maps.append(cam([1, 2]))
    assert torch.equal(*maps)
    assert_close(maps[0], by_hand(safe, safe[4], "NCHW", images, [1, 2]))


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("resnet10t", {}),
        ("test_vit", {"img_size": 64}),
        ("swin_tiny_patch4_window7_224", SMALL_SWIN),
        ("mobilenetv3_small_050", {}),
    ],
)
def test_the_first_forward_and_the_later_ones_give_one_map(name, options):
    network, images = make(name, num_classes=7, **options), torch.randn(2, 3, 64, 64)
    with CAM(network) as cam, torch.no_grad():
        network(images)
        first = cam([3, 4])
        network(images)
        second = cam([3, 4])
    assert first.max() > 0
    # With the layer searched for, more of the forward is recorded.
    assert (first - second).abs().max() <= 1e-6 * first.max()


@pytest.mark.parametrize("name", ["resnet10t", "test_vit"])
def test_several_classes_equal_one_at_a_time(name):
    network, images = make(name, num_classes=7, **SIZE[name]), torch.randn(3, 3, 64, 64)
    table = [[0, 1], [2, 6], [5, 5]]
    with CAM(network) as cam, torch.no_grad():
        network(images)
    together = cam(table)
    assert together.shape == (3, 2, *cam.target_layer.grid)
    assert cam.heatmaps(table).shape == (3, 2, 64, 64)
    for k, column in enumerate(zip(*table, strict=True)):
        assert torch.equal(together[:, k], cam(list(column)))
    assert torch.equal(together, cam(torch.tensor(table)))
    assert torch.equal(together, cam(torch.tensor(table).numpy()))
    assert torch.equal(cam(2), cam([2, 2, 2]))
    assert torch.equal(cam(), cam(cam.logits.argmax(1)))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["resnet10t", "test_vit"])
def test_half_precision_weights_give_float32_maps(name, dtype):
    network, images = make(name, num_classes=7, **SIZE[name]), torch.randn(2, 3, 64, 64)
    with CAM(network) as cam, torch.no_grad():
        network(images)
    full = cam.heatmaps([0, 1])
    network.to(dtype)
    with CAM(network, target_layer=cam.target_layer) as half, torch.no_grad():
        network(images.to(dtype))
    assert half([0, 1]).dtype == torch.float32
    assert (half.heatmaps([0, 1]) - full).abs().mean() < 0.03


@pytest.mark.parametrize("name", ["resnet10t", "test_vit"])
def test_maps_made_under_autocast_are_float32_to_the_last_digit(name):
    network, images = make(name, num_classes=7, **SIZE[name]), torch.randn(2, 3, 64, 64)
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad(), CAM(network) as cam:
        network(images)
        inside = cam([0, 1])
    assert inside.dtype == torch.float32
    assert torch.equal(inside, cam([0, 1]))


def test_a_memory_format_and_one_channel_change_nothing():
    network = make("resnet10t", num_classes=5, in_chans=1)
    images = torch.randn(1, 1, 64, 96)
    with CAM(network) as cam, torch.no_grad():
        network(images)
    plain = cam([2])
    assert plain.shape == (1, 2, 3)
    network.to(memory_format=torch.channels_last)
    with cam, torch.no_grad():
        network(images.to(memory_format=torch.channels_last))
    assert (cam([2]) - plain).abs().max() <= 1e-5 * plain.max()
