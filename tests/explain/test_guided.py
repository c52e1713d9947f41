"""Guided Grad-CAM against pytorch-grad-cam, and what it leaves alone."""

import copy

import pytest
import timm
import torch
import torchvision
from bystander import images, state
from pytorch_grad_cam import GuidedBackpropReLUModel
from torch import nn
from torch.utils.checkpoint import checkpoint

from litcam.explain import CAM, guided_gradcam


def make(name, **options):
    torch.manual_seed(0)
    return timm.create_model(name, num_classes=5, **options).eval()


def vgg11():
    """An eighth as wide, for the weights of its first linear layer."""
    torch.manual_seed(0)
    widths = [8, "M", 16, "M", 32, 32, "M", 64, 64, "M", 64, 64, "M"]
    return timm.models.vgg.VGG(widths, num_classes=5).eval()


def by_peer(network, x, classes):
    """Guided backpropagation of grad-cam, which changes the network, one image at a time."""
    guided = []
    for image, label in zip(x, classes, strict=True):
        peer = GuidedBackpropReLUModel(copy.deepcopy(network))
        guided.append(torch.from_numpy(peer(image[None].clone(), label)).permute(2, 0, 1))
    return torch.stack(guided)


def assert_close(ours, theirs):
    assert theirs.any()
    assert (ours - theirs).abs().max() <= 1e-5 * theirs.abs().max()


class Functional(nn.Module):
    """The ways to write a ReLU that are not nn.ReLU, or with `modules` the same in modules."""

    def __init__(self, modules=False, cached=False):
        super().__init__()
        torch.manual_seed(0)
        self.convs = nn.ModuleList([nn.Conv2d(3 if i == 0 else 8, 8, 3) for i in range(6)])
        self.fc = nn.Linear(8, 5)
        ways = (
            nn.functional.relu,
            torch.relu,
            torch.relu_,
            lambda x: x.relu(),
            lambda x: x.relu_(),
            lambda x: nn.functional.relu(x, inplace=True),
        )
        self.ways = nn.ModuleList([nn.ReLU()] * 6) if modules else ways
        self.cached = cached

    def forward(self, x):
        for conv, relu in zip(self.convs, self.ways, strict=True):
            if self.cached:
                x = checkpoint(lambda y, c=conv, r=relu: r(c(y)), x, use_reentrant=False)
            else:
                x = relu(conv(x))
        return self.fc(x.mean((2, 3)))


@pytest.mark.parametrize(
    "network",
    [
        lambda: make("resnet18"),
        vgg11,
        lambda: torchvision.models.resnet18(num_classes=5).eval(),
    ],
    ids=["resnet18", "vgg11", "torchvision"],
)
def test_it_is_grad_cams_guided_backpropagation_times_the_heatmap(network):
    network, x, classes = network(), images(), [1, 3]
    ours = guided_gradcam(network, x, classes)
    with CAM(network) as cam, torch.no_grad():
        network(x)
    assert_close(ours, by_peer(network, x, classes) * cam.heatmaps(classes)[:, None])


@pytest.mark.parametrize("cached", [False, True])
def test_functional_and_in_place_relus_are_guided_too(cached):
    network, modules = Functional(cached=cached), Functional(modules=True)
    ours = guided_gradcam(network, images(), [1, 3], target_layer="convs[3]")
    with CAM(modules, target_layer="convs[3]") as cam, torch.no_grad():
        modules(images())
    assert_close(ours, by_peer(modules, images(), [1, 3]) * cam.heatmaps([1, 3])[:, None])


def test_relu6_counts():
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 8, 3), nn.ReLU6(inplace=True), nn.Conv2d(8, 8, 3)
    head = nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5)
    network = nn.Sequential(*layers, *head).eval()
    plain = nn.Sequential(layers[0], nn.ReLU(), layers[2], *head)  # nothing here is above 6
    assert torch.equal(guided_gradcam(network, images(), 1), guided_gradcam(plain, images(), 1))


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_everything_is_as_before(mode):
    network = make("resnet10t", drop_rate=0.5)
    list(network.children())[-1].train()
    first, second = list(network.parameters())[:2]
    first.grad = torch.ones_like(first)
    second.requires_grad_(False)
    with mode():
        x, before = images(), state(network)
        guided = guided_gradcam(network, x)
        assert state(network) == before
    assert not guided.requires_grad
    assert not x.requires_grad
    assert torch.equal(guided, guided_gradcam(network.eval(), images()))


def test_everything_is_as_before_after_an_exception():
    class Stop(nn.Module):
        def forward(self, x):
            raise ZeroDivisionError

    network = make("resnet10t").train()
    network.layer3[0].act1 = Stop()
    before = state(network)
    with pytest.raises(ZeroDivisionError):
        guided_gradcam(network, images())
    assert state(network) == before
    x = images().requires_grad_()
    (gradient,) = torch.autograd.grad(nn.functional.relu(x).mul(-1).sum(), x)
    assert (gradient < 0).any()  # no mode is left on


@pytest.mark.parametrize("method", ["gradcam", "layercam", "eigencam"])
def test_the_heatmap_is_the_methods(method):
    network = make("resnet10t")
    guided = guided_gradcam(network, images(), None, method, "layer2")
    with CAM(network, method, "layer2") as cam, torch.no_grad():
        network(images())
    assert not guided.where((cam.heatmaps() == 0)[:, None], 0.0).any()
    assert guided.any()


def test_the_predicted_classes_are_the_default():
    network = make("resnet10t")
    predicted = network(images()).argmax(1)
    assert torch.equal(
        guided_gradcam(network, images()), guided_gradcam(network, images(), predicted)
    )


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("test_vit", {"img_size": 64}),
        ("test_efficientnet", {}),
        (
            "swin_tiny_patch4_window7_224",
            {"img_size": 64, "window_size": 4, "embed_dim": 24, "depths": (2,), "num_heads": (2,)},
        ),
    ],
)
def test_networks_without_relu_are_refused(name, options):
    network = make(name, **options)
    before = state(network)
    with pytest.raises(ValueError, match="calls no ReLU, and guided backpropagation is defined"):
        guided_gradcam(network, images())
    assert state(network) == before


def test_wrong_arguments():
    network = make("resnet10t")
    with pytest.raises(ValueError, match=r"one an image, \(batch,\), got \(2, 2\)"):
        guided_gradcam(network, images(), [[0, 1], [2, 3]])
    with pytest.raises(IndexError, match="class 5 does not exist: there are 0 to 4"):
        guided_gradcam(network, images(), 5)
    with pytest.raises(ValueError, match="did you mean layercam"):
        guided_gradcam(network, images(), method="layer-cam")
    with pytest.raises(ValueError, match="close names: layer4"):
        guided_gradcam(network, images(), target_layer="layer9")
