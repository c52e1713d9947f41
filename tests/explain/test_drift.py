"""Maps of the same images, epoch after epoch."""

import numpy as np
import pytest
import torch

from litcam.explain.metrics.drift import Drift
from litcam.explain.metrics.regions import resize_maps


def make(num, seed=0):
    return torch.randn(num, 6, 5, generator=torch.Generator().manual_seed(seed)).relu()


def test_drift_is_one_minus_pearson_of_the_images_seen_twice():
    first, second = make(10, 0), make(10, 1)
    metric = Drift()
    metric.update(first[:6], torch.tensor([4, 9, 1, 7, 3, 0]))
    metric.update(first[6:], torch.tensor([12, 5, 8, 30]))
    assert not metric.has_value
    assert metric.compute().isnan()
    for _ in range(2):  # a second reset in a row ends no second epoch
        metric.reset()
    metric.update(second, torch.tensor([30, 2, 4, 5, 99, 9, 1, 77, 0, 8]))
    pairs = [(9, 0), (0, 2), (7, 3), (1, 5), (2, 6), (5, 8), (8, 9)]
    expected = [1 - np.corrcoef(first[a].flatten(), second[b].flatten())[0, 1] for a, b in pairs]
    assert metric.has_value
    assert metric.compute().item() == pytest.approx(np.mean(expected), abs=1e-4)
    metric.reset()
    metric.update(second[:1] * 3, torch.tensor([30]))
    assert metric.compute().item() == pytest.approx(0, abs=1e-6)
    metric.reset()
    metric.update(second[:1] * 0, torch.tensor([30]))
    assert metric.compute().isnan()
    assert metric.num_skipped == 1


def test_drift_follows_so_many_images_and_resizes_to_the_first_grid():
    metric = Drift(max_images=3)
    maps = make(6)
    for _ in range(2):
        metric.update(maps[:2], torch.tensor([5, 6]))
        metric.update(maps[2:], torch.tensor([1, 2, 3, 4]))
        metric.reset()
    metric.update(resize_maps(maps, (12, 10)), torch.tensor([5, 6, 1, 2, 3, 4]))
    metric.compute()
    assert metric.count == 3
    assert 0 <= metric.compute() < 0.3
    with pytest.raises(RuntimeError, match=r"call its update\(\)"):
        metric(maps, torch.arange(6))
