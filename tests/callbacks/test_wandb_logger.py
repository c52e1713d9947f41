"""W&B without a key, and with a look-alike of its server; its troubles are in tests/faults."""

import os
import time
from pathlib import Path

import pytest
import wandb
from strangers import Stranger, make_trainer
from wandb_server import Server

from litcam.callbacks import GradCAM, WandbLogger


def assert_offline(said, seconds, **kwargs):
    start = time.monotonic()
    run = WandbLogger(**kwargs).experiment
    assert time.monotonic() - start < seconds
    folder = Path(run.dir).parent
    assert run.settings._offline and folder.name.startswith("offline-run-")
    (line,) = said
    assert f"`wandb leet {folder}`" in line and f"`wandb sync {folder}`" in line
    assert "WANDB_MODE" not in os.environ
    return line


def test_no_key(said):
    assert "no API key" in assert_offline(said, 8)


def test_asked_for(said):
    assert "asked for" in assert_offline(said, 8, offline=True)


def test_settings_of_the_user_hold():
    logger = WandbLogger(offline=True, settings=wandb.Settings(run_notes="mine", finish_timeout=7))
    settings = logger.experiment.settings
    assert settings.run_notes == "mine" and settings.finish_timeout == 7


@pytest.fixture
def server(monkeypatch):
    server = Server()
    monkeypatch.setenv("WANDB_API_KEY", "k" * 40)
    monkeypatch.setenv("WANDB_BASE_URL", server.url)
    yield server
    server.close()


def test_online_run_arrives(server, said):
    logger = WandbLogger(finish_timeout=20)
    make_trainer(GradCAM(), logger=logger).fit(Stranger())
    assert "live" in said[0]
    wandb.finish()
    records = [line for line in server.history if "val/gradcam/true" in line]
    assert [line["epoch"] for line in records] == [0, 1]
    for line in records:
        for name in line["val/gradcam/true"]["filenames"]:
            (body,) = (body for path, body in server.images.items() if path.endswith(name))
            assert body.startswith(b"\xff\xd8") and len(body) > 1000
