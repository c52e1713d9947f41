"""FinerCAM against grad-cam's, LayerCAM over several layers against torch-cam's."""

import cv2
import numpy as np
import pytest
import timm
import torch
from pytorch_grad_cam import FinerCAM, LayerCAM
from pytorch_grad_cam.utils.model_targets import FinerWeightedTarget

from litcam.explain import CAM, finer_scores

LAYERS = ["layer2", "layer3", "layer4"]


@pytest.fixture
def network():
    return timm.create_model("resnet10t", num_classes=7).eval()


@pytest.fixture
def images():
    return torch.randn(3, 3, 96, 96)


def record(network, images, method, layer=None):
    with CAM(network, method, layer) as cam, torch.inference_mode():
        logits = network(images)
    assert not cam.failure
    return cam, logits.clone()


def test_finercam_is_that_of_grad_cam(network, images):
    with FinerCAM(network, [network.layer4]) as peer:
        theirs = torch.from_numpy(peer(images))
    cam, logits = record(network, images, "finercam")
    assert (cam.heatmaps() - theirs).abs().max() < 1e-5
    assert torch.equal(logits, network(images).detach())
    assert not torch.allclose(cam.heatmaps(), cam.heatmaps(method="gradcam"), atol=1e-2)


@pytest.mark.parametrize(("num_classes", "alpha"), [(7, 1.0), (7, 0.6), (2, 1.0), (3, 0.3)])
def test_the_score_is_that_of_grad_cam(num_classes, alpha):
    logits = 3 * torch.randn(5, num_classes, dtype=torch.float64)
    classes = torch.randint(num_classes, (5,))
    found = finer_scores(logits, classes, alpha)
    for row, own, score in zip(logits, classes.tolist(), found, strict=True):
        nearest = (row - row[own]).abs().argsort().tolist()
        nearest.remove(own)
        assert torch.isclose(FinerWeightedTarget(own, nearest[:3], alpha)(row), score, atol=1e-9)


def test_any_method_takes_the_score(network, images):
    """As a target, with the class in it; no share taken away is the class itself."""

    def target(logits, alpha=1.0):
        return finer_scores(logits, torch.full((len(logits),), 2), alpha)

    with CAM(network, "layercam", target=target) as cam, torch.no_grad():
        network(images)
    with LayerCAM(network, [network.layer4]) as peer:
        logits = network(images).detach()
        others = [row.sub(row[2]).abs().argsort()[1:4].tolist() for row in logits]
        theirs = peer(images, [FinerWeightedTarget(2, each, 1.0) for each in others])
    assert (cam.heatmaps() - torch.from_numpy(theirs)).abs().max() < 1e-5
    with CAM(network, target=lambda logits: target(logits, 0.0)) as none, torch.no_grad():
        network(images)
    weighted = none.heatmaps()
    assert (weighted - record(network, images, "gradcam")[0].heatmaps([2, 2, 2])).abs().max() < 1e-4


def test_one_class_alone_has_no_neighbours():
    logits = torch.randn(3, 1)
    assert torch.equal(finer_scores(logits, torch.zeros(3, dtype=torch.long)), logits[:, 0])


def test_several_layers_are_fused_as_in_the_paper(network, images):
    cam, logits = record(network, images, "layercam", LAYERS)
    classes = [4, 1, 6]
    maps = cam(classes)
    assert torch.equal(logits, network(images).detach())
    assert (cam.made_at.name, cam.made_at.grid) == ("layer2 + layer3 + layer4", (12, 12))
    fused = np.zeros((3, 12, 12), np.float32)
    for layer in LAYERS:
        each = record(network, images, "layercam", layer)[0](classes).numpy()
        scaled = np.tanh(2 * each / each.max((1, 2), keepdims=True))
        large = [cv2.resize(one, (12, 12), interpolation=cv2.INTER_LINEAR) for one in scaled]
        fused = np.maximum(fused, np.stack(large))
    assert np.abs(maps.numpy() - fused).max() < 1e-5


def test_they_are_fused_as_by_torch_cam(network, images):
    peers = pytest.importorskip("torchcam.methods")
    maps = record(network, images, "layercam", LAYERS)[0]([4, 1, 6])
    with peers.LayerCAM(network, LAYERS) as extractor:
        raw = extractor([4, 1, 6], network(images), normalized=False)
        each = [one / one.amax((1, 2), keepdim=True) for one in raw]
        theirs = extractor.fuse_cams(each)
    assert (maps - theirs).abs().max() < 1e-5


def test_the_order_of_the_names_does_not_matter(network, images):
    one = record(network, images, "layercam", LAYERS)[0]([1, 2, 3])
    other = record(network, images, "layercam", LAYERS[::-1])[0]([1, 2, 3])
    assert (one - other).abs().max() < 1e-6


def test_the_last_of_them_answers_other_methods(network, images):
    cam, _ = record(network, images, "layercam", LAYERS)
    alone, _ = record(network, images, "gradcam", "layer4")
    assert (cam(method="gradcam") - alone()).abs().max() < 1e-6 * alone().max()


@pytest.mark.parametrize(
    ("method", "layers", "why"),
    [
        ("gradcam", LAYERS, "names 3 layers: several are for method 'layercam'"),
        ("layercam", ["layer2", "layr3"], "'layr3' does not exist in ResNet; close names: layer3"),
    ],
)
def test_wrong_words_are_a_line(network, method, layers, why):
    with pytest.raises(ValueError, match=why):
        CAM(network, method, layers)


def test_a_layer_that_gives_no_grid_is_told(network, images):
    with CAM(network, "layercam", ["fc", "layer4"]) as cam, torch.no_grad():
        network(images)
    assert "layer fc gives (3, 7): no grid" in cam.failure
