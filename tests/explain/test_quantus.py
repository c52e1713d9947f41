"""The metrics of maps against Quantus', where it is installed: pip install quantus."""

import warnings

import numpy as np
import pytest
import torch

from litcam.explain import EnergyInside, PointingGame, Sparseness
from litcam.explain.metrics.regions import Maps

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    quantus = pytest.importorskip("quantus")

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def measured():
    """64 maps of random blobs `(batch, 7, 7)`, at least one position each, and rectangles."""
    generator = torch.Generator().manual_seed(0)
    maps = torch.randn(64, 7, 7, generator=generator).relu()
    masks = torch.zeros(64, 32, 32, dtype=torch.bool)
    corners = torch.randint(20, (64, 2), generator=generator).tolist()
    for mask, (top, left) in zip(masks, corners, strict=True):
        mask[top : top + 12, left : left + 10] = True
    return maps, masks


def ask(metric, maps, masks):
    """Quantus' values, one a map; it wants images, classes and a model, and uses none of them."""
    maps = np.array(maps.numpy()[:, None], np.float64)
    values = metric(
        model=None,
        x_batch=np.zeros((len(maps), 3, *maps.shape[2:])),
        y_batch=np.zeros(len(maps), int),
        a_batch=maps,
        s_batch=None if masks is None else masks.numpy()[:, None],
        device="cpu",
    )
    return float(np.mean(values))


@pytest.mark.parametrize(
    ("ours", "theirs"), [(PointingGame, "PointingGame"), (EnergyInside, "RelevanceMassAccuracy")]
)
def test_of_regions(measured, ours, theirs):
    maps, masks = measured
    metric = ours()
    metric.update(maps, masks)
    # It takes maps of the images' size; ours are resized as overlays are.
    large = Maps(maps).resized((32, 32))
    peer = getattr(quantus, theirs)(normalise=False, disable_warnings=True)
    assert float(metric.compute()) == pytest.approx(ask(peer, large, masks), abs=1e-6)


def test_sparseness(measured):
    maps, _ = measured
    metric = Sparseness()
    metric.update(maps)
    peer = quantus.Sparseness(normalise=False, disable_warnings=True)
    # It adds 1e-7 to every value.
    assert float(metric.compute()) == pytest.approx(ask(peer, Maps(maps).units, None), abs=1e-5)
