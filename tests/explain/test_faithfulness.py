"""Metrics that ask the network again, against torchcam."""

from contextlib import nullcontext
from functools import partial

import pytest
import timm
import torch
from torch import nn
from torchvision.transforms.functional import gaussian_blur

from litcam.explain.metrics.faithfulness import AverageDropIncrease, DeletionInsertion

SOFTMAX = partial(torch.softmax, dim=-1)


class Small(nn.Module):
    """A classifier sure enough of itself that taking pixels away shows."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.drop = nn.Dropout(0.5)
        self.head = nn.Linear(8, 4)

    def forward(self, images):
        features = self.norm(self.conv(images)).relu()
        return self.head(self.drop(features.mean((2, 3)))) * 8


class Given:
    """Hands torchcam's metrics maps that are there already."""

    def __init__(self, model, maps):
        self.model, self.maps = model, maps

    def __call__(self, class_idx=None, scores=None, **kwargs):
        return [self.maps]

    def fuse_cams(self, cams):
        return cams[0]

    def _hooks_off(self):
        return nullcontext()


@pytest.fixture
def case():
    torch.manual_seed(3)
    network = Small().eval()
    images = torch.randn(5, 3, 18, 15)
    maps = torch.randn(5, 6, 5).relu()
    maps = maps / maps.amax((1, 2), keepdim=True)
    return network, images, maps, torch.tensor([0, 1, 2, 3, 1])


def test_average_drop_and_increase_equal_torchcam(case):
    peer = pytest.importorskip("torchcam.metrics")
    network, images, maps, classes = case
    theirs = peer.ClassificationMetric(Given(network, maps.clone()), SOFTMAX)
    theirs.update(images, classes.tolist())
    ours = AverageDropIncrease()
    ours.update(network, images, maps, classes)
    result, expected = ours.compute(), theirs.summary()
    assert result["average_drop"].item() == pytest.approx(expected["avg_drop"], abs=1e-5)
    assert result["increase"].item() == pytest.approx(expected["conf_increase"], abs=1e-5)
    assert 0.05 < expected["avg_drop"] < 0.95
    assert 0 < expected["conf_increase"] < 1


def test_with_torchcams_maps_of_a_network_of_timm():
    pytest.importorskip("torchcam")
    from torchcam.methods import GradCAM
    from torchcam.metrics import ClassificationMetric, DeletionInsertionMetric

    torch.manual_seed(0)
    network = timm.create_model("resnet10t", channels=(8, 8, 16, 24), num_classes=5).eval()
    network.fc.weight.data.normal_(0, 3)
    images = torch.randn(4, 3, 64, 64)
    with GradCAM(network, target_layer="layer4") as extractor:
        drop = ClassificationMetric(extractor, SOFTMAX)
        curves = DeletionInsertionMetric(extractor, SOFTMAX)
        drop.update(images)
        curves.update(images)
        # With softmax scores torchcam explains the probability, not the logit.
        logits = network(images)
        (maps,) = extractor(logits.argmax(1).tolist(), logits.softmax(1))
    logits = logits.detach()
    ours, areas = AverageDropIncrease(), DeletionInsertion()
    for metric in (ours, areas):
        metric.update(network, images, maps, logits.argmax(1), logits.softmax(1))
    result, expected = ours.compute() | areas.compute(), drop.summary() | curves.summary()
    assert ours.num_skipped == 0
    names = {"average_drop": "avg_drop", "increase": "conf_increase"}
    names |= {"deletion": "deletion_auc", "insertion": "insertion_auc"}
    for mine, theirs in names.items():
        # torchcam's epsilon keeps its maximum below 1: where bilinear resizing leaves a map flat,
        # rounding then orders the pixels another way.
        near = 1e-4 if mine in ("deletion", "insertion") else 1e-5
        assert result[mine].item() == pytest.approx(expected[theirs], abs=near), mine


@pytest.mark.parametrize("steps", [1, 7, 20, 1000])
@pytest.mark.parametrize("baseline", ["zero", "blur"])
def test_deletion_and_insertion_equal_torchcam(case, steps, baseline):
    peer = pytest.importorskip("torchcam.metrics")
    network, images, maps, classes = case
    blur = {"zero": None, "blur": lambda x: gaussian_blur(x, [11, 11], [5.0, 5.0])}[baseline]
    expected = {}
    for name, start in (("deletion", None), ("insertion", blur)):
        extractor = Given(network, maps.clone())
        theirs = peer.DeletionInsertionMetric(extractor, SOFTMAX, steps=steps, baseline=start)
        theirs.update(images, classes.tolist())
        expected[name] = theirs.summary()[f"{name}_auc"]
    ours = DeletionInsertion(steps, baseline=baseline)
    ours.update(network, images, maps, classes)
    result = {name: value.item() for name, value in ours.compute().items()}
    assert result == pytest.approx(expected, abs=1e-5)
    one = DeletionInsertion(steps, baseline=baseline, curves=["insertion"])
    one.update(network, images, maps, classes)
    assert one.compute()["insertion"].item() == pytest.approx(expected["insertion"], abs=1e-5)


def test_a_map_that_ranks_well_deletes_sooner_than_its_reverse():
    class Bright(nn.Module):
        """Sure of class 1 as long as the top left corner is bright."""

        def forward(self, images):
            corner = images[:, :, :4, :4].mean((1, 2, 3))
            return torch.stack([torch.zeros_like(corner), 8 * corner - 4], 1)

    maps = torch.zeros(2, 8, 8)
    maps[:, :4, :4] = 1
    scores = []
    for heat in (maps, 1 - maps):
        metric = DeletionInsertion(steps=16)
        metric.update(Bright(), torch.ones(2, 3, 8, 8), heat, torch.tensor([1, 1]))
        scores.append(metric.compute())
    assert scores[0]["deletion"] < 0.2 < 0.8 < scores[1]["deletion"]
    assert scores[1]["insertion"] < 0.2 < 0.8 < scores[0]["insertion"]


class Counting(Small):
    """Counts the images of its forwards, and draws random numbers even in eval mode."""

    forwards = 0

    def forward(self, images):
        self.forwards += len(images)
        torch.rand(1)
        return super().forward(images)


@pytest.mark.parametrize("make", [AverageDropIncrease, DeletionInsertion])
def test_the_network_is_as_it_was_and_the_cost_is_as_told(case, make):
    _, images, maps, classes = case
    network = Counting().train()
    network.norm.eval()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    state = torch.get_rng_state()
    metric = make()
    scores = torch.full((5, 4), 0.25)
    metric.update(network, images, maps, classes, scores)
    assert network.forwards == 5 * metric.forwards_per_image
    metric.update(network, images, maps, classes, scores[:, 0])
    metric.update(network, images, maps, classes)
    assert network.forwards == 5 * (3 * metric.forwards_per_image + 1)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    modes = {name: module.training for name, module in network.named_modules()}
    assert modes == {"": True, "conv": True, "norm": False, "drop": True, "head": True}
    network.head.weight.data = torch.zeros(4, 9)
    with pytest.raises(RuntimeError):
        metric.update(network, images, maps, classes)
    assert network.training
    assert not network.norm.training
    assert torch.equal(torch.get_rng_state(), state)
    assert all(parameter.grad is None for parameter in network.parameters())


@pytest.mark.parametrize("make", [AverageDropIncrease, DeletionInsertion])
def test_a_map_of_nothing_is_left_out(case, make):
    network, images, maps, classes = case
    whole, without = make(), make()
    whole.update(network, images[:3], maps[:3], classes[:3])
    maps[3], maps[4, 0, 0] = 0.7, torch.nan
    without.update(network, images, maps, classes)
    assert without.num_skipped == 2
    for name, value in whole.compute().items():
        assert value.item() == pytest.approx(without.compute()[name].item(), abs=1e-6)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: DeletionInsertion(0), "steps must be 1 or more, got 0"),
        (lambda: DeletionInsertion(baseline="grey"), "got 'grey'"),
        (lambda: DeletionInsertion(curves=["delete"]), r"got \['delete'\]"),
        (
            lambda: AverageDropIncrease().update(
                Small(), torch.ones(2, 3, 8, 8), torch.ones(3, 4, 4), torch.zeros(2).long()
            ),
            r"got \(2, 3, 8, 8\) and maps \(3, 4, 4\)",
        ),
        (
            lambda: AverageDropIncrease().update(
                nn.Identity(), torch.ones(2, 3, 8, 8), torch.ones(2, 4, 4), torch.zeros(2).long()
            ),
            "Identity returns .*, not logits",
        ),
    ],
)
def test_a_mistake_is_told(call, message):
    with pytest.raises(ValueError, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)
