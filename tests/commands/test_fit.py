"""`litcam fit` from the first line to the last: the folder, resuming, validating, W&B's config."""

import csv
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import timm
import wandb
import yaml
from safetensors.torch import save_file

from litcam.commands.running import run_folder
from litcam.commands.running.of_seed import fill_in_seed
from litcam.train import main

OPTIONS = {
    "model": "Classifier",
    "model.backbone": "resnet10t",
    "model.backbone_args.channels": "[8,8,16,16]",
    "data": "SyntheticDataModule",
    "data.num_train": "64",
    "data.num_val": "32",
    "data.image_size": "32",
    "data.batch_size": "16",
    "trainer.max_epochs": "1",
    "trainer.accelerator": "cpu",
    "trainer.enable_progress_bar": "false",
}
TINY = [word for name, value in OPTIONS.items() for word in (f"--{name}", value)]
CONFIGS = Path(__file__).parents[2] / "configs"
OFFLINE = ["--trainer.logger.offline", "true"]


@pytest.fixture
def litcam(tmp_path, monkeypatch, capsys):
    """Runs the program in an empty folder, each time with a W&B run of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    for kind in ("DATA", "CACHE", "CONFIG"):
        monkeypatch.setenv(f"WANDB_{kind}_DIR", str(tmp_path / "wandb-own"))

    def litcam(*args):
        main(list(args))
        config = dict(wandb.run.config) if wandb.run else {}
        wandb.finish()
        return capsys.readouterr().out, config

    yield litcam
    wandb.finish()


def rows(folder):
    with (folder / "metrics.csv").open() as file:
        return list(csv.DictReader(file))


def test_a_run_its_resume_and_its_validation(litcam, tmp_path):
    out, config = litcam("fit", *TINY, *OFFLINE)
    first = tmp_path / "runs/fit/version_0"
    assert {path.name for path in first.iterdir()} >= {"config.yaml", "metrics.csv", "gradcam"}
    assert {path.name for path in (first / "checkpoints").iterdir()} >= {"last.ckpt"}
    assert list((first / "checkpoints").glob("best*.ckpt"))
    lines = out.strip().splitlines()[-4:]
    assert "of the validation images. Everything is in runs/fit/version_0" in lines[0]
    assert (tmp_path / lines[1].removeprefix("Where it looks: ")).is_file()
    assert (tmp_path / lines[2].removeprefix("Show the run: wandb leet ")).is_dir()
    assert lines[3] == "The whole run on one page: runs/fit/version_0/report.html"
    assert "torch: " in (first / "report.html").read_text()
    # The whole config, as it is in the file.
    assert config == yaml.safe_load((first / "config.yaml").read_text())

    run_id, before = (first / run_folder.WANDB_ID).read_text(), rows(first)
    litcam("fit", *TINY, *OFFLINE, "--ckpt_path", "last", "--trainer.max_epochs", "2")
    after = rows(first)
    assert after[: len(before)] == before
    assert len(after) == 2 * len(before)
    assert (first / run_folder.WANDB_ID).read_text() == run_id
    assert [path.name for path in first.parent.iterdir()] == ["version_0"]

    # What was kept starts a run of its own.
    litcam("fit", "--config", str(first / "config.yaml"), "--trainer.max_epochs", "1")
    second = tmp_path / "runs/fit/version_1"
    assert [row["val/loss"] for row in rows(second)] == [row["val/loss"] for row in before]
    assert (second / run_folder.WANDB_ID).read_text() != run_id

    # Weights are loaded: the numbers are those of the run's end.
    checkpoint = str(second / "checkpoints/last.ckpt")
    out, _ = litcam("validate", *TINY, *OFFLINE, "--ckpt_path", checkpoint)
    measured = rows(tmp_path / "runs/fit/validate/version_0")[0]
    assert float(measured["val/loss"]) == pytest.approx(float(before[0]["val/loss"]), abs=1e-5)
    assert "Right on" in out


def test_nothing_to_resume_starts_anew(litcam, tmp_path, caplog):
    off = ["--trainer.logger", "false"]
    litcam("fit", *TINY, *off, "--ckpt_path", "last")
    # Without a logger, everything lies in the current folder.
    assert (tmp_path / "config.yaml").exists()
    assert (tmp_path / "gradcam").is_dir()


def test_wandb_switched_off_has_no_address_to_show(litcam, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "disabled")
    out, _ = litcam("fit", *TINY)
    assert "Everything is in" in out and "None" not in out.splitlines()


def test_fast_dev_run_leaves_nothing(litcam, tmp_path):
    litcam("fit", *TINY, *OFFLINE, "--trainer.fast_dev_run", "true")
    assert not (tmp_path / "runs").exists()


def test_the_demo_says_where_its_pictures_are(litcam, tmp_path):
    small = ["--data.num_train", "64", "--data.num_val", "32", "--trainer.max_epochs", "1"]
    out, _ = litcam("demo", *small, "--trainer.enable_progress_bar", "false")
    *_, picture, place, page, _, pretraining = out.strip().splitlines()
    assert (tmp_path / page.removeprefix("The whole run on one page: ")).is_file()
    assert (tmp_path / picture.removeprefix("Where it looks: ")).is_file()
    assert (tmp_path / place.removeprefix("Show the run: wandb leet ")).is_dir()
    assert [run.name for run in (tmp_path / "runs").iterdir()] == ["demo"]
    assert len(list((tmp_path / "wandb").glob("offline-run-*"))) == 1
    # What the demo does not show, the command of its last line does.
    assert (CONFIGS / pretraining.rpartition("--config ")[2]).is_file()


@pytest.mark.slow
def test_ctrl_c_ends_calmly_and_last_goes_on(tmp_path):
    words = [*TINY, "--trainer.max_epochs", "100000", "--trainer.logger.offline", "true"]
    script = "import sys; from litcam.train import main; main(sys.argv[1:])"
    environment = {**os.environ, "WANDB_MODE": "offline"}
    with (tmp_path / "said").open("w") as said:
        program = [sys.executable, "-c", script, "fit", *words]
        process = subprocess.Popen(program, cwd=tmp_path, stdout=said, stderr=said, env=environment)
        last = tmp_path / "runs/fit/version_0/checkpoints/last.ckpt"
        deadline = time.monotonic() + 90
        while not last.exists() and time.monotonic() < deadline and process.poll() is None:
            time.sleep(0.2)
        process.send_signal(signal.SIGINT)
        try:
            process.wait(60)
        finally:
            process.kill()  # else it would train on beside all later tests
    text = (tmp_path / "said").read_text()
    assert last.exists(), text
    assert "Traceback" not in text
    assert "Stopped. To go on: litcam fit" in text
    assert text.count("--ckpt_path last") == 1
    assert rows(last.parents[1])


def test_weights_of_the_runs_own_seed(litcam, tmp_path):
    (tmp_path / "seed=3").mkdir()
    network = timm.create_model("resnet10t", channels=[8, 8, 16, 16], num_classes=0)
    save_file(network.state_dict(), tmp_path / "seed=3" / "encoder.safetensors")
    options = [*TINY, *OFFLINE, "--model.weights", "seed={seed}/encoder.safetensors"]
    _, config = litcam("fit", *options, "--seed_everything", "3")
    assert config["model"]["init_args"]["weights"] == "seed=3/encoder.safetensors"
    for unseeded in (False, True, None):
        given = {"model": {"init_args": {"weights": "{seed}"}}, "seed_everything": unseeded}
        with pytest.raises(ValueError, match=f"whole number as --seed_everything, got {unseeded}"):
            fill_in_seed(given)
