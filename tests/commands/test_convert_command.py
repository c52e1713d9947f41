"""`litcam convert`: what is said, and mistakes in one line."""

import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from litcam.datamodules.convert import pipeline
from litcam.train import main


@pytest.fixture
def photos(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    for split in ("train", "val"):
        for name in ("cat", "dog"):
            folder = tmp_path / "photos" / split / name
            folder.mkdir(parents=True)
            for index in range(4):
                pixels = rng.integers(0, 256, (20, 20, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f"{index}.jpg")
    return tmp_path / "photos"


def test_convert_and_check(photos, capsys):
    main(["convert", "photos", "shards", "--num_workers", "1", "--short_side", "16"])
    out = capsys.readouterr().out.splitlines()
    assert "changes the data" in out[0]
    assert out[-1].startswith("16 images (")
    assert out[-1].endswith("fit --config finetune_resnet34.yaml --data.root shards")
    main(["convert", "--check", "shards"])
    out = capsys.readouterr().out.splitlines()
    assert [line.partition(":")[0] for line in out] == ["train", "val"]
    with (photos.parent / "shards/val/chunk-0-0.bin").open("ab") as file:
        file.write(b"x")
    with pytest.raises(SystemExit) as end:
        main(["convert", "--check", "shards"])
    assert end.value.code == 2
    assert "val/chunk-0-0.bin has" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ([], ["missing: SRC and DST"]),
        (["photos"], ["missing: SRC and DST"]),
        (["photo", "dst"], ["photo does not exist", "mean photos?"]),
        (["photos", "photos/dst"], ["lie in each other"]),
        (["photos", "photos"], ["photos exists"]),
        (["photos", "no/dst"], ["no does not exist"]),
        (["photos", "dst", "--short_sid", "3"], ["'--short_sid'", "mean --short_side"]),
        (["photos", "dst", "--short_side", "0"], ["short_side must be at least 1, got 0"]),
        (["photos", "dst", "--seed", "x"], ["--seed", "'x'"]),
        (["photos", "dst", "--chunk_mb", "0"], ["chunk_mb", "got 0"]),
        (["photos", "dst", "--chunk_mb", "inf"], ["chunk_mb", "got inf"]),
        (["photos", "dst", "--chunk_mb", "nan"], ["chunk_mb", "got nan"]),
        (["photos", "dst", "--chunk_mb=-1"], ["chunk_mb", "got -1"]),
        (["photos", "dst", "--chunk_mb", "1e300"], ["chunk_mb", "got 1e+300"]),
        (["photos", "dst", "more"], ["more"]),
        (["--check", "photos"], ["photos is not a converted folder"]),
        (["--check", "nowhere"], ["nowhere is not a converted folder"]),
    ],
)
def test_a_mistake_is_one_line(photos, capsys, options, said):
    with pytest.raises(SystemExit) as end:
        main(["convert", *options])
    assert end.value.code == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert all(part in lines[0] for part in said)
    assert not list(photos.parent.glob("*.partial"))


def test_ctrl_c(photos, capsys, monkeypatch):
    def interrupt(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(pipeline, "write_chunks", interrupt)
    with pytest.raises(SystemExit) as end:
        main(["convert", "photos", "shards"])
    assert end.value.code == 130
    assert capsys.readouterr().err == "litcam: stopped; the same command goes on\n"


@pytest.mark.slow
def test_several_processes(photos):
    command = [sys.executable, "-m", "litcam.train", "convert", "photos"]
    for name, workers in (("a", "1"), ("b", "2")):
        more = [name, "--chunk_mb", "0.002", "--num_workers", workers]
        result = subprocess.run([*command, *more], capture_output=True, text=True)
        assert (result.returncode, result.stderr) == (0, "")
    a, b = (photos.parent / name for name in "ab")
    names = sorted(path.relative_to(a) for path in a.rglob("*.*"))
    assert len(names) > 8
    assert all((a / name).read_bytes() == (b / name).read_bytes() for name in names)
