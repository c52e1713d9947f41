"""Scaling maps for the eye."""

import cv2
import numpy as np
import pytest
import torch

from litcam.explain import CAM, METHODS, scale_maps
from litcam.explain.methods import find_method


def stretch(a):
    return (a - a.min()) / (a.max() - a.min())


@pytest.mark.parametrize("size", [(7, 7), (56, 56), (50, 33)])
def test_scaling_equals_opencv(size):
    maps = torch.rand(3, 7, 7, generator=torch.Generator().manual_seed(0))
    ours = scale_maps(maps, size)
    for one, expected in zip(ours.numpy(), maps.numpy(), strict=True):
        resized = cv2.resize(stretch(expected), size[::-1], interpolation=cv2.INTER_LINEAR)
        np.testing.assert_allclose(one, stretch(resized), atol=1e-5)


@pytest.mark.parametrize("factor", [1e-30, 1e-12, 1e12])
def test_the_scale_of_a_map_does_not_matter(factor):
    maps = torch.rand(2, 4, 5, 5)
    difference = scale_maps(maps * factor, (20, 20)) - scale_maps(maps, (20, 20))
    assert difference.abs().max() < 1e-5


@pytest.mark.parametrize("value", [0.0, 0.3, -2.0, 1e-20, 1e20])
def test_a_constant_map_is_nothing(value):
    maps = torch.full((1, 7, 7), value)
    assert not scale_maps(maps, (30, 30)).any()
    assert not scale_maps(maps * (1 + 1e-7 * torch.rand(1, 7, 7)), (30, 30)).any()


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_a_map_that_is_not_finite_is_nothing_and_spoils_no_other(bad):
    maps = torch.rand(2, 3, 6, 6)
    good = scale_maps(maps, (12, 12))
    maps[0, 1, 2, 2] = bad
    scaled = scale_maps(maps, (12, 12))
    assert not scaled[0, 1].any()
    scaled[0, 1] = good[0, 1]
    assert torch.equal(scaled, good)


def test_leading_axes_and_types_are_kept():
    maps = torch.rand(2, 3, 4, 6)
    scaled = scale_maps(maps.half(), (8, 9))
    assert scaled.shape == (2, 3, 8, 9)
    assert scaled.dtype == torch.float32
    assert scaled.amin() == 0
    assert scaled.amax() == 1
    assert torch.equal(scale_maps(maps[0, 0], (8, 9)), scale_maps(maps, (8, 9))[0, 0])


def test_an_unknown_method_is_offered_close_names():
    with pytest.raises(ValueError, match=r"'grad-cam' is unknown; did you mean gradcam"):
        CAM(torch.nn.Identity(), method="grad-cam")
    assert all(find_method(name) is method for name, method in METHODS.items())
