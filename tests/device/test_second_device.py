"""Runs on a second device, without a GPU: nothing is on the wrong one, and who waits for it.

It lives in the CPU's memory. Tensors of two devices in one operation raise as they do on CUDA, and
whatever would make the CPU wait is counted with its line.
"""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not (shutil.which("c++") and shutil.which("ninja")),
        reason="the second device is compiled: it needs a C++ compiler and ninja",
    ),
]


def run(kind, folder):
    command = [sys.executable, str(HERE / "run_on_second_device.py"), kind]
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder, timeout=400)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


# In a validation batch; they are what a GPU is asked to launch.
MOST_OPERATORS = {"classifier": 500, "mixup": 690}


@pytest.mark.parametrize("kind", ["classifier", "mixup", "legrad", "vit", "swin", "cnn"])
def test_no_wait_in_a_step_and_one_in_a_validation_batch(kind, tmp_path):
    found = run(kind, tmp_path)
    assert found["waits"]["train"] == 0, found["lines"]
    assert found["waits"]["batch"] <= 1, found["lines"]
    # A handful: the gatherings of a validation's end.
    assert found["waits"]["end"] <= 12, found["lines"]
    if kind in MOST_OPERATORS:
        assert found["operators"]["batch"] <= MOST_OPERATORS[kind]


def test_metrics_that_ask_again_run_there_too(tmp_path):
    found = run("costly", tmp_path)
    assert {"val/gradcam/road", "val/gradcam/deletion"} <= set(found["metrics"])
    assert found["waits"]["train"] == 0


def test_explain_gives_the_same_maps_and_waits_once_a_method(tmp_path):
    found = run("explain", tmp_path)
    cpu, there = found["cpu"], found["there"]
    assert len(cpu) == 2 * 2 * 3 * 3
    for mine, theirs in zip(cpu, there, strict=True):
        assert (mine.pop("device"), theirs.pop("device")) == ("cpu", "twin:0")
        assert mine.pop("file").split("/")[-1] == theirs.pop("file").split("/")[-1]
        assert theirs == {
            name: pytest.approx(value, rel=1e-4) if isinstance(value, float) else value
            for name, value in mine.items()
        }
    assert found["apart"] <= 2
    # Of a second photo by two models: the probabilities, and the maps of each of three methods.
    assert found["waits"]["second"] <= 2 * (1 + 3), found["lines"]
    # With the first a layer is looked for.
    assert found["waits"]["first"] <= 200
