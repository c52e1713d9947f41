"""ViT methods and several layers in whole runs: in bfloat16, checkpointed, on two processes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch

from litcam.callbacks import GradCAM, SafeCSVLogger
from litcam.datamodules import SyntheticDataModule
from litcam.explain import CAM
from litcam.explain.metrics.maps import EnergyInside
from litcam.lightning_modules import Classifier
from litcam.report.writing import write_report

LAYERS = ("layer2", "layer3", "layer4")
# Under gradient checkpointing the blocks are called, and no stage.
BLOCKS = ("layer2.0", "layer3.0", "layer4.0")
METHODS = ("legrad", "libragrad", "finercam", "layercam")


def make(method):
    torch.manual_seed(0)
    if method == "layercam":
        return Classifier("resnet10t", 8, backbone_args={"channels": (8, 8, 16, 16)})
    small = {"img_size": 64, "embed_dim": 32, "depth": 2, "num_heads": 2}
    return Classifier("vit_tiny_patch16_224", 8, backbone_args=small)


def callback(method, layers=BLOCKS):
    return GradCAM(2, method, target_layer=layers if method == "layercam" else "")


def data():
    return SyntheticDataModule(num_train=8, num_val=12, image_size=64, batch_size=4)


def trainer(folder, *callbacks, **options):
    options = {"logger": False, "enable_checkpointing": False, **options}
    return pl.Trainer(
        accelerator="cpu", devices=1, max_epochs=1, callbacks=[*callbacks], default_root_dir=folder,
        enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=0, **options,
    )  # fmt: skip


def measure(folder, method, *, checkpoints=False, **options):
    """What a validation logs, and how high the shown maps are."""
    module = make(method)
    module.backbone.set_grad_checkpointing(checkpoints)
    run = trainer(folder, callback(method), **options)
    run.validate(module, data(), verbose=False)
    found = {name: float(value) for name, value in run.callback_metrics.items()}
    lines = folder / "gradcam" / "images.jsonl"
    records = [json.loads(line) for line in lines.read_text().splitlines()]
    return found, [record["map_max"] for record in records]


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_half_the_bits_show_the_same(method, tmp_path):
    whole, highest = measure(tmp_path / "whole", method)
    half, highest_of_half = measure(tmp_path / "half", method, precision="bf16-mixed")
    assert "val/gradcam/energy_inside" in whole and whole.keys() == half.keys()
    assert half == pytest.approx(whole, rel=0.05, abs=0.02)
    assert highest_of_half == pytest.approx(highest, rel=0.1)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["legrad", "finercam", "layercam"])
def test_gradient_checkpointing_changes_nothing(method, tmp_path):
    plain = measure(tmp_path / "plain", method)
    assert measure(tmp_path / "checkpoints", method, checkpoints=True) == plain


def test_what_gradient_checkpointing_cannot_give_is_a_line(tmp_path, warned):
    for method, layers, line in (
        ("libragrad", (), "set_grad_checkpointing(False), or take legrad"),
        ("layercam", LAYERS, "calls the blocks in a stage; name one of those"),
    ):
        module = make(method)
        module.backbone.set_grad_checkpointing(True)
        run = trainer(tmp_path, callback(method, layers))
        run.validate(module, data(), verbose=False)
        assert "val/acc1" in run.callback_metrics
        assert any("gradient checkpointing" in text and line in text for text in warned), warned
        warned.clear()


@pytest.mark.slow
def test_a_run_with_several_layers(tmp_path):
    """Trained, measured, drawn and on its page; and the numbers are those of `CAM` by hand."""
    module, images = make("layercam"), data()
    logger = SafeCSVLogger(tmp_path)
    run = trainer(tmp_path, callback("layercam", LAYERS), logger=logger, log_every_n_steps=1)
    run.fit(module, images)
    energy, module = EnergyInside(), module.eval()
    for batch in images.val_dataloader():
        batch = images.on_after_batch_transfer(batch, 0)
        with torch.no_grad(), CAM(module.backbone, "layercam", LAYERS) as cam:
            module(batch["image"])
        energy.update(cam(batch["label"]), batch["mask"])
    expected = float(energy.compute())
    assert float(run.callback_metrics["val/gradcam/energy_inside"]) == pytest.approx(expected, 1e-4)
    folder = Path(logger.log_dir)
    (record, *_) = (folder / "gradcam" / "images.jsonl").read_text().splitlines()
    names = " + ".join(f"backbone.{layer}" for layer in LAYERS)
    assert json.loads(record)["layer"] == names
    assert names in write_report(folder).read_text()


SCRIPT = """
import json
import sys
import lightning.pytorch as pl
import torch
torch.set_num_threads(1)
from test_methods_in_runs import METHODS, callback, data, make
ranks, folder = int(sys.argv[1]), sys.argv[2]
several = {"devices": ranks, "strategy": "ddp"} if ranks > 1 else {"devices": 1}
for method in METHODS:
    run = pl.Trainer(
        accelerator="cpu", callbacks=[callback(method)], default_root_dir=f"{folder}/{method}",
        logger=False, enable_progress_bar=False, enable_model_summary=False, **several,
    )
    run.validate(make(method), data(), verbose=False)
    if run.is_global_zero:
        found = {name: float(value) for name, value in run.callback_metrics.items()}
        open(f"{folder}/{method}/found.json", "w").write(json.dumps(found))
"""


@pytest.mark.slow
def test_two_processes_find_what_one_finds(tmp_path):
    where = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    env = {**os.environ, "PYTHONPATH": where, "PYTHONWARNINGS": "ignore", "OMP_NUM_THREADS": "1"}
    (tmp_path / "script.py").write_text(SCRIPT)
    for ranks in ("1", "2"):
        command = [sys.executable, str(tmp_path / "script.py"), ranks, str(tmp_path / ranks)]
        done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=400)
        assert done.returncode == 0, done.stderr[-2000:]
    for method in METHODS:
        (one, shown), (two, shown_by_two) = (read(tmp_path / ranks / method) for ranks in "12")
        assert "val/gradcam/energy_inside" in one
        assert two == pytest.approx(one, rel=1e-4)
        for left, right in zip(shown, shown_by_two, strict=True):
            assert left["index"] == right["index"] and left["class"] == right["class"]
            assert left["map_max"] == pytest.approx(right["map_max"], rel=1e-4)


def read(folder):
    """The metrics, and the records of the shown maps."""
    lines = (folder / "gradcam" / "images.jsonl").read_text().splitlines()
    return json.loads((folder / "found.json").read_text()), [json.loads(line) for line in lines]
