"""A long run: nothing grows from epoch to epoch."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.timeout(1200)

# How much an epoch may add, after a third of the run to warm up: memory in MB, of the rest nothing.
# How much slower the last third may be: in seconds of the process, as others may be at work.
MEMORY, SLOWER = 0.1, 1.5
EACH = {"classifier": 8, "MAE": 4}  # pictures an epoch


@pytest.mark.parametrize("what", ["classifier", "MAE"])
def test_nothing_grows(what, tmp_path, request, tell):
    epochs = request.config.getoption("--soak")
    program = [sys.executable, str(Path(__file__).with_name("long_run.py"))]
    paths = os.pathsep.join(path for path in sys.path if path)
    subprocess.run(
        [*program, what, str(tmp_path), str(epochs)],
        check=True, env={**os.environ, "PYTHONPATH": paths},
    )  # fmt: skip
    found = json.loads((tmp_path / "figures.json").read_text())
    slopes, read = found["slopes"], found["read"]
    assert found["pictures"] == EACH[what] * epochs
    memory = slopes.pop("memory")
    assert memory < MEMORY, [round(each["memory"], 1) for each in read]
    assert found["slower"] < SLOWER
    assert all(abs(slope) < 0.02 for slope in slopes.values()), slopes
    tell(
        f"a long run of a tiny {what}",
        caused=f"{epochs} epochs with every callback, checkpoints, CSVLogger and W&B offline",
        times=epochs,
        happened=f"an epoch adds {memory:+.3f} MB of memory and "
        + ", ".join(f"{slope:+.2f} {name}" for name, slope in slopes.items())
        + f"; the last third took {found['slower']:.2f} of the second's CPU time and "
        f"{found['slower_by_clock']:.2f} of its time; {found['pictures']:,} pictures, the report "
        f"{found['report_mb']:.1f} MB in {found['report_seconds']:.1f} s",
    )
