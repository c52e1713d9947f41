"""A run that was killed and started again is the run that was not: draws, weights and counts."""

import json
import multiprocessing
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from litcam.datamodules.convert import convert

SCRIPT = Path(__file__).with_name("resumed_run.py")
STEPS = 18  # of 26 images in batches of 4, in 3 epochs


@pytest.fixture(scope="module")
def roots(tmp_path_factory):
    return make_roots(tmp_path_factory.mktemp("data"))


def make_roots(root):
    """Twenty-six training images, and ten to validate with, in folders and in shards."""
    generator = np.random.default_rng(0)
    for split, count in (("train", 13), ("val", 5)):
        for name in ("cat", "dog"):
            folder = root / "folders" / split / name
            folder.mkdir(parents=True)
            for number in range(count):
                pixels = generator.integers(0, 256, (40, 44, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f"{number}.jpg")
    convert(root / "folders", root / "shards", chunk_bytes=10_000, say=lambda line: None)
    return root


def run(root, folder, **options) -> int:
    """Runs in a process of its own, which starts fast where a server has imported litcam."""
    context = multiprocessing.get_context("forkserver")
    # Not resumed_run: the server does not look where pytest does (Python 3.11).
    context.set_forkserver_preload(
        ["litcam.callbacks", "litcam.datamodules.imagenet", "litcam.lightning_modules"]
    )
    process = context.Process(target=_run, args=(str(root), str(folder)), kwargs=options)
    process.start()
    process.join(120)
    assert process.exitcode is not None
    return process.exitcode


def _run(root, folder, **options):
    import resumed_run

    resumed_run.run(root, folder, **options)


def run_on(devices, root, folder, **options) -> int:
    words = json.dumps({"root": str(root), "folder": str(folder), "devices": devices, **options})
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, str(SCRIPT), words], env=environment, capture_output=True, timeout=170
    )
    assert done.returncode in (0, -9), done.stderr.decode()[-2000:]
    return done.returncode


def diary(folder, kind="train"):
    """What each batch of an epoch saw; what was done again counts as it was the last time."""
    steps = {}
    for file in folder.glob("diary-*.jsonl"):
        for line in file.read_text().splitlines():
            entry = json.loads(line)
            if entry[0] == kind:
                steps[*entry[1:4], file.name, *entry[4][: kind == "val"]] = entry[4]
    return steps


def counts(folder):
    return dict(json.loads(line) for line in (folder / "counts.jsonl").read_text().splitlines())


def same_weights(one, other):
    one, other = (torch.load(folder / "weights.pt") for folder in (one, other))
    return all(torch.equal(one[name], other[name]) for name in one)


def kill_and_go_on(root, folder, points, *, workers, every):
    """Holds runs that were killed at each of some steps against one that was not."""
    whole = folder / "whole"
    assert run(root, whole) == 0
    assert len(diary(whole)) == STEPS
    for step in points:
        killed = folder / f"killed-{step}"
        assert run(root, killed, kill_at=step, workers=workers, every=every) == -9
        assert run(root, killed, workers=min(1, workers), every=every) == 0
        assert diary(killed) == diary(whole)
        assert same_weights(killed, whole)
        for epoch, found in counts(killed).items():
            # Lightning skips validation right after the last batch, so what it counted is old.
            assert found["train/images_missing"] == counts(whole)[epoch]["train/images_missing"]
            assert found["train/images_repeated"] == 0


@pytest.mark.slow
def test_a_kill_changes_nothing(roots, tmp_path):
    # Right before the second epoch, with a checkpoint at every step.
    kill_and_go_on(roots / "folders", tmp_path, (6,), workers=0, every=1)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(("layout", "workers", "every"), [("folders", 0, 1), ("shards", 2, 4)])
def test_ten_kills_change_nothing(roots, tmp_path, layout, workers, every):
    points = (1, 3, 5, 6, 7, 11, 12, 13, 16, 17)
    kill_and_go_on(roots / layout, tmp_path, points, workers=workers, every=every)


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("layout", "first", "then"),
    [
        ("shards", 2, 1),
        pytest.param("shards", 1, 2, marks=pytest.mark.slow),
        pytest.param("folders", 2, 1, marks=pytest.mark.slow),
        pytest.param("folders", 1, 2, marks=pytest.mark.slow),
    ],
)
def test_another_number_of_processes_takes_what_is_left(roots, tmp_path, layout, first, then):
    root = roots / layout
    assert run_on(first, root, tmp_path, kill_at=4, batch_size=2) == -9
    assert run_on(then, root, tmp_path, batch_size=2) == 0
    for epoch in range(3):
        taken = [i for (at, *_), seen in diary(tmp_path).items() if at == epoch for i in seen]
        assert len(taken) == len(set(taken))
        assert len(taken) > 26 - 2 * max(first, then)
        validated = [i for (at, *_), v in diary(tmp_path, "val").items() if at == epoch for i in v]
        assert sorted(validated) == list(range(10))
    for found in counts(tmp_path).values():
        assert found["train/images_repeated"] == found["val/images_repeated"] == 0
        assert found["val/images_unique"] == 10
