"""The strategy of `trainer/ddp.yaml` in two processes: same weights, also with channels last."""

import json
import os
import subprocess
import sys

import pytest

SCRIPT = """
import hashlib, json, sys, warnings
import lightning.pytorch as pl
import torch
from lightning.pytorch.strategies import DDPStrategy
from torch.utils.data import DataLoader
from litcam.lightning_modules import Classifier

torch.set_num_threads(1)
# What DistributedDataParallel says of gradients that do not lie as its buckets do.
warnings.filterwarnings("error", ".*[Ss]trides.*")
options, last = json.loads(sys.argv[1]), sys.argv[2] == "last"
pl.seed_everything(0, verbose=False)
images = torch.randn(32, 3, 64, 64)
rows = [{"image": image, "label": at % 8, "index": at} for at, image in enumerate(images)]
module = Classifier("test_resnet", 8, warmup_epochs=0, channels_last=last)
trainer = pl.Trainer(
    max_epochs=2, accelerator="cpu", devices=2, strategy=DDPStrategy(**options), logger=False,
    enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
    gradient_clip_val=1.0, accumulate_grad_batches=2,
)
trainer.fit(module, DataLoader(rows, batch_size=4))
weights = torch.cat([p.detach().flatten() for p in module.parameters()])
if trainer.is_global_zero:
    number = hashlib.sha256(weights.numpy().tobytes()).hexdigest()
    print(json.dumps([number, float(weights.norm()), trainer.global_step]))
"""
RECIPE = {"gradient_as_bucket_view": True, "find_unused_parameters": False}


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_two_processes_train_the_same_weights_out_of_buckets(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    found = []
    for options, layout in (({}, "first"), (RECIPE, "first"), (RECIPE, "last")):
        done = subprocess.run(
            [sys.executable, str(script), json.dumps(options), layout],
            capture_output=True,
            text=True,
            cwd=tmp_path,
            timeout=110,
            env={**os.environ, "PYTHONWARNINGS": "ignore", "OMP_NUM_THREADS": "1"},
        )
        assert done.returncode == 0, done.stderr[-3000:]
        assert "strides" not in done.stderr.lower()
        found.append(json.loads(done.stdout.splitlines()[-1]))
    plain, recipe, last = found
    assert plain == recipe
    assert plain[2] == 4
    assert last[1] == pytest.approx(plain[1], rel=1e-3)
