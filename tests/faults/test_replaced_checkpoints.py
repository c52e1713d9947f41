"""Checkpoints: replaced whole or not at all, and what is said of those that are damaged."""

import os
import pickle
import random
import shutil
import time
import zipfile
from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch
from safetensors.torch import save_file
from test_resume import diary
from tiny_runs import LAST, fit, rows, run_in, same_training

from litcam.lightning_modules.atomic_checkpoints import (
    AtomicCheckpointIO,
    read_checkpoint,
    save_atomically,
)

pytest_plugins = ["whole_runs"]


@pytest.fixture
def elsewhere(tmp_path):
    """A folder for temporary files on another file system."""
    place = Path("/dev/shm", f"litcam-{os.getpid()}")
    shared = place.parent
    if not os.access(shared, os.W_OK) or shared.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip(f"{shared} is not another file system here")
    place.mkdir()
    yield str(place)
    shutil.rmtree(place)


@pytest.mark.timeout(400)
def test_kills_while_a_checkpoint_is_replaced(forking, tmp_path, tell, elsewhere):
    chance, times, partial = random.Random(0), 30, 0
    kept = []
    for number in range(times):
        folder = tmp_path / str(number)
        words = [str(folder), True]
        child = forking.start(words, folder, call="saving:save", TMPDIR=elsewhere)
        assert child.wait_for((folder / "saved").exists)
        until = time.monotonic() + chance.uniform(0, 0.15)
        child.wait_for(lambda until=until: time.monotonic() > until)
        child.kill()
        assert child.wait() == -9
        values = torch.load(folder / "last.ckpt")["state_dict"]["number"].unique().tolist()
        assert len(values) == 1 and values[0] >= int((folder / "saved").read_text() or 0)
        kept.append(values[0])
        partial += (folder / "last.ckpt.partial").exists()
        shutil.rmtree(folder)
    assert partial
    tell(
        "killed while `last.ckpt` is replaced, TMPDIR on another file system",
        caused=f"SIGKILL at seeded random moments of a training that only saves 16 MB; {partial} "
        "of them half way through a file",
        times=times,
        happened="the checkpoint before or the new one, whole",
    )


@pytest.mark.parametrize("strategy", ["auto", "ddp", "fsdp2"])
def test_it_is_there_with_every_strategy(strategy, recwarn):
    trainer = pl.Trainer(accelerator="cpu", strategy=strategy, devices=1, logger=False)
    save_atomically(trainer)
    assert type(trainer.strategy.checkpoint_io) is AtomicCheckpointIO


@pytest.mark.timeout(400)
def test_kills_in_the_validation_after_a_checkpoint_of_steps(forking, root, whole, tmp_path, tell):
    stop = ["--trainer.callbacks+=resumed_run.Stop", "--trainer.callbacks.how=SIGKILL"]
    stop += ["--trainer.callbacks.where=validation", "--trainer.callbacks.batch=0"]
    stop += ["--trainer.callbacks.epoch=1"]
    kinds = [(6, 2), (6, 3), (3, 2)]
    for every, times in kinds:
        folder = tmp_path / f"{every}-{times}"
        words = fit(root, *LAST, every=every)
        for _ in range(times):
            done = forking.run([*words, *stop], folder)
            assert done.code == -9, done.said
        done = forking.run(words, folder)
        assert done.code == 0, done.said
        assert same_training(folder, whole)
        assert diary(folder) == diary(whole) and diary(folder, "val") == diary(whole, "val")
        assert rows(folder) == rows(whole)
    tell(
        "killed in a validation, with a checkpoint of the step before it",
        caused="SIGKILL in the validation of the second epoch, two and three times in a row; "
        "`every_n_train_steps` divides the epoch of 6 steps",
        times=sum(times for _, times in kinds),
        happened="that validation is made up for, once; as many steps as without, weights bitwise",
    )


class Evil:
    """Runs a command where it is unpickled."""

    def __reduce__(self):
        return (os.system, ("touch evil-was-here",))


def truncate(file, chance):
    file.write_bytes(file.read_bytes()[: chance.randrange(1, file.stat().st_size)])


def flip(file, chance):
    """One bit of a tensor."""
    with zipfile.ZipFile(file) as archive:
        largest = max(archive.infolist(), key=lambda each: each.file_size)
    data = bytearray(file.read_bytes())
    start = largest.header_offset + 512
    data[start + chance.randrange(largest.file_size // 2)] ^= 1 << chance.randrange(8)
    file.write_bytes(data)


def evil(file, chance):
    torch.save({"state_dict": {}, "loops": Evil()}, file)


DAMAGES = {
    "truncated": (truncate, "is damaged"),
    "empty": (lambda file, chance: file.write_bytes(b""), "is empty"),
    "a bit of a tensor flipped": (flip, "is damaged"),
    "text": (lambda file, chance: file.write_text("Not Found"), "is damaged, or no checkpoint"),
    "a pickle that runs a command": (evil, "may run code and is not called"),
    "a plain such pickle": (
        lambda file, chance: file.write_bytes(pickle.dumps(Evil(), 2)),
        "may run code and is not called",
    ),
    "another archive": (lambda file, chance: _archive(file), "is damaged"),
    "safetensors": (lambda file, chance: save_file({"a": torch.zeros(3)}, file), "no checkpoint"),
    "a dictionary": (lambda file, chance: torch.save({"a": 1}, file), "no checkpoint of a run"),
    "a list": (lambda file, chance: torch.save([1], file), "no checkpoint of a run"),
    "weights only": (
        lambda file, chance: torch.save({"state_dict": {"a": torch.zeros(3)}}, file),
        "holds weights only",
    ),
    "a folder": (lambda file, chance: (file.unlink(), file.mkdir()), "is a folder"),
    "noise": (lambda file, chance: file.write_bytes(chance.randbytes(9000)), "is damaged"),
}


def _archive(file):
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("a.txt", "a")


@pytest.mark.timeout(400)
def test_damaged_checkpoints_are_one_line(forking, root, whole, tmp_path, tell):
    chance = random.Random(0)
    for kind, (damage, said) in DAMAGES.items():
        folder = tmp_path / kind.replace(" ", "-")
        shutil.copytree(run_in(whole), folder / "runs/fit/version_0")
        last = folder / "runs/fit/version_0/checkpoints/last.ckpt"
        damage(last, chance)
        before = (folder / "runs/fit/version_0/metrics.csv").read_bytes()
        asked = str(last.relative_to(folder)) if kind == "a folder" else "last"
        words = fit(root, "--ckpt_path", asked, **{"trainer.max_epochs": 4})
        done = forking.run(words, folder)
        assert done.code == 2, done.said
        assert "Traceback" not in done.said
        line = done.said.strip().splitlines()[-1]
        assert line.startswith("litcam: ") and said in line and "last.ckpt" in line, line
        if said != "holds weights only" and kind != "a folder":
            assert line.endswith("best-epoch=000.ckpt"), line
            assert "--ckpt_path runs/fit/version_0/checkpoints/best" in line
        assert not (folder / "evil-was-here").exists()
        assert (folder / "runs/fit/version_0/metrics.csv").read_bytes() == before
    tell(
        "a damaged `last.ckpt`",
        caused=", ".join(DAMAGES),
        times=len(DAMAGES),
        happened="one line that names it and the newest other checkpoint of the run; no code in it "
        "is run; exit code 2",
        lost="what came after that other checkpoint",
    )


def test_truncated_anywhere(whole, tmp_path, fuzz, tell):
    chance, data = random.Random(0), (run_in(whole) / "checkpoints/last.ckpt").read_bytes()
    file = tmp_path / "last.ckpt"
    for _ in range(fuzz):
        file.write_bytes(data[: chance.randrange(len(data))])
        with pytest.raises(ValueError, match=r"damaged|empty") as error:
            read_checkpoint(file)
        assert "\n" not in str(error.value)
    tell(
        "a checkpoint cut off anywhere",
        caused="cut at seeded random bytes",
        times=fuzz,
        happened="one line",
        lost="what came after the newest other checkpoint",
    )
