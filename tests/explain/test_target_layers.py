"""Which layer is chosen, and what is refused with which words."""

import pytest
import timm
import torch
import torch.nn.functional as F
import torchvision
from torch import nn

from litcam.explain import CAM, TargetLayer, find_target_layer

SMALL_VIT = {"img_size": 64, "patch_size": 16, "embed_dim": 32, "depth": 2, "num_heads": 2}
SMALL_SWIN = {
    "img_size": 64, "window_size": 4, "embed_dim": 24, "depths": (2, 2), "num_heads": (2, 4)
}  # fmt: skip

TIMM = [
    ("resnet34", {}, (64, 64), "layer4", "NCHW", (2, 2)),
    ("vgg16", {}, (64, 64), "features.28", "NCHW", (4, 4)),
    ("mobilenetv3_large_100", {}, (64, 64), "blocks.6", "NCHW", (2, 2)),
    ("regnety_008", {}, (64, 64), "s4", "NCHW", (2, 2)),
    ("efficientnet_b0", {}, (64, 64), "bn2", "NCHW", (2, 2)),
    # The two large ones in their own names, thinned.
    ("vit_base_patch16_224", SMALL_VIT, (64, 64), "blocks.1.norm1", "tokens", (4, 4)),
    ("swin_base_patch4_window7_224", SMALL_SWIN, (64, 64), "norm", "NHWC", (8, 8)),
    # Average pooling: the last block.
    ("vit_base_patch16_224", {**SMALL_VIT, "global_pool": "avg"}, (64, 64), "blocks.1", "tokens",
     (4, 4)),
    # Registers, a distillation token, a class token that comes late.
    ("vit_small_patch14_reg4_dinov2", {**SMALL_VIT, "patch_size": 14, "img_size": 56}, (56, 56),
     "blocks.1.norm1", "tokens", (4, 4)),
    ("deit_tiny_distilled_patch16_224", SMALL_VIT, (64, 64), "blocks.1.norm1", "tokens", (4, 4)),
    ("resnet10t", {"output_stride": 8}, (64, 64), "layer4", "NCHW", (8, 8)),
    ("convnext_atto", {}, (64, 64), "stages.3", "NCHW", (2, 2)),
    # Not square, and not a multiple of the stride.
    ("resnet10t", {}, (96, 160), "layer4", "NCHW", (3, 5)),
    ("resnet10t", {}, (75, 101), "layer4", "NCHW", (3, 4)),
    ("mobilenetv3_small_050", {}, (50, 97), "blocks.5", "NCHW", (2, 4)),
    ("vit_base_patch16_224", {**SMALL_VIT, "dynamic_img_size": True}, (48, 96), "blocks.1.norm1",
     "tokens", (3, 6)),
    ("vit_base_patch16_224", {**SMALL_VIT, "dynamic_img_size": True, "dynamic_img_pad": True},
     (50, 70), "blocks.1.norm1", "tokens", (4, 5)),
    ("vit_base_patch16_224", {**SMALL_VIT, "img_size": (32, 80)}, (32, 80), "blocks.1.norm1",
     "tokens", (2, 5)),
    ("swin_base_patch4_window7_224", {**SMALL_SWIN, "img_size": (32, 96)}, (32, 96), "norm",
     "NHWC", (4, 12)),
]  # fmt: skip

TORCHVISION = [
    ("resnet18", 64, "layer4", "NCHW", (2, 2)),
    ("vgg11", 64, "features.18", "NCHW", (4, 4)),
    ("mobilenet_v2", 64, "features", "NCHW", (2, 2)),
    ("swin_t", 64, "norm", "NHWC", (2, 2)),
    ("convnext_tiny", 64, "features", "NCHW", (2, 2)),
    ("densenet121", 64, "features", "NCHW", (2, 2)),
]


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


@pytest.mark.parametrize(("name", "options", "size", "layer", "kind", "grid"), TIMM)
def test_timm(name, options, size, layer, kind, grid):
    network, images = timm.create_model(name, num_classes=5, **options), torch.randn(2, 3, *size)
    found = find_target_layer(network, images)
    assert (found.name, found.layout.kind, found.grid) == (layer, kind, grid)
    assert found.module is network.get_submodule(layer)
    assert found.reason
    assert network.training
    with CAM(network.eval(), target_layer=found) as cam, torch.no_grad():
        network(images)
    assert cam([0, 1]).shape == (2, *grid)
    assert cam.heatmaps([0, 1]).shape == (2, *size)


@pytest.mark.parametrize(("name", "size", "layer", "kind", "grid"), TORCHVISION)
def test_torchvision(name, size, layer, kind, grid):
    network = torchvision.models.get_model(name, num_classes=5)
    found = find_target_layer(network, torch.randn(2, 3, size, size))
    assert (found.name, found.layout.kind, found.grid) == (layer, kind, grid)


class Functional(nn.Module):
    """A CNN whose ReLUs and pools are functions."""

    def __init__(self, pool):
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3)
        self.fc, self.pool = nn.LazyLinear(5), pool

    def forward(self, x):
        x = F.max_pool2d(F.relu(self.conv1(x)), 2)
        x = F.relu(self.conv2(x), inplace=True)
        return self.fc((x.mean((2, 3)) if self.pool == "mean" else F.max_pool2d(x, 2)).flatten(1))


@pytest.mark.parametrize("pool", ["mean", "max"])
def test_hand_written_functional(pool):
    found = find_target_layer(Functional(pool), torch.randn(2, 3, 32, 32))
    assert (found.name, found.grid) == ("conv2", (13, 13))


def flat(*head):
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(inplace=True), nn.MaxPool2d(2),
        nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(inplace=True), *head,
    )  # fmt: skip


@pytest.mark.parametrize(
    "head",
    [
        (nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5)),
        (nn.AdaptiveMaxPool2d(1), nn.Flatten(), nn.Linear(8, 5)),
        (nn.MaxPool2d(2), nn.Flatten(), nn.Dropout(), nn.Linear(8 * 16, 5)),
        (nn.Flatten(), nn.Linear(8 * 64, 5), nn.LogSoftmax(1)),
    ],
)
def test_hand_written_flat(head):
    found = find_target_layer(flat(*head), torch.randn(2, 3, 16, 16))
    assert (found.name, found.grid) == ("4", (8, 8))


def test_hand_written_channels_last():
    class ChannelsLast(nn.Module):
        def __init__(self):
            super().__init__()
            self.patch, self.norm = nn.Conv2d(3, 16, 4, 4), nn.LayerNorm(16)
            self.head = nn.Linear(16, 5)

        def forward(self, x):
            return self.head(self.norm(self.patch(x).permute(0, 2, 3, 1)).mean((1, 2)))

    # 8 rows, 12 columns, 16 channels: as channels first it would nearly look like a grid too.
    found = find_target_layer(ChannelsLast(), torch.randn(2, 3, 32, 48))
    assert (found.name, found.layout.kind, found.grid) == ("norm", "NHWC", (8, 12))


def test_a_wrapped_network_is_found_in_its_own_terms():
    class Wrapper(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = timm.create_model("resnet10t", num_classes=5)

        def forward(self, x):
            return self.inner(x)

    assert find_target_layer(Wrapper(), torch.randn(2, 3, 64, 64)).name == "inner.layer4"


@pytest.mark.parametrize(
    "pick", [lambda n: "blocks[-1].norm1", lambda n: "blocks.1.norm1", lambda n: n.blocks[-1].norm1]
)
def test_a_layer_may_be_named_or_given(pick):
    network = timm.create_model("vit_base_patch16_224", num_classes=5, **SMALL_VIT).eval()
    with CAM(network, target_layer=pick(network)) as cam, torch.no_grad():
        network(torch.randn(2, 3, 64, 64))
    assert isinstance(cam.target_layer, TargetLayer)
    assert cam.target_layer.name == "blocks.1.norm1"
    assert cam([0, 1]).any()


# What is refused


def explain(network, target_layer, size=32):
    with CAM(network, target_layer=target_layer) as cam, torch.no_grad():
        logits = network(torch.randn(2, 3, size, size))
    assert not logits.requires_grad
    return cam([0, 0])


def test_a_network_that_is_no_classifier():
    network = flat(nn.Conv2d(8, 5, 1))
    with pytest.raises(ValueError, match=r"Sequential returns \(2, 5, 8, 8\), not logits"):
        find_target_layer(network, torch.randn(2, 3, 16, 16))
    with pytest.raises(RuntimeError, match=r"not logits \(batch, num_classes\)"):
        explain(network, "3", 16)


def test_a_network_without_a_feature_map():
    network = nn.Sequential(nn.Flatten(), nn.Linear(3 * 256, 8), nn.Linear(8, 5))
    with pytest.raises(ValueError, match=r"pass target_layer \(seen: no feature map at all\)"):
        find_target_layer(network, torch.randn(2, 3, 16, 16))


def test_images_so_small_that_a_network_ends_as_one_position():
    """Its residual branches begin at zero; then nothing before sees more than one position."""
    network = timm.create_model("resnet18", num_classes=10).eval()
    said = "a single position of images of 32x32, .* give larger images .*_size 64"
    with pytest.raises(ValueError, match=said):
        find_target_layer(network, torch.randn(2, 3, 32, 32))
    network = timm.create_model("resnet18", num_classes=10, zero_init_last=False).eval()
    layer = find_target_layer(network, torch.randn(2, 3, 32, 32))
    assert (layer.name, layer.grid) == ("layer3", (2, 2))
    assert layer.reason == "the last feature map of more than one position: the images are small"
    larger = find_target_layer(network, torch.randn(2, 3, 33, 33))
    assert (larger.name, larger.reason) == ("layer4", "the last feature map, before pooling")


def test_images_that_are_none():
    network = nn.Sequential(nn.Linear(8, 5))
    with pytest.raises(ValueError, match=r"\(batch, channels, height, width\)"):
        find_target_layer(network, torch.randn(2, 8))


def test_a_head_of_zeros():
    network = timm.create_model("resnet10t", num_classes=5)
    nn.init.zeros_(network.fc.weight)
    with pytest.raises(ValueError, match="are the head's weights all zero"):
        find_target_layer(network, torch.randn(2, 3, 64, 64))


def test_a_misspelt_layer_is_offered_close_names():
    network = timm.create_model("resnet10t")
    with pytest.raises(ValueError, match=r"'layr4' does not exist in ResNet; close.*layer4"):
        CAM(network, target_layer="layr4")
    for name in ("layer4[-7]", "blocks[-1].norm1", "", "layer4..0"):
        with pytest.raises(ValueError, match="does not exist in ResNet"):
            CAM(network, target_layer=name)
    with pytest.raises(ValueError, match="a Linear, is not a part of the network, a ResNet"):
        CAM(network, target_layer=nn.Linear(2, 2))


class Odd(nn.Module):
    """Layers that are called not at all, twice, and without a gradient."""

    def __init__(self):
        super().__init__()
        self.stem, self.unused, self.twice = (nn.Conv2d(8 if i else 3, 8, 1) for i in range(3))
        self.cut, self.pair = nn.Conv2d(8, 8, 1), nn.Identity()
        self.twice = nn.Conv2d(8, 8, 1)
        self.fc = nn.Linear(8, 5)

    def forward(self, x):
        x = self.twice(self.twice(self.stem(x)))
        x = x + self.cut(x).detach()
        self.pair({"x": x})
        return self.fc(x.mean((2, 3)))


@pytest.mark.parametrize(
    ("layer", "words"),
    [
        ("unused", "layer unused was not called in the forward of Odd"),
        ("twice", "layer twice is called more than once"),
        ("fc", r"layer fc gives \(2, 5\): no grid over images of 32x32 pixels"),
        ("cut", "graph|reach"),
        ("pair", "layer pair returns a dict, not a tensor"),
    ],
)
def test_a_layer_that_cannot_be_explained(layer, words):
    with pytest.raises(RuntimeError, match=words):
        explain(Odd(), layer)


def test_a_layer_that_is_called_twice_is_not_chosen():
    assert find_target_layer(Odd(), torch.randn(2, 3, 8, 8)).name == "stem"


def test_a_layer_after_which_no_gradient_flows():
    network = timm.create_model("vit_base_patch16_224", num_classes=5, **SMALL_VIT).eval()
    # Only the class token is read after the last block: the map is 0, and not an error.
    assert not explain(network, "blocks.1", 64).any()


def test_attention_is_no_map():
    network = timm.create_model("vit_base_patch16_224", num_classes=5, **SMALL_VIT)
    for layer in ("blocks.1.attn.qkv", "blocks.0.attn.proj"):
        assert find_target_layer(network, torch.randn(1, 3, 64, 64)).name != layer


class UnderNoGrad(nn.Module):
    def __init__(self, everything):
        super().__init__()
        self.body, self.head = nn.Conv2d(3, 8, 3), nn.Linear(8, 5)
        self.everything = everything

    def forward(self, x):
        with torch.no_grad():
            x = self.body(x)
            if self.everything:
                return self.head(x.mean((2, 3)))
        return self.head(x.mean((2, 3)))


def test_a_head_after_the_networks_own_no_grad():
    """A linear probe: its map is that of the same layers without no_grad."""
    network = UnderNoGrad(everything=False)
    assert find_target_layer(network, torch.randn(2, 3, 16, 16)).name == "body"
    images = torch.randn(2, 3, 16, 16)
    maps = [network.body(images).detach().requires_grad_()]
    (slope,) = torch.autograd.grad(network.head(maps[0].mean((2, 3)))[:, 0].sum(), maps)
    expected = (maps[0] * slope.mean((2, 3), keepdim=True)).sum(1).relu()
    for layer in (None, "body"):
        with CAM(network, target_layer=layer) as cam, torch.no_grad():
            assert not network(images).requires_grad
        assert torch.allclose(cam(0), expected, atol=1e-6)


def test_all_of_it_under_the_networks_own_no_grad():
    network = UnderNoGrad(everything=True)
    assert find_target_layer(network, torch.randn(2, 3, 16, 16)).name == "body"
    assert explain(network, "body").shape == (2, 30, 30)
