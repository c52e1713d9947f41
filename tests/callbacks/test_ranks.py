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


LATE = """
import sys
from datetime import timedelta
import torch
torch.set_num_threads(1)
from lightning.pytorch.strategies import DDPStrategy
from strangers import Stranger, make_trainer
from torch.utils.data import DataLoader, Subset
from litcam.callbacks import Coverage, GradCAM, Neighbours, Reconstructions
what, folder = sys.argv[1:]

class Late(Stranger):
    def val_dataloader(self):
        mine = range(8) if self.trainer.global_rank == 0 else range(0)
        return DataLoader(Subset(super().val_dataloader().dataset, mine), 4)
    test_dataloader = val_dataloader
    def reconstruct(self, images, noise): raise NotImplementedError
    num_cells = 16

strategy = DDPStrategy(process_group_backend="gloo", timeout=timedelta(seconds=20),
                       broadcast_buffers=False)
callbacks = [GradCAM(metrics=["sparseness"]), Coverage(), Neighbours(network="net"),
             Reconstructions()]
trainer = make_trainer(*callbacks, default_root_dir=folder, devices=2, strategy=strategy,
                       accelerator="auto", use_distributed_sampler=False)
module = Late(num_images=8, batch_size=4)
module.allow_zero_length_dataloader_with_multiple_devices = True
getattr(trainer, what)(module)
print("finished", flush=True)
"""


@pytest.mark.slow
@pytest.mark.parametrize("what", ["fit", "validate"])
def test_a_process_without_a_validation_batch(what, tmp_path):
    """Plain Lightning finishes; so it does with the callbacks, which say that they are off."""
    script = tmp_path / "late.py"
    script.write_text(LATE)
    where = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    env = {**os.environ, "PYTHONPATH": where, "PYTHONWARNINGS": "ignore"}
    command = [sys.executable, str(script), what, str(tmp_path)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.count("finished") == 2
    for name in ("GradCAM", "Coverage", "Neighbours", "Reconstructions"):
        assert done.stderr.count(f"{name} is off: a process has no batch to validate") == 1
    assert not list(tmp_path.rglob("*.jpg"))
