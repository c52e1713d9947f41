"""Every test alone: its own working directory, no W&B settings of the machine, one seed."""

import logging
import os
import sys
from pathlib import Path

# Its console handler keeps the stderr of its first import, which must outlive a single test.
import lightning.pytorch  # noqa: F401
import pytest
import torch

CALM = (
    # Tests load a handful of images: worker processes would take longer than the work.
    "ignore:The '.*_dataloader' does not have many workers",
    "ignore:Your `val_dataloader`'s sampler has shuffling enabled",
    "ignore:Checkpoint directory .* exists and is not empty",
)

# `litcam demo` and the command line calm these down for their process.
LOGGERS = (
    "lightning.pytorch",
    "lightning.pytorch.callbacks.litcam",
    "lightning.pytorch.utilities.rank_zero",
)


def pytest_addoption(parser):
    parser.addoption("--fuzz", type=int, default=300, help="inputs of a kind in tests/faults")
    parser.addoption("--soak", type=int, default=30, help="epochs of the long run there")
    parser.addoption("--reliability_page", default="", help="file whose table of faults to write")


def pytest_configure(config):
    for line in CALM:
        config.addinivalue_line("filterwarnings", line)


@pytest.fixture(autouse=True)
def alone(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    # seed_everything leaves the seed in the environment.
    for name in {
        "PL_GLOBAL_SEED",
        "WANDB_MODE",
        "WANDB_DIR",
        *(n for n in os.environ if n.startswith("WANDB_")),
    }:
        # Set first, so that what a test leaves there (Lightning's offline=True) is undone as well.
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path / "wandb-config"))
    monkeypatch.setenv("NETRC", str(tmp_path / "no-netrc"))
    torch.manual_seed(0)
    # Threads that wait for each other cost more than these tiny networks.
    torch.set_num_threads(1)
    loggers = [logging.getLogger(name) for name in LOGGERS]
    before = [(logger.level, list(logger.filters)) for logger in loggers]
    yield
    for logger, (level, filters) in zip(loggers, before, strict=True):
        logger.setLevel(level)
        logger.filters = filters
    if "wandb" in sys.modules:
        import wandb

        wandb.finish()
        # The settings are read once for each process, and teardown forgets them.
        wandb.teardown()


@pytest.fixture
def photos():
    """Real photos of cats and dogs, in class folders under `train` and `val`."""
    folder = os.environ.get("LITCAM_TEST_DATA", "")
    if not folder:
        pytest.skip("LITCAM_TEST_DATA is not set: no real photos here")
    return Path(folder) / "pets"


@pytest.fixture
def said():
    """What litcam's callbacks say, line by line."""
    yield from _keep_lines(logging.NOTSET)


@pytest.fixture
def warned():
    """What litcam's callbacks warn of, line by line."""
    yield from _keep_lines(logging.WARNING)


def _keep_lines(level):
    lines = []

    class Keep(logging.Handler):
        def emit(self, record):
            lines.append(record.getMessage())

    keep, logger = Keep(level), logging.getLogger("lightning.pytorch.callbacks.litcam")
    logger.addHandler(keep)
    yield lines
    logger.removeHandler(keep)
