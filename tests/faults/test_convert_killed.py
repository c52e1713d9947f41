"""A conversion that is killed again and again, and one without room."""

import os
import random
import signal
import subprocess
import tempfile
import time

import pytest
from apart import begin, end, litcam
from data_sets import listing, write_photos

from litcam.datamodules.convert import check, convert

KILLS, ROUNDS = 20, 2


@pytest.fixture
def photos(tmp_path):
    return write_photos(tmp_path / "photos", train=60, val=20)


@pytest.fixture
def small_disk(tmp_path):
    """A file system in memory of so many bytes, and how to make it larger."""
    place = tmp_path / "disk"
    place.mkdir()

    def mount(options):
        command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(place)]
        try:
            done = subprocess.run(command, capture_output=True, text=True)
        except FileNotFoundError:
            pytest.skip("there is no `mount` here: no file system to fill")
        if done.returncode:
            pytest.skip(f"no file system can be mounted here ({done.stderr.strip()})")
        return place

    yield mount
    while subprocess.run(["umount", str(place)], capture_output=True).returncode == 0:
        pass


def test_killed_again_and_again(photos, tmp_path, tell):
    options = {"chunk_bytes": 10_000, "say": lambda line: None}
    started = time.monotonic()
    child, _ = begin(lambda: convert(photos, tmp_path / "whole", **options))
    assert end(child) == 0
    seconds, whole = time.monotonic() - started, listing(tmp_path / "whole")
    chance, killed, chunks = random.Random(0), 0, 0
    for _ in range(ROUNDS):
        left = KILLS
        while left:
            child, said = begin(lambda: convert(photos, tmp_path / "out", **options))
            time.sleep(chance.uniform(0, seconds))
            os.kill(child, signal.SIGKILL)
            if (code := end(child)) == -signal.SIGKILL:
                left -= 1
                killed += 1
                assert not (tmp_path / "out").exists() or listing(tmp_path / "out") == whole
                chunks += len(list((tmp_path / "out.partial").glob("*/chunk-*.bin")))
            else:
                assert code == 0, said.read_text()
            if (tmp_path / "out").exists():  # it was faster than the kill; it begins anew
                assert listing(tmp_path / "out") == whole
                subprocess.run(["rm", "-r", tmp_path / "out"], check=True)
        convert(photos, tmp_path / "out", **options)
        assert listing(tmp_path / "out") == whole
        assert not (tmp_path / "out.partial").exists()
        subprocess.run(["rm", "-r", tmp_path / "out"], check=True)
    assert killed == KILLS * ROUNDS and chunks
    tell(
        "`litcam convert` is killed again and again",
        caused=f"SIGKILL at a random moment, {KILLS} times in a row, then to the end; {ROUNDS} "
        "times over",
        times=killed,
        happened="the same command goes on; the folder is there whole or not at all, and equal "
        "byte for byte to one that was never stopped",
        lost="the chunk it was at",
    )


def test_a_full_disk(photos, small_disk, tmp_path, tell):
    convert(photos, tmp_path / "whole", chunk_bytes=10_000)
    disk, tries = small_disk("size=100k"), 0
    words = ("convert", photos, disk / "out", "--chunk_mb", 0.01, "--num_workers", 1)
    for size in (100, 150, 200, 250, 300):
        small_disk(f"remount,size={size}k")
        code, said = litcam(*words)
        assert code == 2 and " is full: " in said and "the same command goes on" in said, said
        assert len([line for line in said.splitlines() if "going on" not in line]) == 1
        assert not (disk / "out").exists()
        tries += 1
    small_disk("remount,size=20m")
    code, said = litcam(*words)
    assert code == 0 and "going on: " in said, said
    assert listing(disk / "out") == listing(tmp_path / "whole")
    check(disk / "out")
    tell(
        "`litcam convert` fills the disk",
        caused="a real file system of 100 to 300 kB for 1 MB of shards, which grows a little "
        "after each try",
        times=tries,
        happened="each ends in a line that says how much is there and missing; the same command "
        "goes on, and what it makes is equal byte for byte",
    )


def test_no_room_for_the_list_of_images(photos, small_disk, tell):
    from litcam.datamodules import ImageNetDataModule

    def fit():
        tempfile.tempdir = str(disk)
        ImageNetDataModule(photos, 2, num_workers=0).setup("fit")

    disk, tries = small_disk("size=4k"), 0
    for size in (4, 8):
        small_disk(f"remount,size={size}k")
        child, said = begin(fit)
        assert end(child) == 1
        line = said.read_text().splitlines()[-1]
        assert "cannot write the list of images to" in line and "set TMPDIR" in line
        assert not list(disk.iterdir())
        tries += 1
    small_disk("remount,size=1m")
    child, said = begin(fit)
    assert end(child) == 0, said.read_text()
    assert not list(disk.iterdir())
    tell(
        "no room for the list of images in TMPDIR",
        caused="a real file system of 4 and 8 kB",
        times=tries,
        happened="a line that says what to do; nothing is left there",
    )
