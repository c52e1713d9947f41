"""Devices, pipes and sockets where a file is expected: a line, and no reading without end."""

import os
import shutil
import socket
import warnings

import pytest
from apart import litcam, outcomes
from damage import encoded
from data_sets import pack, read_all, refusal, samples, write_photos

from litcam.commands.explaining.stored import read_network
from litcam.datamodules.convert import check, convert
from litcam.datamodules.convert.inputs import open_source
from litcam.datamodules.files import LARGEST

SECONDS = 20


def device(place):
    place.symlink_to("/dev/zero")


def pipe(place):
    os.mkfifo(place)


def sock(place):
    here = os.open(".", os.O_RDONLY)
    os.chdir(place.parent)  # a socket's path may have a hundred letters
    socket.socket(socket.AF_UNIX).bind(place.name)
    os.chdir(here)
    os.close(here)


def huge(place):
    with place.open("wb") as file:
        file.truncate(LARGEST + 1)


KINDS = {"device": device, "pipe": pipe, "socket": sock, "file of a gigabyte": huge}


def train_on_a_photo(root, put):
    write_photos(root)
    place = root / "val/cat/0.jpg"
    place.unlink()
    put(place)
    return refusal(read_all, root)


def read_classes(root, put):
    for split in ("train", "val"):
        pack(root / f"{split}.tar", samples())
    put(root / "classes.txt")
    return refusal(open_source, root, root)


def read_tar(root, put):
    pack(root / "val.tar", samples())
    put(root / "train.tar")
    return refusal(open_source, root, root)


def read_parquet(root, put):
    root.mkdir()
    for split in ("train", "val"):
        put(root / f"{split}.parquet")
    return refusal(open_source, root, root)


def read_csv(root, put):
    write_photos(root)
    shutil.rmtree(root / "val")
    (root / "val").mkdir()
    (root / "val/x.jpg").write_bytes(encoded("JPEG"))
    put(root / "LOC_val_solution.csv")
    return refusal(read_all, root)


def read_manifest(root, put):
    convert(write_photos(root / "photos"), root / "shards", say=lambda line: None)
    (root / "shards/litcam.json").unlink()
    put(root / "shards/litcam.json")
    assert refusal(check, root / "shards")
    return refusal(read_all, root / "shards")


def read_plan(root, put):
    write_photos(root / "photos")
    (root / "out.partial").mkdir()
    put(root / "out.partial/plan.json")
    return refusal(convert, root / "photos", root / "out")


def read_model(root, put):
    root.mkdir()
    put(root / "last.ckpt")
    return refusal(read_network, root / "last.ckpt")


PLACES = [
    *(train_on_a_photo, read_classes, read_tar, read_parquet, read_csv, read_manifest, read_plan),
    read_model,
]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes with names on this system")
def test_where_a_file_is_expected(tmp_path, tell):
    def work(case):
        place, kind = case
        warnings.simplefilter("ignore")  # a socket that is not closed
        line = place(tmp_path / f"{place.__name__}-{kind.split()[0]}", KINDS[kind])
        return "refused" if line else "not refused"

    cases = [
        (place, kind)
        for place in PLACES
        for kind in KINDS
        # A socket or a pipe of that name is as good as none: what is said is that there is none.
        if not (kind == "file of a gigabyte" and place in (read_tar, read_parquet, read_model))
    ]
    said = outcomes(work, cases, seconds=SECONDS)
    assert not [pair for pair in zip(cases, said, strict=True) if pair[1] != "refused"]

    photos = [tmp_path / f"{name.split()[0]}.jpg" for name in KINDS]
    for place, put in zip(photos, KINDS.values(), strict=True):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            put(place)
    (tmp_path / "good.png").write_bytes(encoded("PNG"))
    paths = ["/dev/zero", *photos, tmp_path / "good.png"]
    code, text = litcam("explain", *paths, "--models", "resnet10t", "--device", "cpu")
    assert code == 0, text
    assert len([line for line in text.splitlines() if line.startswith("left out: ")]) == 5, text
    tell(
        "a device, a pipe, a socket or a huge file where a file is expected",
        caused="`/dev/zero`, a pipe without a writer, a socket, a file of a gigabyte as photo, "
        "list of classes, csv, tar, parquet, manifest, plan, model, and photo of `litcam explain`",
        times=len(cases) + len(paths) - 1,
        happened="refused in a line, or left out by `explain`; nothing is read without end",
    )
