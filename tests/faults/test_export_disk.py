"""`litcam export` onto a full disk: one line, what was there stays, nothing half is left."""

import shutil
from functools import partial
from pathlib import Path

import pytest
import torch
from disks import small_disk
from outcomes import outcome

from litcam.lightning_modules import Classifier
from litcam.train import main


@pytest.fixture
def checkpoint():
    torch.manual_seed(0)
    module = Classifier("test_resnet", 3)
    stored = {"state_dict": module.state_dict(), "hyper_parameters": dict(module.hparams)}
    torch.save(stored, "a.ckpt")
    return "a.ckpt"


def everything(folder):
    return {path: path.is_file() and path.read_bytes() for path in folder.rglob("*")}


def test_export_onto_a_full_disk(checkpoint, tmp_path, tell):
    main(["export", checkpoint, "--out", "whole"])
    size = sum(path.stat().st_size for path in Path("whole").iterdir())
    times = 0
    with small_disk(tmp_path / "disk", 4 * size) as disk:
        main(["export", checkpoint, "--out", str(disk / "older")])
        filler = disk / "filler"
        # Room for nothing, for a part of the weights, and for the weights but not for their config.
        for room in (0, size // 2, size // 4096 * 4096):
            filler.write_bytes(b"")
            filler.write_bytes(bytes(shutil.disk_usage(disk).free - room))
            before = everything(disk)
            for words in (["older", "--overwrite"], ["newer"]):
                out = [str(disk / words[0]), *words[1:]]
                said = outcome(partial(main, ["export", checkpoint, "--out", *out]), seconds=60)
                assert "No space left on device" in said or "os error 28" in said, said
                assert everything(disk) == before
                times += 1
    tell(
        "`litcam export` onto a full disk",
        caused="a tmpfs with room for nothing, half of the weights, the weights alone",
        times=times,
        happened="one line and exit code 2; an older export is as it was, of the new one nothing",
    )
