"""What a killed process leaves in the temporary folder."""

import multiprocessing
import os
import signal
import tempfile
import time

import pytest
from apart import begin, end
from data_sets import write_photos

from litcam.datamodules import ImageNetDataModule

KILLS = 10


@pytest.fixture
def scratch(tmp_path, monkeypatch):
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    return tmp_path / "tmp"


def folders(scratch):
    return sorted(path.name for path in scratch.glob("litcam-*"))


def open_train(root, **options):
    data = ImageNetDataModule(root, 4, image_size=16, **options)
    data.setup("fit")
    return data


def read_one(dataset, queue):
    queue.put(dataset.read(3))


def test_killed_processes_leave_nothing_that_piles_up(tmp_path, scratch, tell):
    root = write_photos(tmp_path / "photos")
    living = open_train(root, num_workers=0).train_dataloader().dataset
    own = folders(scratch)
    assert own

    def train():
        loader = open_train(root, num_workers=2).train_dataloader()
        for number in range(1000):
            for _ in loader:
                (tmp_path / "running").write_text(str(number))

    for _ in range(KILLS):
        (tmp_path / "running").unlink(missing_ok=True)
        child, said = begin(train)
        while not (tmp_path / "running").exists():
            assert os.waitpid(child, os.WNOHANG) == (0, 0), said.read_text()
            time.sleep(0.01)
        os.killpg(child, signal.SIGKILL)
        assert end(child) == -signal.SIGKILL
        left = set(folders(scratch)) - set(own)
        assert len(left) <= 2  # of this one alone: of training and validation
    open_train(root, num_workers=0)
    assert folders(scratch)[: len(own)] == own or set(own) <= set(folders(scratch))

    # Meanwhile nobody took the lists of those that live, and a spawned process finds them.
    context = multiprocessing.get_context("spawn")
    queue = context.SimpleQueue()
    process = context.Process(target=read_one, args=(living, queue))
    process.start()
    assert queue.get() == living.read(3)
    process.join()
    tell(
        "a run is killed: what it leaves in TMPDIR",
        caused="SIGKILL of a process and its workers in the middle of an epoch",
        times=KILLS,
        happened="its lists of images, which the next start removes; those of runs that live are "
        "left alone",
    )
