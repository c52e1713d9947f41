"""`litcam sweep`: real runs, stopped, killed, failing, and taken up again."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import yaml
from filelock import FileLock
from PIL import Image

from litcam.commands.sweep import _bar, _plan
from litcam.files import read_rows
from litcam.sweeps import Arm, read_sweep
from litcam.train import main

CONFIG = """\
model:
  class_path: Classifier
  init_args: {backbone: resnet10t, lr: 0.001}
data:
  class_path: ImageNetDataModule
  init_args: {root: images, image_size: 32, batch_size: 8, num_workers: 0}
trainer:
  accelerator: cpu
  enable_progress_bar: false
  max_epochs: 3
  logger: [{class_path: litcam.callbacks.SafeCSVLogger, init_args: {save_dir: runs}}]
  callbacks:
    - class_path: ModelCheckpoint
      init_args: {filename: last, enable_version_counter: false, save_on_exception: true}
"""
TOLD = {
    "method": "grid",
    "metric": {"name": "val/loss", "goal": "minimize"},
    "command": ["${env}", "litcam", "fit", "--config", "tiny.yaml", "${args}"],
    "parameters": {
        "model.lr": {"values": [0.001, 0.01]},
        "seed_everything": {"values": [0, 1]},
    },
}


def make_images(folder):
    pixels = np.random.default_rng(0)
    for part in ("train", "val"):
        for label in ("a", "b"):
            (folder / part / label).mkdir(parents=True)
            for number in range(16):
                array = pixels.integers(0, 255, (40, 40, 3), dtype=np.uint8)
                Image.fromarray(array).save(folder / part / label / f"{number}.jpg")


@pytest.fixture
def write(tmp_path):
    def write(name="sweep.yaml", **changes):
        (tmp_path / "tiny.yaml").write_text(CONFIG)
        make_images(tmp_path / "images")
        (tmp_path / name).write_text(yaml.safe_dump({**TOLD, **changes}, sort_keys=False))
        return name

    return write


def begin(*words):
    program = [sys.executable, "-m", "litcam.train", "sweep", *words]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "200"}
    return subprocess.Popen(
        program, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env
    )


def states(folder="runs/sweeps/sweep"):
    return {
        path.parent.name: json.loads(path.read_text()) for path in Path(folder).glob("*/arm.json")
    }


def saves_since(moment):
    """Whether a run that was begun since then has a checkpoint of its own."""
    for file in Path("runs/sweeps/sweep").glob("*/arm.json"):
        last = file.parent / "checkpoints" / "last.ckpt"
        begun = file.stat().st_mtime
        if begun > moment and last.exists() and last.stat().st_mtime > begun:
            return True
    return False


def refused(capsys, *words):
    with pytest.raises(SystemExit) as end:
        main(["sweep", *words])
    assert end.value.code == 2
    line = capsys.readouterr().err
    assert line.count("\n") == 1
    return line


def test_a_misspelt_parameter_is_named_before_the_first_run(write, capsys):
    file = write(parameters={"model.droprate": {"values": [0.0, 0.2]}})
    line = refused(capsys, file)
    assert "'droprate' does not exist; did you mean drop_rate" in line
    assert not Path("runs").exists()


def test_a_value_out_of_range_is_named_before_the_first_run(write, capsys):
    file = write(parameters={"model.lr": {"values": [0.1, "high"]}})
    line = refused(capsys, file)
    assert ("lr=high" in line and "expected float" in line.lower()) or "--model" in line
    assert not Path("runs").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["nope.yaml"], "'nope.yaml' does not exist"),
        (["sweep.yaml", "--model.lr", "1"], "--model.lr is varied by sweep.yaml"),
        (["sweep.yaml", "--jobs", "0"], "--jobs must be at least 1, got 0"),
        (["sweep.yaml", "--table"], "holds no finished run of sweep.yaml"),
        (["sweep.yaml", "--page", "nope.md"], "--page nope.md does not exist"),
        (["tiny.yaml"], "a sweep needs `parameters:`"),
    ],
)
def test_wrong_words_are_one_line(write, capsys, words, said):
    write()
    assert said in refused(capsys, *words)


def test_a_page_keeps_its_table_where_nothing_was_measured(write, capsys):
    file = write(parameters={"model.lr": {"values": [0.1]}})
    page = Path("page.md")
    page.write_text("<!-- sweep -->\nnumbers\n<!-- /sweep -->\n")
    described = read_sweep(yaml.safe_load(Path(file).read_text()))
    for arm in _plan(described, Path("runs/sweeps/sweep"), [], Path(file)):
        arm.write("finished", 3.0)
    main(["sweep", file, "--table", "--page", str(page)])
    assert "No run has a value of" in capsys.readouterr().out
    assert "numbers" in page.read_text()


def test_one_sweep_in_a_folder(write, capsys):
    file = write()
    Path("there").mkdir()
    with FileLock("there/sweep.lock"):
        assert "another sweep runs in there" in refused(capsys, file, "--out", "there")


def test_what_a_run_said_may_hold_brackets(tmp_path, capsys):
    arm = Arm("lr=1", {"model.lr": 1}, ["--model.lr=1"], tmp_path / "lr=1")
    arm.write("failed", 2.0, "[rank: 0] no photos in [/nowhere]")
    with _bar(1, 0) as (_, told):
        told(arm, "failed")
    assert "lr=1: failed after 2 s: [rank: 0] no photos in [/nowhere]" in capsys.readouterr().out


@pytest.mark.slow
def test_killed_three_times_it_ends_with_the_same_table(write):
    """SIGKILL, SIGTERM and Ctrl-C at moments in mid-run; the whole one is not interrupted."""
    settings = {"model.lr": {"values": [0.001, 0.01]}, "trainer.max_epochs": {"value": 12}}
    file = write(parameters=settings)
    whole = begin(file, "--out", "whole", "--jobs", "2")
    said, errors = whole.communicate(timeout=200)
    assert whole.returncode == 0, errors
    assert "2 finished" in said and "lr 0.01 against 0.001" in said
    for sent in (signal.SIGKILL, signal.SIGTERM, signal.SIGINT):
        process = begin(file, "--jobs", "2")
        known = sum(state["state"] == "finished" for state in states().values())
        began, until = time.time(), time.monotonic() + 100
        while process.poll() is None and time.monotonic() < until and not saves_since(began):
            time.sleep(0.05)
        process.send_signal(sent)
        said, _ = process.communicate(timeout=60)
        if sent != signal.SIGKILL:
            assert process.returncode == 130 and "of 2 runs to do" in said
        assert sum(one["state"] == "finished" for one in states().values()) >= known
    last = begin(file, "--jobs", "2")
    _, errors = last.communicate(timeout=200)
    assert last.returncode == 0, errors
    assert {one["state"] for one in states().values()} == {"finished"}
    ours, theirs = Path("runs/sweeps/sweep"), Path("whole")
    assert (ours / "table.md").read_text() == (theirs / "table.md").read_text()
    for name in states():
        # A stop within a validation costs that epoch's train/loss, which is no part of the results.
        measured = [
            [row["val/loss"] for row in read_rows(at / name / "metrics.csv") if "val/loss" in row]
            for at in (ours, theirs)
        ]
        assert len(measured[0]) == 12
        assert measured[0] == measured[1]
    page = (ours / "report.html").read_text()
    assert page.count('/report.html">') == 2 and "data:image/png" in page


@pytest.mark.slow
def test_a_failing_arm_is_told_and_the_others_go_on(write):
    parameters = {"data.root": {"values": ["nowhere", "images"]}}
    file = write(parameters=parameters)
    process = begin(file)
    said, errors = process.communicate(timeout=120)
    assert process.returncode == 2
    assert errors.count("\n") == 1 and "root=nowhere failed" in errors
    assert "nowhere" in states()["root=nowhere"]["reason"]
    assert states()["root=images"]["state"] == "finished"
    assert "1 failed, 1 finished" in said
    make_images(Path("nowhere"))
    again = begin(file)
    said, errors = again.communicate(timeout=120)
    assert again.returncode == 0, errors
    assert "2 finished" in said and "root=images: finished" not in said  # not run again


@pytest.mark.slow
def test_an_arm_without_prospects_is_stopped(write):
    early = {"type": "hyperband", "min_iter": 1, "eta": 4, "strict": True}
    parameters = {"model.lr": {"values": [1e-3, 1e-9]}, "trainer.max_epochs": {"value": 60}}
    process = begin(write(parameters=parameters, early_terminate=early), "--jobs", "2")
    said, errors = process.communicate(timeout=200)
    assert process.returncode == 0, errors
    found = {name: one["state"] for name, one in states().items()}
    assert "stopped" in found.values(), (found, said)
