"""Weights & Biases in every trouble: a run keeps its pictures, its metrics and its report."""

import csv
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import wandb
from disks import fill, make_read_only, small_disk
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import CSVLogger
from PIL import Image
from strangers import Stranger, make_trainer, read_lines
from wandb_files import read_history
from wandb_server import Server, wrong_answers

from litcam.callbacks import GradCAM, WandbLogger
from litcam.callbacks.places.wandb_logger import RESTARTS
from litcam.report.writing import write_report

pytestmark = pytest.mark.timeout(120)

EPOCHS, PICTURES = 4, 4 * 4 * 2
PREDICTED = "val/gradcam/predicted.count"
# A run without trouble takes 3 s; on top come the time-outs, 2 s to connect and 3 s to finish.
BOUND = 40


class AtEpoch(Callback):
    def __init__(self, **actions):
        self.actions = {int(name[1:]): action for name, action in actions.items()}

    def on_train_epoch_start(self, trainer, module):
        self.actions.get(trainer.current_epoch, lambda: None)()


def kept_offline():
    (run,) = Path().glob("wandb/offline-run-*")
    shown = [row for row in read_history(run) if PREDICTED in row]
    assert len(shown) == EPOCHS
    return "W&B has them offline"


@pytest.fixture
def whole_run(tmp_path, tell):
    """Runs to the end, counts what is on this machine, and tells it."""
    folder = tmp_path / "run"

    def run(fault, caused, *callbacks, happened=str, lost="nothing"):
        start = time.monotonic()
        logger = WandbLogger(connect_timeout=2, finish_timeout=3)
        loggers = [CSVLogger(folder, name="", version=""), logger]
        trainer = make_trainer(GradCAM(num_images=4), *callbacks, logger=loggers, max_epochs=EPOCHS)
        trainer.fit(Stranger())
        wandb.finish()
        seconds = time.monotonic() - start
        assert trainer.state.finished and seconds < BOUND
        lines = read_lines(folder / "gradcam")
        for line in lines:
            Image.open(folder / "gradcam" / line["file"]).load()
        with (folder / "metrics.csv").open() as file:
            rows = [row for row in csv.DictReader(file) if row["val/loss"]]
        assert len(lines) == PICTURES and len(rows) == EPOCHS
        assert write_report(folder).stat().st_size > 10_000
        more = happened()
        tell(
            f"W&B: {fault}",
            caused=caused,
            times=1,
            happened=f"whole run in {seconds:.0f} s; {len(lines)} pictures, {len(rows)} rows of "
            f"validations and the report are here{more and '; '}{more}",
            lost=lost,
        )

    return run


@pytest.fixture
def key(monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", "k" * 40)


@pytest.fixture
def server(key, monkeypatch, request):
    """One that answers as told by the test's parameters, or as W&B does."""
    server = Server(wrong_answers(*request.param) if hasattr(request, "param") else None)
    monkeypatch.setenv("WANDB_BASE_URL", server.url)
    yield server
    server.close()


def test_no_key(whole_run, said):
    whole_run("no key", "neither in the environment nor in a file", happened=kept_offline)
    assert sum("W&B runs offline (no API key" in line for line in said) == 1


def test_dead_port(whole_run, said, key, monkeypatch):
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    whole_run("its server is not there", "a port where nobody listens", happened=kept_offline)
    assert sum("W&B runs offline (" in line for line in said) == 1


def test_hanging_server(whole_run, said, key, monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{silent.getsockname()[1]}")
        whole_run(
            "its server hangs",
            "a socket that takes connections and never answers",
            happened=kept_offline,
        )
    assert sum("W&B runs offline (" in line for line in said) == 1


@pytest.mark.parametrize(
    "server",
    [(500,), (401,), (200, b"<html>Sign in to the hotel's network</html>", "text/html")],
    ids=["500", "401", "HTML"],
    indirect=True,
)
def test_wrong_answers(whole_run, said, server, request):
    name = request.node.callspec.id
    whole_run(
        f"its server answers {name}",
        f"a server that answers everything with {name}",
        happened=kept_offline,
    )
    assert sum("W&B runs offline (" in line for line in said) == 1


def test_server_dies(whole_run, server):
    whole_run("its server dies", "closed before the second epoch", AtEpoch(_1=server.close))


def test_disabled(whole_run, said, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "disabled")
    whole_run("switched off", "WANDB_MODE=disabled")


def test_no_url(whole_run, warned, monkeypatch):
    monkeypatch.setenv("WANDB_BASE_URL", "not a url")
    whole_run("a wrong setting", "WANDB_BASE_URL='not a url'", happened=lambda: "one line names it")
    (line,) = warned
    assert "WANDB_BASE_URL is 'not a url'" in line and "correct or unset it" in line


def kill_core():
    """Ends W&B's own process: a child of this one."""
    command = ["ps", "-o", "pid=,stat=,comm=", "--ppid", str(os.getpid())]
    found = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    # One that was killed before stays as a zombie.
    cores = [line.split() for line in found.splitlines() if line.endswith("wandb-core")]
    (pid,) = [int(number) for number, state, _ in cores if not state.startswith("Z")]
    os.kill(pid, signal.SIGKILL)


def test_core_killed(whole_run, warned, tmp_path):
    counts = {}

    def count():
        earlier, later = sorted(tmp_path.glob("wandb/offline-run-*"))
        # One run; where both start in one second, W&B puts a number behind the later name.
        assert earlier.name.split("-")[3] == later.name.split("-")[3]
        rows = [row["epoch"] for row in read_history(later) if "val/loss" in row]
        counts["shown"] = {row["epoch"] for row in read_history(later) if PREDICTED in row}
        assert rows[-1] == EPOCHS - 1
        return (
            f"W&B's process is started again and the run goes on there, with {len(rows)} rows of "
            "validations; three lines say so, and what W&B missed"
        )

    whole_run(
        "its process is killed",
        "SIGKILL of wandb-core before the second epoch",
        AtEpoch(_1=kill_core),
        happened=count,
        lost="in W&B: what its process had not yet written (15 s), and up to 8 pictures",
    )
    assert counts["shown"] == {2, 3}
    pictures, row, missed, at_end = warned
    assert "misses pictures in WandbLogger and tries the next" in pictures
    assert "W&B misses a row, training goes on (Connection" in row
    assert "up to 8 pictures" in missed and "at least 1" in at_end


def test_core_killed_again_and_again(said, warned):
    logger = WandbLogger(offline=True)
    for number in range(RESTARTS + 1):
        logger.log_metrics({"loss": 1.0}, step=number)
        kill_core()
        while len(warned) == 0 or logger._restarts == number:
            logger.log_metrics({"loss": 1.0}, step=number)
    logger.log_metrics({"loss": 1.0}, step=9)
    logger.finalize("success")
    assert sum("W&B runs offline" in line for line in said) == RESTARTS + 1
    *_, left_out, at_end = warned
    assert "W&B is left out of this run" in left_out and "other loggers have them" in at_end


def test_full_folder(whole_run, warned, tmp_path):
    with small_disk(tmp_path / "wandb", "8m") as folder:

        def count():
            wandb.teardown()
            (run,) = folder.glob("offline-run-*")
            rows = [row for row in read_history(run) if "val/loss" in row]
            shown = {row["epoch"] for row in read_history(run) if PREDICTED in row}
            assert len(rows) == EPOCHS and shown == {0, 3}
            return f"W&B has {len(rows)} rows and the pictures of {len(shown)} epochs; two lines"

        whole_run(
            "its folder is full",
            "a tmpfs, filled to the last byte before the second epoch, freed before the fourth",
            AtEpoch(_1=lambda: fill(folder), _3=(folder / "filler").unlink),
            happened=count,
            lost="in W&B: the pictures of 2 epochs",
        )
    once, count = warned
    assert "misses pictures in WandbLogger" in once and "No space left" in once
    assert "missed up to 16 pictures in WandbLogger" in count


def test_read_only_folder(whole_run, warned, tmp_path):
    with small_disk(tmp_path / "wandb", "1m") as folder:
        make_read_only(folder)
        whole_run(
            "its folder cannot be written",
            "a disk that is mounted to be read only",
            happened=lambda: "one line says so",
        )
        wandb.teardown()
    (line,) = warned
    assert "W&B is left out" in line and "Read-only" in line


def test_parts_of_an_offline_run(tmp_path, server, tell):
    """Each resume offline makes a folder of the same id, whose steps begin at 0."""
    for part in range(3):
        logger = WandbLogger(offline=True, id="one")
        for step in range(3 * part, 3 * part + 3):
            logger.log_metrics({"loss": 1.0 / (1 + step)}, step=step)
        wandb.finish()
        time.sleep(1.1)  # the names of the folders tell their order by the second
    assert len([*tmp_path.glob("wandb/offline-run-*-one")]) == 3
    command = [sys.executable, "-m", "wandb", "sync", "--yes"]
    subprocess.run(command, capture_output=True, check=True, timeout=60)
    steps = [(row["_step"], row["trainer/global_step"]) for row in server.history]
    assert steps == [(step, step) for step in range(9)]
    tell(
        "W&B: an offline run that was resumed twice",
        caused="three folders of one id, uploaded by `wandb sync` in the current folder",
        times=1,
        happened=f"one run with {len(steps)} rows, their steps from 0 to {steps[-1][0]}",
    )
