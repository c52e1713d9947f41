"""`litcam explain` of many photos: several at once, as one by one, in a memory that stays."""

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from litcam.commands import explain as command
from litcam.train import main

ONE_AT_A_TIME = """
from torch import nn

class Single(nn.Sequential):
    def forward(self, images):
        if len(images) > 1:
            raise TypeError("one image, please")
        return super().forward(images)

def net():
    return Single(nn.Conv2d(3, 8, 3, 2), nn.ReLU(), nn.Conv2d(8, 8, 3, 2), nn.ReLU(),
                  nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4))
"""


@pytest.fixture
def folder(photos, tmp_path):
    """Real photos in folders of their class, one of which no network knows."""
    for kind, name in (("cat", "tabby"), ("dog", "nothing of ImageNet's")):
        (tmp_path / name).mkdir()
        for file in sorted((photos / "val" / kind).iterdir())[:2]:
            shutil.copyfile(file, tmp_path / name / file.name)
    return [str(tmp_path / name) for name in ("tabby", "nothing of ImageNet's")]


def explain(out, *words):
    main(["explain", *words, "--out", out])
    return json.loads(Path(out, "explain.json").read_text())


@pytest.mark.parametrize("model", ["test_resnet", "test_vit"])
def test_several_at_once_are_as_one_by_one(model, folder, monkeypatch, capsys):
    words = [*folder, "--models", model, "--classes", "true", "predicted"]
    found = {}
    for number in (1, 4):
        monkeypatch.setattr(command, "ON_CPU", number)
        found[number] = explain(str(number), *words)
        told = capsys.readouterr().out
        assert "true: the photo's folder is" in told  # of half of the photos
    assert len(found[1]) == 2 * 2 + 2
    for one, several in zip(found[1], found[4], strict=True):
        assert (one["file"], one["photo"]) == (several["file"], several["photo"])
        for name in ("asked", "class", "method", "layer", "grid"):
            assert one[name] == several[name]
        for name in ("probability", "map_max"):
            assert several[name] == pytest.approx(one[name], rel=1e-4, abs=1e-7)
        drawn = [np.asarray(Image.open(Path(out, one["file"]))) for out in ("1", "4")]
        assert np.abs(drawn[0].astype(int) - drawn[1].astype(int)).max() <= 2


def test_a_broken_photo_among_them_is_a_line(folder, capsys):
    first = sorted(Path(folder[0]).iterdir())[0]
    first.with_name("broken.jpg").write_bytes(first.read_bytes()[:300])
    found = explain("out", folder[0], "--models", "test_resnet")
    assert len(found) == 2
    (line,) = (t for t in capsys.readouterr().out.splitlines() if t.startswith("left out"))
    assert "broken.jpg" in line


def test_a_network_that_takes_one_image(folder, capsys):
    Path("takes_one.py").write_text(ONE_AT_A_TIME)
    found = explain("out", folder[0], "--models", "takes_one:net")
    assert len(found) == 2
    assert "left out" not in capsys.readouterr().out


@pytest.mark.slow
def test_the_memory_stays_and_ctrl_c_keeps_what_is_done(photos, tmp_path):
    """A process of its own, stopped by a real signal; from where the figure is full on."""
    many = tmp_path / "many"
    many.mkdir()
    small = [Image.open(file).convert("RGB") for file in sorted((photos / "val/cat").iterdir())[:8]]
    for number in range(1000):
        small[number % 8].resize((96, 96)).save(many / f"{number:04d}.jpg")
    words = ["-m", "litcam.train", "explain", str(many), "--models", "test_resnet"]
    process = subprocess.Popen(
        [sys.executable, *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        sizes = [_resident(process, tmp_path / "explained/heatmaps", n) for n in (120, 420)]
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    finally:
        process.kill()
    # MB; the photos and maps between the two would be 46 or more.
    assert sizes[1] - sizes[0] < 20, sizes
    assert process.returncode == 130
    assert err.splitlines()[-1] == "stopped: the rest was not explained"
    found = json.loads((tmp_path / "explained/explain.json").read_text())
    assert 410 <= len(found) < 1000 and f"{len(found)} heatmaps" in out
    assert all((tmp_path / "explained" / one["file"]).is_file() for one in found)


def _resident(process, folder, count):
    """Megabytes that the process has in memory once it has written so many."""
    until = time.monotonic() + 240
    while not folder.is_dir() or len([*folder.iterdir()]) < count:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < until
        time.sleep(0.02)
    for line in Path(f"/proc/{process.pid}/status").read_text().splitlines():
        if line.startswith("VmRSS"):
            return int(line.split()[1]) / 1024
    raise AssertionError("no VmRSS")
