"""Metrics of maps against formulas written down a second time, image by image."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torchmetrics import MetricCollection

from litcam.datamodules import SyntheticDataModule
from litcam.explain.metrics import regions
from litcam.explain.metrics.drift import Drift, MapMemory
from litcam.explain.metrics.maps import EnergyInside, PointingGame, Sparseness
from litcam.explain.metrics.regions import Maps, find_masks, resize_maps
from litcam.explain.metrics.table import METRICS, find_metric

SIZE = (24, 30)


def make(num=12, seed=0):
    generator = torch.Generator().manual_seed(seed)
    maps = torch.randn(num, 6, 5, generator=generator).relu()
    corner = torch.rand(num, 2, generator=generator) * torch.tensor([18, 14])
    boxes = torch.cat([corner, corner + torch.rand(num, 2, generator=generator) * 9 + 3], 1)
    return maps, boxes.floor().long()


def draw(boxes, size=SIZE):
    masks = np.zeros((len(boxes), *size), bool)
    for mask, (x1, y1, x2, y2) in zip(masks, boxes.tolist(), strict=True):
        mask[max(y1, 0) : max(y2, 0), max(x1, 0) : max(x2, 0)] = True
    return masks


def enlarge(maps, size=SIZE):
    return F.interpolate(maps[:, None], size, mode="bilinear")[:, 0].double().numpy()


def run(metric, *batches):
    for batch in batches:
        metric.update(*batch)
    return metric.compute()


@pytest.mark.parametrize("tolerance", [0, 1, 4, 15])
def test_pointing_game(tolerance):
    maps, boxes = make()
    hits, areas = [], []
    for heat, mask in zip(enlarge(maps), draw(boxes), strict=True):
        ys, xs = np.nonzero(mask)
        far = [(ys - y) ** 2 + (xs - x) ** 2 for y in range(SIZE[0]) for x in range(SIZE[1])]
        near = (np.array(far).min(1) <= tolerance**2).reshape(SIZE)
        hits.append(near[heat >= heat.max() * (1 - 1e-6)].any())
        areas.append(near.mean())
    metric = PointingGame(tolerance)
    assert run(metric, (maps, boxes, SIZE)).item() == pytest.approx(np.mean(hits))
    assert metric.chance.item() == pytest.approx(np.mean(areas), abs=1e-6)
    assert 0 < np.mean(hits[:6]) <= 1


def test_energy_inside():
    maps, boxes = make()
    expected = [
        heat[mask].sum() / heat.sum() for heat, mask in zip(enlarge(maps), draw(boxes), strict=True)
    ]
    metric = EnergyInside()
    assert run(metric, (maps, boxes, SIZE)).item() == pytest.approx(np.mean(expected), abs=1e-6)
    assert metric.chance.item() == pytest.approx(draw(boxes).mean(), abs=1e-6)


def test_sparseness():
    maps, _ = make()
    flat = maps.flatten(1).double().numpy()
    # Half of the mean absolute difference of all pairs, over the mean.
    expected = [np.abs(a[:, None] - a).mean() / (2 * a.mean()) for a in flat]
    assert run(Sparseness(), (maps,)).item() == pytest.approx(np.mean(expected), abs=1e-6)
    assert run(Sparseness(), (torch.full((1, 4, 5), 0.3),)).item() == pytest.approx(0, abs=1e-6)


def test_masks_and_boxes_agree_and_boxes_are_clipped():
    _, boxes = make()
    boxes = torch.cat([boxes, torch.tensor([[-9, -4, 5, 50], [20, 3, 99, 9], [-9, -9, -1, -1]])])
    masks = find_masks(boxes, torch.zeros(len(boxes), 2, 2), SIZE)
    assert np.array_equal(masks.numpy(), draw(boxes))
    assert torch.equal(find_masks(boxes.float(), masks, SIZE), masks)
    assert torch.equal(find_masks(masks.byte(), masks), masks)


def test_boxes_without_a_pixel_and_boxes_that_are_none():
    nan, inf = torch.nan, torch.inf
    boxes = [[9, 9, 4, 12], [9, 9, 9, 12], [40, 40, 50, 50], [nan, 0, 9, 9], [-1, -1, -1, -1]]
    boxes += [[0, 0, 0, 0], [0.6, 0.6, 0.9, 0.9], [-inf, -inf, inf, inf], [-3, -3, 1, 1]]
    masks = find_masks(torch.tensor(boxes), torch.zeros(9, 2, 2), SIZE)
    assert masks.sum((1, 2)).tolist() == [0, 0, 0, 0, 0, 0, 0, SIZE[0] * SIZE[1], 1]


def test_of_several_objects_the_union_counts():
    _, boxes = make()
    several = boxes.reshape(4, 3, 4)
    several[1, 2], several[3, 1:] = 0, -1
    maps, drawn = torch.zeros(4, 2, 2), draw(several.flatten(0, 1)).reshape(4, 3, *SIZE)
    union = drawn.any(1)
    assert np.array_equal(find_masks(several, maps, SIZE).numpy(), union)
    assert np.array_equal(find_masks(several.float(), maps, SIZE).numpy(), union)
    assert np.array_equal(find_masks(torch.from_numpy(drawn), maps).numpy(), union)
    assert not find_masks(torch.zeros(4, 0, 4), maps, SIZE).any()
    # Three axes, the last of 4: a mask where the image is as narrow, or where it is bool.
    narrow = torch.ones(4, 24, 4)
    assert find_masks(narrow, maps, (24, 4)).shape == (4, 24, 4)
    assert find_masks(narrow.bool(), maps).shape == (4, 24, 4)


@pytest.mark.parametrize(
    "change",
    [
        lambda masks: masks[:, None],
        lambda masks: masks.byte() * 255,
        lambda masks: masks.long()[:, None] * 3 - 1,
        lambda masks: masks * 0.4 + 0.2,
        lambda masks: torch.where(masks, 1.0, torch.nan),
        lambda masks: masks.half(),
    ],
)
def test_masks_of_any_type(change):
    _, boxes = make()
    masks = torch.from_numpy(draw(boxes))
    assert torch.equal(find_masks(change(masks), masks), masks)


@pytest.mark.parametrize("kind", [PointingGame, EnergyInside])
def test_a_mask_of_another_size_is_measured_at_its_own(kind):
    maps, boxes = make()
    small, large = kind(), kind()
    small.update(maps, boxes, SIZE)
    large.update(maps, boxes * 4, (SIZE[0] * 4, SIZE[1] * 4))
    assert small.compute().item() == pytest.approx(large.compute().item(), abs=0.1)
    assert small.chance == large.chance
    masks = kind()
    masks.update(maps, torch.from_numpy(draw(boxes * 4, (SIZE[0] * 4, SIZE[1] * 4))), SIZE)
    assert masks.compute() == large.compute()


@pytest.mark.parametrize("kind", [PointingGame, EnergyInside])
def test_an_image_without_object_is_left_out_and_counted(kind):
    maps, boxes = make()
    none = torch.tensor([[3, 3, 3, 9], [9, 9, 4, 12], [40, 40, 50, 50], [-5, 0, 0, 9]])
    alone, metric = kind(), kind()
    assert not metric.has_value
    both = run(metric, (torch.cat([maps, maps[:4]]), torch.cat([boxes, none]), SIZE))
    assert both == run(alone, (maps, boxes, SIZE))
    assert metric.chance == alone.chance
    assert (metric.num_skipped, alone.num_skipped) == (4, 0)
    metric.reset()
    metric.update(maps[:4], none, SIZE)
    assert metric.compute().isnan()
    assert not metric.has_value
    assert metric.num_skipped == 4


def test_a_map_of_nothing():
    boxes = torch.tensor([[0, 0, 30, 24]]).repeat(4, 1)
    maps = torch.stack(
        [torch.zeros(6, 5), torch.full((6, 5), 2.0), torch.full((6, 5), torch.nan), torch.eye(6, 5)]
    )
    pointing, energy, sparse = PointingGame(), EnergyInside(), Sparseness()
    assert run(pointing, (maps, boxes, SIZE)).item() == 0.25
    assert run(energy, (maps, boxes, SIZE)).item() == pytest.approx(1)
    sparse.update(maps)
    assert (pointing.num_skipped, energy.num_skipped, sparse.num_skipped) == (0, 2, 2)


@pytest.mark.parametrize("factor", [1e-30, 1e30])
def test_neither_scale_type_nor_batches_matter(factor):
    maps, boxes = make()
    for kind, rest in (
        (PointingGame, (boxes, SIZE)),
        (EnergyInside, (boxes, SIZE)),
        (Sparseness, ()),
    ):
        whole = run(kind(), (maps, *rest))
        parts = [
            (maps[rows] * factor, *(r[rows] for r in rest[:1]), *rest[1:])
            for rows in (slice(0, 5), slice(5, None))
        ]
        assert run(kind(), *parts).item() == pytest.approx(whole.item(), abs=1e-5)
        assert run(kind(), (maps.bfloat16(), *rest)).item() == pytest.approx(whole.item(), abs=0.02)


def test_on_synthetic_images_the_object_scores_one_and_a_flat_map_chance():
    data = SyntheticDataModule(num_train=8, num_val=96, batch_size=32)
    data.setup("validate")
    names = ("object", "uniform", "random")
    pointing, energy = ({name: kind() for name in names} for kind in (PointingGame, EnergyInside))
    for batch in data.val_dataloader():
        masks = batch["mask"]
        maps = masks.float(), torch.ones(len(masks), 7, 7), torch.rand(len(masks), 64, 64)
        for name, one in zip(names, maps, strict=True):
            pointing[name].update(one, masks)
            energy[name].update(one, masks)
    chance = pointing["object"].chance
    assert pointing["object"].compute() == energy["object"].compute() == 1
    assert pointing["uniform"].compute() == 0
    assert energy["uniform"].compute().item() == pytest.approx(chance.item(), abs=1e-6)
    assert energy["random"].compute().item() == pytest.approx(chance.item(), abs=0.01)
    assert abs(pointing["random"].compute() - chance) < 0.15
    assert 0.02 < chance < 0.6


def test_inference_mode_and_forward_and_a_collection():
    maps, boxes = make()
    metric = PointingGame()
    with torch.inference_mode():
        metric.reset()
        metric.update(maps, boxes, SIZE)
    metric.update(maps, boxes, SIZE)
    assert metric(maps[:3], boxes[:3], SIZE) == run(PointingGame(), (maps[:3], boxes[:3], SIZE))
    assert metric.count == 27
    # Equal sums in the first batch, unequal ones later: not one compute group.
    both = MetricCollection([PointingGame(), EnergyInside()])
    all_of_it = torch.tensor([[0, 0, 30, 24]])
    both.update(maps[:1], all_of_it, SIZE)
    both.update(maps, boxes, SIZE)
    one = run(EnergyInside(), (maps[:1], all_of_it, SIZE), (maps, boxes, SIZE))
    assert both.compute()["EnergyInside"] == one


@pytest.mark.parametrize("name", METRICS)
def test_torchmetrics_conventions(name):
    """`reset` forgets everything, `forward` gives a batch's own value, states are `add_state`'s."""
    torch.manual_seed(0)
    entry, (maps, boxes), size = METRICS[name], make(4), (24, 30)
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 24 * 30, 3)).eval()
    images, classes = torch.randn(4, 3, *size), torch.tensor([0, 1, 2, 0])
    given = {"": (), "region": (boxes, size), "index": (maps.flip(0),)}
    given["network"] = (classes,)

    def arguments(rows):
        parts = (part[rows] if isinstance(part, torch.Tensor) else part for part in given[needs])
        before = (network, images[rows]) if needs == "network" else ()
        return *before, maps[rows], *parts

    def value(result):
        return float(result[entry.value] if entry.value else result)

    needs = entry.needs
    metric, fresh = entry.make(), entry.make()
    first, second = slice(0, 2), slice(2, 4)
    both = [value(metric(*arguments(rows))) for rows in (first, second)]
    assert value(metric.compute()) == pytest.approx(sum(both) / 2, abs=1e-6)
    assert metric.num_measured == 4
    metric.reset()
    assert metric.num_measured == 0 and not metric.has_value
    for one in (metric, fresh):
        one.update(*arguments(second))
    assert value(metric.compute()) == value(fresh.compute()) == pytest.approx(both[1], abs=1e-6)
    tensors = {key for key, part in vars(fresh).items() if isinstance(part, torch.Tensor)}
    assert tensors - {"_computed"} <= set(fresh._defaults)


def test_maps_are_brought_to_one_scale_once(monkeypatch):
    """However many metrics take them."""
    maps, boxes = make()
    shared, resized = Maps(maps), []
    monkeypatch.setattr(regions, "resize_maps", lambda *a: resized.append(1) or resize_maps(*a))
    for metric in (PointingGame(), EnergyInside()):
        metric.update(shared, boxes, SIZE)
        alone = run(type(metric)(), (maps, boxes, SIZE))
        assert metric.compute() == alone
    assert len(resized) == 1 + 2


def test_ranks_are_summed():
    maps, boxes = make()
    boxes[7:9] = 0
    whole, left, right = PointingGame(2), PointingGame(2), PointingGame(2)
    left.update(maps[:5], boxes[:5], SIZE)
    right.update(maps[5:], boxes[5:], SIZE)
    others = iter([getattr(right, name) for name in right._reductions])
    left.dist_sync_fn = lambda value, group=None: [value, next(others)]
    left.distributed_available_fn = lambda: True
    assert left.num_skipped == 0
    assert left.compute() == run(whole, (maps, boxes, SIZE))
    assert left.chance == pytest.approx(whole.chance.item())
    assert left.num_skipped == whole.num_skipped == 2


SCRIPT = """
import json, sys
import torch
from test_metrics import SIZE, make
from litcam.explain.metrics.drift import Drift, MapMemory
from litcam.explain.metrics.maps import EnergyInside, PointingGame, Sparseness
torch.set_num_threads(1)
torch.distributed.init_process_group("gloo")
rank = torch.distributed.get_rank()
maps, boxes = make()
boxes[9] = 0
part = slice(rank, None, 2)
metrics, memory = [PointingGame(), EnergyInside(), Sparseness(), Drift()], MapMemory()
for _ in range(2):
    for metric in metrics[:2]:
        metric.reset()
        metric.update(maps[part], boxes[part], SIZE)
    metrics[2].reset()
    metrics[2].update(maps[part])
    metrics[3].reset()
    now = maps[part] ** (_ + 1)
    metrics[3].update(now, memory.exchange(now, torch.arange(12)[part]))
    memory.end_epoch()
values = [metric.compute().item() for metric in metrics]
facts = [*values, metrics[0].chance.item(), metrics[0].num_skipped, metrics[3].count.item()]
open(sys.argv[1] + str(rank), "w").write(json.dumps(facts))
torch.distributed.destroy_process_group()
"""


@pytest.mark.slow
def test_two_processes_give_what_one_gives(tmp_path, monkeypatch):
    (tmp_path / "script.py").write_text(SCRIPT)
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))
    command = [sys.executable, "-W", "ignore", "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc_per_node", "2", str(tmp_path / "script.py"), str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr[-2000:]
    left, right = (json.loads((tmp_path / f"out{rank}").read_text()) for rank in range(2))
    assert left[:-1] == right[:-1]
    maps, boxes = make()
    boxes[9] = 0
    pointing, drift = PointingGame(), Drift()
    expected = [run(pointing, (maps, boxes, SIZE)), run(EnergyInside(), (maps, boxes, SIZE))]
    drift.update(maps**2, maps)
    expected += [run(Sparseness(), (maps,)), drift.compute(), pointing.chance]
    assert left[:5] == pytest.approx([value.item() for value in expected], abs=1e-6)
    assert left[5:] == [1, 6]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: PointingGame(-1), "tolerance must be 0 pixels or more, got -1"),
        (lambda: MapMemory(0), "max_images must be 1 or more, got 0"),
        (lambda: PointingGame().update(*make()), r"Pass image_size=\(height, width\)"),
        (lambda: EnergyInside().update(make()[0], make(3)[1]), "region has 3 images but maps 12"),
        (lambda: EnergyInside().update(make()[0], make()[1][:, :3]), r"got \(12, 3\)"),
        (lambda: EnergyInside().update(make()[0], torch.tensor(3)), "region has no images but"),
        (lambda: EnergyInside().update(make()[0], torch.zeros(12)), r"got \(12,\)"),
        (lambda: EnergyInside().update(make()[0], torch.zeros(12, 2, 4)), "in pixels of what"),
        (lambda: Sparseness().update(make()[0][0]), r"maps must be .* got \(6, 5\)"),
        (
            lambda: MapMemory().exchange(make()[0], torch.arange(3)),
            r"index must be \(12,\), .*\(3,\)",
        ),
        (lambda: Drift().update(make()[0], make(3)[0]), r"before must be \(12, .*\(3, 6, 5\)"),
        (lambda: find_metric("pointing"), "'pointing' is unknown; did you mean pointing_game"),
    ],
)
def test_a_mistake_is_told(call, message):
    with pytest.raises(ValueError, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)


def test_the_registry_makes_metrics_and_says_what_they_cost():
    costs = {name: entry.forwards_per_image for name, entry in METRICS.items()}
    assert costs == {
        "pointing_game": 0,
        "energy_inside": 0,
        "sparseness": 0,
        "blank_maps": 0,
        "drift": 0,
        "average_drop": 1,
        "increase": 1,
        "deletion": 20,
        "insertion": 20,
        "road": 18,
        "road_morf": 18,
        "road_lerf": 18,
    }
    for name in METRICS:
        entry = find_metric(name)
        metric = entry.make()
        assert getattr(metric, "forwards_per_image", 0) == entry.forwards_per_image
        assert (entry.needs == "network") == (entry.forwards_per_image > 0)
        assert not entry.value or f"{entry.value}_sum" in metric._reductions
        right = getattr(type(metric), "higher_is_better", None)
        assert right is None or (entry.better == "higher") == right


def test_a_blob_in_the_middle_is_a_baseline_of_its_own():
    """Against SciPy's window, on objects in the middle, off it, and in a corner."""
    from scipy.signal.windows import gaussian

    height, width = 24, 40
    boxes = torch.tensor([[10, 6, 30, 18], [20, 0, 40, 24], [0, 0, 6, 6]])
    blob = np.outer(gaussian(height, height / 4), gaussian(width, width / 4))
    shares = [blob[y1:y2, x1:x2].sum() / blob.sum() for x1, y1, x2, y2 in boxes.tolist()]
    energy, game = EnergyInside(), PointingGame()
    for metric in (energy, game):
        metric.update(torch.rand(3, 6, 10), boxes, image_size=(height, width))
    assert float(energy.centre) == pytest.approx(np.mean(shares), rel=1e-5)
    assert shares[0] > 2 * 0.25  # of which it is a quarter
    # The middle lies between four pixels, of which the second box has two.
    assert float(game.centre) == pytest.approx(2 / 3)
