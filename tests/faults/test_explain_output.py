"""`litcam explain` into folders that cannot take it: one line, and what was there stays."""

import shutil
import subprocess
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from outcomes import READ, outcome
from PIL import Image

from litcam.train import main


@pytest.fixture
def disk(tmp_path):
    """A file system of 256 kB, with results in it that are of an earlier time."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(folder)]
    done = subprocess.run(mount, capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"no file system can be mounted here: {done.stderr.strip()}")
    for name in ("figure.png", "explain.json"):
        (folder / name).write_text(name)
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def explain(out):
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(pixels).save("photo.png")
    return partial(main, ["explain", "photo.png", "--models", "test_resnet", "--out", str(out)])


def assert_nothing_changed(disk):
    for name in ("figure.png", "explain.json"):
        assert (disk / name).read_text() == name
    assert not list(disk.rglob("*.partial"))


def test_a_full_disk(disk, tell):
    filler, times = disk / "filler", 0
    # Room for nothing, for a part of the heatmap, for the heatmap but not for the figure.
    for room in (0, 4096, 40960):
        filler.write_bytes(b"")
        free = shutil.disk_usage(disk).free
        filler.write_bytes(bytes(free - room))
        said = outcome(explain(disk), seconds=60)
        assert "No space left on device" in said
        assert_nothing_changed(disk)
        times += 1
    tell(
        "`litcam explain` on a full disk",
        caused="a file system of 256 kB with room for nothing, 4 kB and 40 kB",
        times=times,
        happened="one line and exit code 2; the figure and the record of before are whole",
        lost="the new figure",
    )


def test_a_disk_that_cannot_be_written(disk, tell):
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    Path("file").write_text("mine")
    places = [disk, disk / "deeper", disk / "a" / "b", Path("file"), Path("file/deeper")]
    for out in places:
        assert outcome(explain(out), seconds=2) != READ
    assert_nothing_changed(disk)
    assert Path("file").read_text() == "mine"
    tell(
        "`litcam explain --out` where nothing can be written",
        caused="a file system mounted read-only, folders in it, a file, a folder in a file",
        times=len(places),
        happened="one line and exit code 2 before a network is loaded",
    )
