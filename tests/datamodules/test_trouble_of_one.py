"""One of two processes in trouble: both are gone in seconds, and each says why in its last line.

python tests/datamodules/test_trouble_of_one.py      # the table, as Markdown
"""

import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from test_resume import make_roots

SCRIPT = Path(__file__).with_name("troubled_run.py")
OPTIONS = {
    "data.image_size": 32,
    "data.batch_size": 2,
    "data.num_workers": 1,
    "model.backbone": "test_resnet",
    "model.pretrained": "false",
    "trainer.accelerator": "cpu",
    "trainer.devices": 2,
    "trainer.strategy": "ddp",
    "trainer.max_epochs": 3,
    "trainer.enable_progress_bar": "false",
}
# What is done to which process, what both say at the end, and within how many seconds of each
# other they have to be gone. `None`: to whichever process comes upon it first.
TROUBLES = [
    ("training", 0, "a bug in a training step"),
    ("training", 1, "a bug in a training step"),
    ("validation", 0, "a bug in a validation step"),
    ("validation", 1, "a bug in a validation step"),
    ("disk", 0, "Is a directory"),
    ("disk", 1, "Is a directory"),
    ("broken image", None, "More training images are broken than max_broken=0 allows"),
    ("damaged chunk", None, "is damaged"),
    ("killed", 1, "perhaps for want of memory"),
    ("killed", 0, "perhaps for want of memory"),
    ("stuck elsewhere", 0, "a bug while the other one is stuck"),
    ("stuck elsewhere", 1, "a bug while the other one is stuck"),
]


def damage(root, kind):
    """Damages data where the trouble lies in them; returns the folder to train on."""
    if kind == "broken image":
        for path in (root / "folders/train/dog").glob("*.jpg"):
            path.write_bytes(path.read_bytes()[:200])
    if kind == "damaged chunk":
        for chunk in (root / "shards/train").glob("chunk-*.bin"):
            data = bytearray(chunk.read_bytes())
            data[len(data) // 2] ^= 1
            chunk.write_bytes(data)
        return root / "shards"
    return root / "folders"


def fit(folder, kind, rank):
    """Runs it, and returns when each process was gone and what it said last."""
    root = damage(folder, kind)
    words = [f"--{name}={value}" for name, value in {**OPTIONS, "data.root": root}.items()]
    words += ["--trainer.callbacks+=troubled_run.Trouble", f"--trainer.callbacks.kind={kind}"]
    if kind == "broken image":
        words.append("--data.max_broken=0")
    environment = {
        **os.environ,
        "TROUBLED": str(-1 if rank is None else rank),
        "CUDA_VISIBLE_DEVICES": "",
        "OMP_NUM_THREADS": "1",
        "WANDB_MODE": "disabled",
    }
    command = [sys.executable, str(SCRIPT), "fit", "--config=finetune_resnet34.yaml", *words]
    process = subprocess.Popen(command, cwd=folder, env=environment, start_new_session=True)
    began = None
    deadline = time.monotonic() + 150
    try:
        while (process.poll() is None or others(process.pid)) and time.monotonic() < deadline:
            time.sleep(0.1)
            # Damaged data are come upon at any time: it is then that the first one says so.
            said = "".join(path.read_text() for path in folder.glob("said-*"))
            if began is None and ((folder / "began").exists() or words_of(kind) in said):
                began = time.monotonic()
        seconds = time.monotonic() - (began or 0.0)
    finally:
        subprocess.run(["pkill", "-KILL", "-s", str(process.pid)], check=False)
        process.wait()
    last = [
        [line for line in (folder / f"said-{number}").read_text().splitlines() if line.strip()][-1]
        for number in (0, 1)
    ]
    return SimpleNamespace(seconds=seconds, last=last)


def others(session):
    """The processes of a session that still run."""
    listed = subprocess.run(
        ["ps", "-o", "stat=", "-s", str(session)], capture_output=True, text=True
    )
    return [state for state in listed.stdout.split() if not state.startswith("Z")]


def words_of(kind):
    return next(words for name, _, words in TROUBLES if name == kind)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return make_roots(tmp_path_factory.mktemp("data"))


@pytest.mark.slow
@pytest.mark.timeout(200)
@pytest.mark.parametrize(("kind", "rank", "words"), TROUBLES)
def test_both_are_gone_and_say_why(data, tmp_path, kind, rank, words):
    shutil.copytree(data, tmp_path / "run", dirs_exist_ok=True)
    found = fit(tmp_path / "run", kind, rank)
    # A process that is stuck in its own code is interrupted after some seconds.
    assert found.seconds < (60 if kind == "stuck elsewhere" else 30), found
    survivors = [
        line for number, line in enumerate(found.last) if (kind, rank) != ("killed", number)
    ]
    assert all(words in line for line in survivors), found
    last = list((tmp_path / "run").glob("runs/*/version_0/checkpoints/last.ckpt"))
    assert last or kind in ("broken image", "damaged chunk")


if __name__ == "__main__":
    words = " ".join(sys.argv[1:])
    print("| trouble | of process | gone within, s | last line of 0 | last line of 1 |")
    print("|---|---|---|---|---|")
    for kind, rank, _ in (row for row in TROUBLES if words in row[0]):
        with tempfile.TemporaryDirectory() as scratch:
            made = make_roots(Path(scratch, "data"))
            found = fit(made, kind, rank)
            cells = (kind, rank, f"{found.seconds:.1f}", *found.last)
            print("| " + " | ".join(map(str, cells)) + " |", flush=True)
