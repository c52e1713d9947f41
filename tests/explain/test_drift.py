"""Maps of the same images, epoch after epoch."""

import numpy as np
import pytest
import torch

from litcam.explain.metrics.drift import Drift, MapMemory
from litcam.explain.metrics.regions import resize_maps


def make(num, seed=0):
    return torch.randn(num, 6, 5, generator=torch.Generator().manual_seed(seed)).relu()


class Epochs:
    """A drift with its memory."""

    def __init__(self, max_images=1000):
        self.drift, self.memory = Drift(), MapMemory(max_images)

    def update(self, maps, *places):
        before = self.memory.exchange(maps, torch.tensor(places))
        self.drift.update(maps, before)

    def end(self):
        value = self.drift.compute()
        self.drift.reset()
        self.memory.end_epoch()
        return value


def test_drift_is_one_minus_pearson_of_the_images_seen_twice():
    first, second = make(10, 0), make(10, 1)
    epochs = Epochs()
    epochs.update(first[:6], 4, 9, 1, 7, 3, 0)
    epochs.update(first[6:], 12, 5, 8, 30)
    assert not epochs.drift.has_value
    assert epochs.end().isnan()
    epochs.memory.end_epoch()  # a second time in a row ends nothing
    epochs.update(second, 30, 2, 4, 5, 99, 9, 1, 77, 0, 8)
    pairs = [(9, 0), (0, 2), (7, 3), (1, 5), (2, 6), (5, 8), (8, 9)]
    expected = [1 - np.corrcoef(first[a].flatten(), second[b].flatten())[0, 1] for a, b in pairs]
    assert (epochs.drift.num_measured, epochs.drift.num_skipped) == (7, 0)
    assert epochs.end().item() == pytest.approx(np.mean(expected), abs=1e-4)
    epochs.update(second[:1] * 3, 30)
    assert epochs.end().item() == pytest.approx(0, abs=1e-6)
    epochs.update(second[:1] * 0, 30)
    assert epochs.drift.num_skipped == 1
    assert epochs.end().isnan()


def test_memory_gives_what_the_same_image_had():
    """Whatever the order of a shuffled loader, and also of an image that a sampler repeats."""
    memory = MapMemory()
    maps = {place: make(1, place)[0] for place in (5, 3, 11, 8)}

    def show(*places):
        given = torch.stack([maps[place] for place in places])
        return memory.exchange(given, torch.tensor(places))

    assert show(5, 3).isnan().all() and show(11, 5).isnan().all()
    memory.end_epoch()
    maps[8] = maps[8] * 2
    got = show(3, 8, 11, 5)
    for place, before in zip((3, 8, 11, 5), got, strict=True):
        expected = maps[place] / maps[place].max()
        assert before.isnan().all() if place == 8 else torch.allclose(before, expected, atol=1e-3)
    memory.end_epoch()
    assert not show(8).isnan().any()
    memory.end_epoch()
    assert show(3).isnan().all()  # not seen in the epoch before


def test_memory_follows_so_many_images_and_keeps_the_first_grid():
    epochs, maps = Epochs(max_images=3), make(6)
    for _ in range(2):
        epochs.update(maps[:2], 5, 6)
        epochs.update(maps[2:], 1, 2, 3, 4)
        epochs.end()
    epochs.update(resize_maps(maps, (12, 10)), 5, 6, 1, 2, 3, 4)
    assert epochs.drift.num_measured == 3
    assert 0 <= epochs.end() < 0.3


def test_memory_under_inference_mode_and_outside_of_it():
    epochs, maps = Epochs(), make(4)
    for inference in (True, False, True):
        with torch.inference_mode(inference):
            epochs.update(maps, 0, 1, 2, 3)
        epochs.memory.end_epoch()
    assert epochs.end().item() == pytest.approx(0, abs=1e-6)
