"""A conversion that is stopped, killed or out of room goes on, and is never half there."""

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from test_convert import SMALL, files, write_tree

from litcam.datamodules.convert import chunks, convert, pipeline


@pytest.fixture
def tree(tmp_path):
    return write_tree(tmp_path / "photos")


class StopError(Exception):
    pass


@pytest.mark.parametrize("place", ["tick", "write_manifest", "expected_files", "sync", "rename"])
def test_it_goes_on_after_a_stop_anywhere(tree, tmp_path, monkeypatch, place):
    convert(tree, tmp_path / "whole", chunk_bytes=SMALL)
    dst, options, lines = tmp_path / "dst", {"chunk_bytes": SMALL}, []

    def stop(*args, **kwargs):
        if place != "tick" or args[0] > 9:
            raise StopError

    tick = {"tick": stop} if place == "tick" else {}
    with monkeypatch.context() as patch:
        if place == "rename":
            patch.setattr(Path, "rename", stop)
        elif place != "tick":
            patch.setattr(pipeline, place, stop)
        with pytest.raises(StopError):
            convert(tree, dst, **options, **tick)
    assert not dst.exists()
    convert(tree, dst, **options, say=lines.append)
    assert files(dst) == files(tmp_path / "whole")
    assert not (tmp_path / "dst.partial").exists()
    if place == "tick":
        assert lines == ["going on: 2 of 7 chunks are there"]


KILLED = """
import os, signal, sys
from litcam.datamodules.convert import convert
def tick(done, total):
    if 12 <= done < total:
        os.kill(os.getpid(), signal.SIGKILL)
if __name__ == "__main__":
    convert(sys.argv[1], sys.argv[2], chunk_bytes=2000, num_workers=int(sys.argv[3]), tick=tick)
"""


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
def test_it_goes_on_after_it_was_killed(tmp_path, workers):
    src = write_tree(tmp_path / "src", classes=8, train=40)
    convert(src, tmp_path / "whole", chunk_bytes=2000)
    (tmp_path / "killed.py").write_text(KILLED)
    command = [sys.executable, "killed.py", "src", "dst", str(workers)]
    assert subprocess.run(command, cwd=tmp_path).returncode == -signal.SIGKILL
    assert not (tmp_path / "dst").exists()
    there = len(list((tmp_path / "dst.partial").glob("*/chunk-*.json")))
    lines = []
    convert(src, tmp_path / "dst", chunk_bytes=2000, say=lines.append)
    assert there > 0
    assert lines[0].startswith("going on: ")
    assert files(tmp_path / "dst") == files(tmp_path / "whole")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"seed": 1}, "begun with --seed 0, now it is --seed 1; delete .*dst.partial"),
        ({"short_side": 9}, "begun with no --short_side, now it is --short_side 9"),
        ({"chunk_bytes": 9000}, "begun with --chunk_mb 0.004"),
        ("image", "begun with other images"),
    ],
)
def test_it_does_not_go_on_with_something_else(tree, tmp_path, change, said):
    (tree / "val/n000/0.JPEG").write_bytes(b"")
    with pytest.raises(ValueError, match="cannot be decoded"):
        convert(tree, tmp_path / "dst", chunk_bytes=SMALL)
    if change == "image":
        (tree / "val/n001/1.JPEG").rename(tree / "val/n001/3.JPEG")
        change = {}
    with pytest.raises(ValueError, match=said):
        convert(tree, tmp_path / "dst", **{"chunk_bytes": SMALL, **change})


def test_a_full_disk(tree, tmp_path, monkeypatch):
    write, calls = chunks.replace_text, []

    def full(file, text):
        calls.append(file)
        if len(calls) > 3:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write(file, text)

    with monkeypatch.context() as patch:
        patch.setattr(chunks, "replace_text", full)
        with pytest.raises(OSError, match="is full: 3 of 7 chunks are written; about 0 MB are"):
            convert(tree, tmp_path / "dst", chunk_bytes=SMALL)
    assert not (tmp_path / "dst").exists()
    lines = []
    convert(tree, tmp_path / "dst", chunk_bytes=SMALL, say=lines.append)
    assert lines == ["going on: 3 of 7 chunks are there"]


def test_two_at_once(tree, tmp_path):
    def tick(done, total):
        with pytest.raises(FileExistsError, match="another litcam convert is at work"):
            convert(tree, tmp_path / "dst")

    convert(tree, tmp_path / "dst", tick=tick)


def test_a_folder_of_others_is_not_touched(tree, tmp_path):
    (tmp_path / "dst.partial").mkdir()
    (tmp_path / "dst.partial/thesis.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="move it away"):
        convert(tree, tmp_path / "dst")
    assert files(tmp_path / "dst.partial") == {"thesis.txt": b"mine"}
