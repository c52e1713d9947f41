"""Two processes show what one shows, write once, and do not wait for each other."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from strangers import read_lines

SCRIPT = """
import sys
import torch
torch.set_num_threads(1)
from strangers import Stranger, make_trainer
from litcam.callbacks import GradCAM
ranks = int(sys.argv[1])
torch.manual_seed(0)
kwargs = {"devices": ranks, "strategy": "ddp"} if ranks > 1 else {}
trainer = make_trainer(GradCAM(), max_epochs=2, default_root_dir=sys.argv[2], **kwargs)
module = Stranger(num_images=11, batch_size=4 // ranks)
module.configure_optimizers = lambda: torch.optim.SGD(module.parameters(), lr=0.0)
module.net[8].p = 0.0
for part in module.net:
    if hasattr(part, "momentum"):
        part.momentum = 0.0
trainer.fit(module)
"""


@pytest.mark.slow
def test_two_ranks_show_what_one_shows(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    where = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    env = {**os.environ, "PYTHONPATH": where, "PYTHONWARNINGS": "ignore"}
    lines = []
    for ranks in (1, 2):
        folder = tmp_path / str(ranks)
        command = [sys.executable, str(script), str(ranks), str(folder)]
        done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=150)
        assert done.returncode == 0, done.stderr[-2000:]
        lines.append(read_lines(folder / "gradcam"))
    one, two = lines
    kept = ("key", "index", "epoch", "class", "label", "predicted", "layer", "file")
    assert len(one) == len(two) == 32
    one_step = [{name: line[name] for name in kept if name != "file"} for line in one]
    assert one_step == [{name: line[name] for name in kept if name != "file"} for line in two]
    for left, right in zip(one, two, strict=True):
        assert left["map_max"] == pytest.approx(right["map_max"], rel=1e-4)
        first, second = (
            (tmp_path / str(ranks) / "gradcam" / line["file"]).read_bytes()
            for ranks, line in ((1, left), (2, right))
        )
        assert abs(len(first) - len(second)) < 200
