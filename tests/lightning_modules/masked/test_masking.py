"""Which cells are hidden: counts, noise that follows from its arguments alone, images as cells."""

import math

import numpy as np
import pytest
import torch

from litcam.lightning_modules.masked.masking import (
    choose_cells,
    enlarge,
    gather_cells,
    patchify,
    reproducible_noise,
    unpatchify,
    visible_map,
)


@pytest.mark.parametrize("mask_ratio", [0.05, 0.25, 0.4, 0.5, 0.6, 0.75, 0.9])
@pytest.mark.parametrize("num_cells", [4, 9, 49, 64, 196])
def test_counts_are_the_originals(num_cells, mask_ratio):
    keep, hidden = choose_cells(torch.rand(3, num_cells), mask_ratio)
    assert keep.shape == (3, int(num_cells * (1 - mask_ratio)))
    assert hidden.shape == (3, num_cells - keep.shape[1])
    for row in torch.cat([keep, hidden], dim=1).tolist():
        assert sorted(row) == list(range(num_cells))


def test_the_cells_of_smallest_noise_stay_visible():
    noise = torch.rand(5, 30)
    keep, hidden = choose_cells(noise, 0.7)
    for row, kept, gone in zip(noise, keep, hidden, strict=True):
        assert row[kept].max() < row[gone].min()


def test_a_map_is_true_in_the_cells_that_are_kept():
    keep = torch.tensor([[5, 0], [2, 3]])
    assert visible_map(keep, (2, 3)).int().tolist() == [
        [[1, 0, 0], [0, 0, 1]],
        [[0, 0, 1], [1, 0, 0]],
    ]


def test_an_enlarged_map_repeats_its_cells():
    small = torch.tensor([[[True, False], [False, True]]])
    large = enlarge(small, (4, 6))
    assert large.shape == (1, 4, 6)
    for y in range(4):
        for x in range(6):
            assert large[0, y, x] == small[0, y // 2, x // 3]


def test_gathered_cells_are_those_asked_for():
    tokens = torch.randn(2, 5, 3)
    ids = torch.tensor([[4, 4, 0], [1, 2, 3]])
    for b in range(2):
        for place in range(3):
            assert torch.equal(gather_cells(tokens, ids)[b, place], tokens[b, ids[b, place]])


@pytest.mark.parametrize("grid", [(1, 1), (3, 3), (2, 5)])
@pytest.mark.parametrize("cell_size", [1, 4, 32])
def test_cells_put_together_again_are_the_images(grid, cell_size):
    images = torch.randn(2, 3, grid[0] * cell_size, grid[1] * cell_size)
    cells = patchify(images, cell_size)
    assert cells.shape == (2, grid[0] * grid[1], cell_size**2, 3)
    assert torch.equal(unpatchify(cells, grid), images)


def test_cells_are_counted_row_by_row_and_pixels_within_as_well():
    images = torch.arange(2.0 * 3 * 4 * 6).view(2, 3, 4, 6)
    cells = patchify(images, 2)
    for number in range(6):
        for pixel in range(4):
            y, x = number // 3 * 2 + pixel // 2, number % 3 * 2 + pixel % 2
            assert torch.equal(cells[:, number, pixel], images[:, :, y, x])


MASK = (1 << 64) - 1


def splitmix(state):
    """Compute one output of splitmix64 (doi:10.1145/2660193.2660195) in Python's own integers."""
    state = (state + 0x9E3779B97F4A7C15) & MASK
    state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & MASK
    return state ^ (state >> 31)


@pytest.mark.parametrize(
    "seeds", [(0,), (1,), (2**40 + 7,), (-3,), (2**64 - 1,), (0, 5), (1, 4), (2**63, 0)]
)
def test_noise_is_splitmix64_of_seeds_key_and_cell(seeds):
    keys = [0, 1, 5, 2**33, 2**62 + 1]
    noise = reproducible_noise(torch.tensor(keys), 7, *seeds)
    for row, key in zip(noise.tolist(), keys, strict=True):
        mixed = 0
        for seed in seeds:
            mixed = splitmix(mixed ^ (seed & MASK))
        mixed = splitmix(mixed ^ key)
        assert row == [(splitmix(mixed ^ cell) >> 40) / 2**24 for cell in range(7)]


def test_splitmix64_is_the_published_one():
    """Its first outputs from seed 1234567, as in Vigna's reference."""
    state, outputs = 1234567, []
    for _ in range(3):
        outputs.append(splitmix(state))
        state += 0x9E3779B97F4A7C15
    assert outputs == [6457827717110365317, 3203168211198807973, 9817491932198370423]


def test_noise_depends_on_its_arguments_alone():
    keys = torch.tensor([3, 999, 3, 12])
    first = reproducible_noise(keys, 49, 5)
    before = torch.get_rng_state()
    torch.manual_seed(1)
    assert torch.equal(first, reproducible_noise(keys, 49, 5))
    torch.set_rng_state(before)
    assert torch.equal(first[0], first[2])
    assert first.dtype == torch.float32 and first.shape == (4, 49)
    assert ((first >= 0) & (first < 1)).all()
    # Another count of cells leaves the first ones as they were.
    assert torch.equal(first[:, :10], reproducible_noise(keys, 10, 5))


def test_an_image_has_the_same_noise_in_any_batch():
    keys = torch.randperm(1000)
    whole = reproducible_noise(keys, 20, 3)
    for size in (1, 7, 128):
        parts = [reproducible_noise(part, 20, 3) for part in keys.split(size)]
        assert torch.equal(torch.cat(parts), whole)
    # And in any order, on any of several processes.
    assert torch.equal(reproducible_noise(keys.flip(0), 20, 3).flip(0), whole)
    assert torch.equal(reproducible_noise(keys[1::2], 20, 3), whole[1::2])


def test_torchs_generator_is_left_alone():
    before = torch.get_rng_state()
    keys = torch.arange(4)
    reproducible_noise(keys, 49, 0)
    assert torch.equal(before, torch.get_rng_state())
    assert keys.tolist() == [0, 1, 2, 3]


def distance_from_uniform(values):
    """Return √n times the greatest distance of the empirical distribution (Kolmogorov, Smirnov)."""
    ordered = np.sort(values.double().numpy().ravel())
    count = len(ordered)
    above = (np.arange(1, count + 1) / count - ordered).max()
    below = (ordered - np.arange(count) / count).max()
    return max(above, below) * math.sqrt(count)


# Kolmogorov's distribution: 1.95 is exceeded once in a thousand.
@pytest.mark.parametrize("seed", [0, 1, 2**31, 123456789])
@pytest.mark.parametrize("first", [0, 1 << 20, 10**12])
def test_noise_is_uniform(first, seed):
    noise = reproducible_noise(torch.arange(2000) + first, 100, seed)
    assert distance_from_uniform(noise) < 1.95


@pytest.mark.parametrize("axis", ["keys", "cells", "seeds"])
def test_noise_is_uniform_along_each_axis_alone(axis):
    if axis == "keys":
        columns = reproducible_noise(torch.arange(4000), 40, 7).T
    elif axis == "cells":
        columns = reproducible_noise(torch.arange(40), 4000, 7)
    else:
        keys = torch.arange(40)
        columns = torch.stack([reproducible_noise(keys, 1, s)[:, 0] for s in range(1000)], dim=1)
    distances = [distance_from_uniform(column) for column in columns]
    # Of 40 columns; 2.2 is exceeded by one in ten thousand.
    assert max(distances) < 2.2
    assert 0.7 < np.mean(distances) < 1.05  # its mean is √(π/2) · ln 2 = 0.869


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ((0, 0), (1, 0)),  # neighbouring keys
        ((0, 0), (4096, 0)),
        ((0, 0), (0, 1)),  # neighbouring seeds
        ((0, 1), (1, 0)),  # key and seed exchanged
        ((0, 0), (1 << 20, 0)),  # another process
    ],
)
def test_noise_of_other_keys_and_seeds_is_independent(first, second):
    keys = torch.arange(2000) * 2
    one, two = (reproducible_noise(keys + k, 50, seed).double() for k, seed in (first, second))
    assert (one == two).float().mean() < 1e-4
    correlation = torch.corrcoef(torch.stack([one.flatten(), two.flatten()]))[0, 1]
    assert abs(correlation) < 4 / math.sqrt(one.numel())
    # Their squares as well, and where both are small: not only the line is gone.
    both = ((one < 0.25) & (two < 0.25)).double().mean()
    assert abs(both - 1 / 16) < 4 * math.sqrt(1 / 16 * 15 / 16 / one.numel())


@pytest.mark.parametrize("lag", [1, 2, 7, 14])
def test_neighbouring_cells_are_independent(lag):
    noise = reproducible_noise(torch.arange(2000), 196, 11).double()
    one, two = noise[:, lag:].flatten(), noise[:, :-lag].flatten()
    correlation = torch.corrcoef(torch.stack([one, two]))[0, 1]
    assert abs(correlation) < 4 / math.sqrt(one.numel())


def test_every_cell_is_hidden_as_often_as_any_other():
    noise = reproducible_noise(torch.arange(5000), 49, 0)
    _, hidden = choose_cells(noise, 0.6)
    share = hidden.shape[1] / 49
    counts = torch.bincount(hidden.flatten(), minlength=49).double()
    scatter = (counts - 5000 * share) / math.sqrt(5000 * share * (1 - share))
    assert scatter.abs().max() < 4
    assert len({tuple(row) for row in hidden.sort(dim=1).values.tolist()}) == 5000


def test_every_epoch_of_every_seed_hides_other_cells():
    """Not only neighbouring ones: a sum of the two would give seed 0 the masks of seed 1."""
    keys = torch.arange(64)
    seeds = [(seed, epoch) for seed in range(5) for epoch in range(6)]
    masks = [choose_cells(reproducible_noise(keys, 16, *pair), 0.5)[0] for pair in seeds]
    same = [
        (masks[a].sort().values == masks[b].sort().values).all(dim=1).double().mean()
        for a in range(30)
        for b in range(a)
    ]
    # Two masks of 8 of 16 cells are the same once in 12870.
    assert sum(same) / len(same) < 1e-3
