"""Networks that forget stage by stage, and the rank correlation of their maps."""

import numpy as np
import pytest
import timm
import torch
from scipy.stats import spearmanr

from litcam.explain.metrics.randomisation import randomisation_check, rank_correlation


def test_rank_correlation_equals_scipy():
    first, second = torch.randn(6, 7, 5).relu(), torch.randn(6, 7, 5).relu()
    expected = [spearmanr(a.flatten(), b.flatten())[0] for a, b in zip(first, second, strict=True)]
    np.testing.assert_allclose(rank_correlation(first, second), expected, atol=1e-6)
    assert rank_correlation(first[:1], first[:1] ** 3).item() == pytest.approx(1)
    assert rank_correlation(first[:1], torch.ones(1, 7, 5)).isnan().all()


def test_randomisation_cascades_from_the_top_on_a_copy():
    torch.manual_seed(0)
    network = timm.create_model("resnet10t", channels=(8, 8, 16, 24), num_classes=5).train()
    images, classes = torch.randn(4, 3, 96, 96), torch.arange(4)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    state = torch.get_rng_state()
    results = randomisation_check(network, images, classes)
    assert [name for name, _ in results[:3]] == ["fc", "layer4.0", "layer3.0"]
    assert results[-1][0] == "conv1.0"
    assert all(-1 <= value <= 1 for _, value in results)
    assert min(value for _, value in results) < 0.7
    assert torch.equal(torch.get_rng_state(), state)
    assert network.training
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert randomisation_check(network, images, classes, target_layer=network.layer4) == results
    # Below the layer nothing but the head decides, and an empty stage changes nothing.
    kept = randomisation_check(network, images, classes, stages=["maxpool", "fc"])
    assert kept[0] == ("maxpool", pytest.approx(1))
    assert kept[1][1] == pytest.approx(results[0][1])
    with pytest.raises(ValueError, match="close names"):
        randomisation_check(network, images, classes, stages=["layer9"])


def test_randomisation_draws_tokens_and_positions_anew():
    torch.manual_seed(0)
    network = timm.create_model(
        "vit_tiny_patch16_224", img_size=32, patch_size=8, depth=2, embed_dim=32, num_heads=2
    )
    results = randomisation_check(network, torch.randn(2, 3, 32, 32), torch.zeros(2).long())
    assert [name for name, _ in results] == ["head", "norm", "blocks.1", "blocks.0", "patch_embed"]
    assert all(-1 <= value <= 1 for _, value in results)
