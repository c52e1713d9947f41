"""Score-CAM and Ablation-CAM against the definition and pytorch-grad-cam."""

import copy

import numpy as np
import pytest
import timm
import torch
from bystander import images, state
from einops import einsum
from pytorch_grad_cam import AblationCAM, ScoreCAM
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
from torch import nn

from litcam.explain import CAM, SLOW_METHODS, count_forwards, scale_maps, slow_map

SMALL = {
    "cnn": ("resnet10t", {}),
    "vit": ("vit_tiny_patch16_224", {"img_size": 64, "embed_dim": 32, "depth": 2, "num_heads": 2}),
    "swin": (
        "swin_tiny_patch4_window7_224",
        {"img_size": 64, "window_size": 4, "embed_dim": 16, "depths": (2, 2), "num_heads": (2, 4)},
    ),
}
LAYERS = {"cnn": "layer1", "vit": "blocks[-1].norm1", "swin": "norm"}
CHANNELS = {"cnn": 64, "vit": 32, "swin": 32}
RESHAPE = {
    "cnn": None,
    "vit": lambda x: x[:, 1:].unflatten(1, (4, 4)).permute(0, 3, 1, 2),
    "swin": lambda x: x.permute(0, 3, 1, 2),
}
CLASSES = [1, 3]
families = pytest.mark.parametrize("family", SMALL)
slow_methods = pytest.mark.parametrize("method", SLOW_METHODS)


def make(family):
    torch.manual_seed(0)
    name, options = SMALL[family]
    return timm.create_model(name, num_classes=5, **options).eval()


def by_peer(kind, network, layer, reshape):
    network = copy.deepcopy(network)
    with kind(network, [network.get_submodule(layer)], reshape_transform=reshape) as peer:
        return torch.from_numpy(peer(images(), [ClassifierOutputTarget(c) for c in CLASSES]))


@families
def test_scorecam_is_grad_cams(family):
    network, layer = make(family), LAYERS[family].replace("[-1]", ".1")
    maps = slow_map(network, images(), CLASSES, "scorecam", LAYERS[family])
    theirs = by_peer(ScoreCAM, network, layer, RESHAPE[family])
    assert maps.any()
    assert (scale_maps(maps, (64, 64)) - theirs).abs().max() < 1e-5


def test_ablationcam_is_grad_cams_after_a_relu():
    network = make("cnn")
    maps = slow_map(network, images(), CLASSES, "ablationcam", "layer1")
    assert maps.any()
    theirs = by_peer(AblationCAM, network, "layer1", None)
    assert (scale_maps(maps, (64, 64)) - theirs).abs().max() < 1e-5


@families
def test_ablationcam_is_its_definition(family):
    network, x = make(family), images()
    with CAM(network, target_layer=LAYERS[family]) as cam, torch.no_grad():
        logits = network(x)
    layer, kept = cam.target_layer, []
    lost = torch.zeros(2, CHANNELS[family])
    for channel in range(CHANNELS[family]):

        def ablate(module, args, output, channel=channel):
            kept.append(output)
            output = output.clone()
            layer.layout.to_maps(output)[:, channel] = 0
            if layer.layout.kind == "tokens":
                output[..., channel] = 0  # of the class token, too
            return output

        hook = layer.module.register_forward_hook(ablate)
        with torch.no_grad():
            without = network(x)
        hook.remove()
        lost[:, channel] = (1 - without / logits)[[0, 1], CLASSES]
    expected = einsum(lost, layer.layout.to_maps(kept[0]), "b c, b c h w -> b h w").relu()
    for batch_size in (32, 7):
        maps = slow_map(network, x, CLASSES, "ablationcam", layer, batch_size)
        assert maps.shape == (2, *layer.grid)
        assert (maps - expected).abs().max() <= 1e-4 * expected.max()


def test_an_in_place_relu_after_the_layer_does_not_spoil_the_map():
    torch.manual_seed(0)

    def network(in_place):
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Conv2d(3, 8, 3), nn.ReLU(in_place), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
            nn.Linear(8, 5),
        ).eval()  # fmt: skip

    for method in SLOW_METHODS:
        maps = [slow_map(network(p), images(), CLASSES, method, "0") for p in (False, True)]
        assert maps[0].any()
        assert torch.equal(*maps)


@slow_methods
@families
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_everything_is_as_before(method, family, mode):
    network = make(family)
    layer = LAYERS[family]
    list(network.children())[-1].train()
    first = next(network.parameters())
    first.grad = torch.ones_like(first)
    with mode():
        x, before = images()[:1], state(network)
        maps = slow_map(network, x, 1, method, layer)
        assert state(network) == before
    assert not maps.requires_grad
    assert maps.dtype == torch.float32


@slow_methods
@pytest.mark.parametrize("at", [2, 3, 4])
def test_everything_is_as_before_after_an_exception(method, at):
    class Stop(nn.Module):
        calls = 0

        def forward(self, x):
            self.calls += 1
            if self.calls == at:
                raise ZeroDivisionError
            return x

    network = make("cnn").train()
    network.layer4 = nn.Sequential(network.layer4, Stop())
    before = state(network)
    with pytest.raises(ZeroDivisionError):
        slow_map(network, images()[:1], 1, method, "layer1", 16)
    assert state(network) == before


@slow_methods
@families
def test_the_cost_is_counted(method, family):
    network, seen = make(family), []
    layer = LAYERS[family]
    cost = count_forwards(network, images(), method, layer)
    network.register_forward_pre_hook(lambda module, args: seen.append(len(args[0])))
    slow_map(network, images(), None, method, layer)
    assert sum(seen) == cost


def test_the_layer_is_found_and_logits_may_be_in_an_object():
    class Output(dict):
        logits = property(lambda self: self["logits"])

    class Stranger(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = make("vit")

        def forward(self, x):
            return Output(logits=self.net(x))

    for method in SLOW_METHODS:
        maps = slow_map(Stranger(), images(), CLASSES, method)
        assert torch.equal(maps, slow_map(make("vit"), images(), CLASSES, method))


@slow_methods
def test_half_precision(method):
    network, x = make("cnn"), images()[:1]
    expected = slow_map(network, x, 1, method, "layer1")
    maps = slow_map(network.bfloat16(), x.bfloat16(), 1, method, "layer1")
    assert maps.dtype == torch.float32
    assert (maps - expected).abs().mean() < 0.1 * expected.abs().mean()


def test_a_logit_of_zero_is_no_nan():
    network = make("cnn")
    nn.init.zeros_(network.fc.weight)
    nn.init.zeros_(network.fc.bias)
    assert not slow_map(network, images()[:1], 0, "ablationcam", "layer1").any()
    assert np.geterr()["invalid"] == "warn"


def test_wrong_arguments():
    network = make("vit")
    with pytest.raises(ValueError, match="'score-cam' is unknown; did you mean scorecam"):
        slow_map(network, images(), 0, "score-cam")
    with pytest.raises(ValueError, match="'layer-cam' is unknown; did you mean layercam"):
        count_forwards(network, images(), "layer-cam")
    with pytest.raises(ValueError, match=r"'gradcam' is not slow: use litcam.explain.CAM"):
        slow_map(network, images(), 0, "gradcam")
    with pytest.raises(IndexError, match="class 5 does not exist"):
        slow_map(network, images(), 5)
    with pytest.raises(ValueError, match=r"classes must be \(batch,\) or \(batch, k\) for 2"):
        slow_map(network, images(), [[0, 1]])
    with pytest.raises(ValueError, match="does not exist in VisionTransformer"):
        slow_map(network, images(), 0, target_layer="block")


@slow_methods
@families
def test_several_classes_share_the_forwards(family, method):
    network, photos = make(family), images()
    layer = LAYERS[family]
    table = torch.tensor([[1, 3, 0], [4, 4, 2]])
    alone = [slow_map(network, photos, column, method, layer) for column in table.T]
    seen = []
    network.register_forward_hook(lambda module, args, output: seen.append(len(output)))
    together = slow_map(network, photos, table, method, layer)
    assert sum(seen) == count_forwards(make(family), photos, method, layer)
    torch.testing.assert_close(together, torch.stack(alone, dim=1), rtol=0, atol=0)
