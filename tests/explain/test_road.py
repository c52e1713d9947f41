"""ROAD against grad-cam's, which is the authors' code."""

import warnings

import numpy as np
import pytest
import torch
from pytorch_grad_cam.metrics import road as peer
from pytorch_grad_cam.utils.model_targets import ClassifierOutputSoftmaxTarget
from test_faithfulness import Counting, Small

from litcam.explain import METRICS, ROAD
from litcam.explain.metrics.regions import resize_maps
from litcam.explain.metrics.road import _solve

PERCENTILES = [10, 30, 55, 90]


@pytest.fixture
def case():
    torch.manual_seed(1)
    network = Small().eval()
    images = torch.randn(4, 3, 18, 15)
    maps = torch.rand(4, 18, 15)
    maps = (maps - maps.amin((1, 2), True)) / (maps.amax((1, 2), True) - maps.amin((1, 2), True))
    return network, images, maps, torch.tensor([0, 1, 1, 3])


def run_peer(kind, case, percentiles, monkeypatch):
    monkeypatch.setattr(peer.NoisyLinearImputer.__init__, "__defaults__", (0, []))
    network, images, maps, classes = case
    targets = [ClassifierOutputSoftmaxTarget(number) for number in classes.tolist()]
    with warnings.catch_warnings():
        # NumPy's functions on its tensors.
        warnings.simplefilter("ignore", DeprecationWarning)
        return kind(percentiles)(images, maps.numpy(), targets, network)


@pytest.mark.parametrize("percentiles", [PERCENTILES, [10, 20, 30, 40, 50, 60, 70, 80, 90], [80]])
def test_equals_grad_cam(case, percentiles, monkeypatch):
    kinds = {
        "road": peer.ROADCombined,
        "road_morf": peer.ROADMostRelevantFirstAverage,
        "road_lerf": peer.ROADLeastRelevantFirstAverage,
    }
    theirs = {
        name: run_peer(kind, case, percentiles, monkeypatch).mean().item()
        for name, kind in kinds.items()
    }
    ours = ROAD(percentiles, noise=0)
    ours.update(*case)
    result = {name: value.item() for name, value in ours.compute().items()}
    assert result == pytest.approx(theirs, abs=1e-6)
    assert max(map(abs, theirs.values())) > 0.01


def test_one_percentile_equals_grad_cams_single_metrics(case, monkeypatch):
    ours = ROAD([80], noise=0)
    ours.update(*case)
    for name, kind in (("morf", peer.ROADMostRelevantFirst), ("lerf", peer.ROADLeastRelevantFirst)):
        expected = run_peer(kind, case, 80, monkeypatch).mean().item()
        assert ours.compute()[f"road_{name}"].item() == pytest.approx(expected, abs=1e-6)


def test_small_maps_are_resized_and_known_probabilities_save_a_forward(case, monkeypatch):
    network, images, maps, classes = case
    maps = maps[:, :6, :5] * 3 + 1
    low, high = maps.amin((1, 2), True), maps.amax((1, 2), True)
    large = resize_maps((maps - low) / (high - low), (18, 15))
    expected = run_peer(
        peer.ROADCombined, (network, images, large, classes), PERCENTILES, monkeypatch
    )
    with torch.no_grad():
        probabilities = network(images).softmax(1)
    ours = ROAD(PERCENTILES, noise=0)
    ours.update(network, images, maps, classes, probabilities)
    # Where resizing leaves a map flat, grad-cam takes equal values together: a pixel or two.
    assert ours.compute()["road"].item() == pytest.approx(expected.mean(), abs=5e-3)


def test_an_imputed_pixel_is_the_weighted_mean_of_its_neighbours():
    torch.manual_seed(0)
    image, known = torch.randn(2, 9, 8), torch.rand(9, 8) > 0.6
    filled = _solve(image, known)
    assert torch.equal(filled[:, known], image[:, known])
    weights = {(y, x): 1 / 6 if 0 in (y, x) else 1 / 12 for y in (-1, 0, 1) for x in (-1, 0, 1)}
    del weights[0, 0]
    for y, x in (~known).nonzero().tolist():
        near = [
            (weight, filled[:, y + dy, x + dx])
            for (dy, dx), weight in weights.items()
            if 0 <= y + dy < 9 and 0 <= x + dx < 8
        ]
        mean = sum(w * value for w, value in near) / sum(w for w, _ in near)
        assert torch.allclose(filled[:, y, x], mean, atol=1e-6)


def test_of_a_map_with_many_zeros_the_exact_share_goes(case):
    network, images, maps, _ = case
    maps[:, 5:] = 0
    metric, seen = ROAD([10, 50], noise=0), []

    class Keep(torch.nn.Module):
        def forward(self, batch):
            seen.append((batch != images).any(1).float().mean((1, 2)))
            return network(batch)

    metric.update(Keep(), images, maps, torch.zeros(4).long(), torch.ones(4))
    shares = torch.stack(seen).mean(1)
    assert shares.tolist() == pytest.approx([0.9, 0.5, 0.9, 0.5], abs=0.005)
    # grad-cam would leave nothing of the image for its most relevant 90 %.
    heat = maps[0].numpy()
    assert not (heat < np.percentile(heat, 10)).any()


def test_noise_is_the_same_for_every_image_batch_and_call(case):
    network, images, maps, classes = case
    values = []
    for batches in ([slice(0, 4)], [slice(0, 1), slice(1, 4)], [slice(2, 4), slice(0, 2)]):
        metric = ROAD(PERCENTILES)
        for rows in batches:
            torch.rand(1)
            metric.update(network, images[rows], maps[rows], classes[rows])
        values.append(metric.compute()["road"].item())
    assert values == pytest.approx([values[0]] * 3, abs=1e-6)
    quiet, other = ROAD(PERCENTILES, noise=0), ROAD(PERCENTILES, noise=0.5, seed=1)
    for metric in (quiet, other):
        metric.update(*case)
    assert values[0] == pytest.approx(quiet.compute()["road"].item(), abs=0.01)
    assert values[0] != quiet.compute()["road"].item() != other.compute()["road"].item()


def test_a_map_of_nothing_is_left_out_and_costs_nothing(case):
    _, images, maps, classes = case
    network = Counting().eval()
    network.load_state_dict(case[0].state_dict())
    alone, both = ROAD(PERCENTILES), ROAD(PERCENTILES)
    alone.update(network, images[:2], maps[:2], classes[:2])
    maps[2], maps[3, 0, 0] = 0.7, torch.nan
    network.forwards = 0
    both.update(network, images, maps, classes, torch.full((4, 4), 0.25))
    assert network.forwards == 2 * both.forwards_per_image
    assert both.num_skipped == 2
    both.reset()
    both.update(network, images, maps, classes)
    expected = {name: value.item() for name, value in alone.compute().items()}
    assert {name: value.item() for name, value in both.compute().items()} == pytest.approx(
        expected, abs=1e-6
    )
    both.reset()
    both.update(network, images[2:], maps[2:], classes[2:])
    assert both.compute()["road"].isnan() and both.num_skipped == 2 and not both.has_value


def test_the_network_and_the_random_numbers_are_as_they_were(case):
    _, images, maps, classes = case
    network = Counting().train()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    state = torch.get_rng_state()
    metric = ROAD(PERCENTILES)
    metric.update(network, images, maps, classes)
    assert network.forwards == 4 * (metric.forwards_per_image + 1) == 4 * 9
    assert torch.equal(torch.get_rng_state(), state)
    assert network.training and network.drop.training
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    with torch.inference_mode():
        metric.update(network, images.bfloat16().float(), maps.bfloat16(), classes)
    assert metric.count == 8


def test_a_good_map_scores_higher_than_its_reverse():
    class Bright(torch.nn.Module):
        """Sure of class 1 as long as the top left corner has texture."""

        def forward(self, images):
            corner = images[:, :, :6, :6].std((1, 2, 3))
            return torch.stack([torch.zeros_like(corner), 12 * corner - 6], 1)

    torch.manual_seed(0)
    images = torch.randn(2, 3, 16, 16)
    maps = torch.rand(2, 16, 16) * 0.1
    maps[:, :6, :6] += 1
    scores = []
    for heat in (maps, 2 - maps):
        metric = METRICS["road"].make()
        metric.update(Bright(), images, heat, torch.tensor([1, 1]))
        scores.append(metric.compute())
    assert scores[0]["road"] > 0.2 > -0.2 > scores[1]["road"]
    assert scores[0]["road_morf"] < scores[0]["road_lerf"]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: ROAD([0, 50]), r"percentiles must be in \(0, 100\), got \[0, 50\]"),
        (lambda: ROAD([]), r"got \[\]"),
        (lambda: ROAD(noise=-1), "noise must be 0 or more, got -1"),
    ],
)
def test_a_mistake_is_told(call, message):
    with pytest.raises(ValueError, match=message):
        call()
