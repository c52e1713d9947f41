"""Two machines, which here are one: torchrun over loopback, beside a run of a single process."""

import csv
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

OPTIONS = {
    "data.root": "photos",
    "data.image_size": 32,
    "data.batch_size": 4,
    "data.num_workers": 1,
    "model.backbone": "test_resnet",
    "model.pretrained": "false",
    "trainer.accelerator": "cpu",
    "trainer.devices": 1,
    "trainer.max_epochs": 2,
    "trainer.enable_progress_bar": "false",
}
FIT = ["-m", "litcam.train", "fit", "--config", "finetune_resnet34.yaml"]
FIT += [f"--{name}={value}" for name, value in OPTIONS.items()]


@pytest.fixture
def folder(tmp_path):
    generator = np.random.default_rng(0)
    for split in ("train", "val"):
        for name in ("cat", "dog"):
            place = tmp_path / "photos" / split / name
            place.mkdir(parents=True)
            for number in range(9):
                pixels = generator.integers(0, 256, (40, 44, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(place / f"{number}.jpg")
    return tmp_path


def start(folder, name, *words):
    here = folder / name
    here.mkdir(exist_ok=True)
    if not (here / "photos").exists():
        (here / "photos").symlink_to(folder / "photos")
    environment = {
        **os.environ,
        "CUDA_VISIBLE_DEVICES": "",
        "OMP_NUM_THREADS": "1",
        "WANDB_MODE": "offline",
    }
    return subprocess.Popen(
        [sys.executable, *words],
        cwd=here,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def run_of(folder: Path):
    """What a run left: its pictures, what they are of, its W&B runs, and its metrics by name."""
    (run,) = (folder / "runs").glob("*/version_*")
    pictures = len(list(run.glob("gradcam/*/*.jpg")))
    lines = (run / "gradcam/images.jsonl").read_text().splitlines()
    shown = sorted((at["epoch"], at["key"], at["index"]) for at in map(json.loads, lines))
    with (run / "metrics.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["val/acc1"]]
    return pictures, shown, len(list((folder / "wandb").glob("offline-run-*"))), rows


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_two_nodes_train_validate_and_explain_as_one(folder):
    alone = start(folder, "alone", *FIT)
    said = alone.communicate(timeout=110)[0]
    assert alone.returncode == 0, said
    nodes = ["-m", "torch.distributed.run", "--nnodes", "2", "--nproc-per-node", "1"]
    nodes += ["--master-addr", "127.0.0.1", "--master-port", str(free_port())]
    # The recipe for GPUs, but for what only a GPU has.
    several = ["--trainer=trainer/multi_node.yaml", "--trainer.num_nodes=2"]
    several += [
        "--trainer.accelerator=cpu",
        "--trainer.devices=1",
        "--trainer.sync_batchnorm=false",
    ]
    started = [
        start(folder, "both", *nodes, "--node-rank", str(rank), *FIT, *several) for rank in (0, 1)
    ]
    try:
        for node in started:
            said = node.communicate(timeout=110)[0]
            assert node.returncode == 0, said
    finally:  # a run that hangs is not left beside the tests that follow
        for node in started:
            node.terminate()
            node.communicate()
    one, both = run_of(folder / "alone"), run_of(folder / "both")
    assert one[:3] == both[:3]
    assert both[0] == 2 * (2 * 8 + 1)
    assert both[2] == 1
    for row in both[3]:
        assert (row["val/images_unique"], row["val/images_missing"]) == ("18.0", "0.0")
