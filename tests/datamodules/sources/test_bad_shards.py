"""Shards and folders that are not what they should be: one line, no traceback, no wrong image."""

import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from litcam.datamodules import ImageNetDataModule
from litcam.datamodules.convert import convert
from litcam.datamodules.shard_format import as_text


def write(root, count=6):
    generator = np.random.default_rng(0)
    for split in ("train", "val"):
        for name in ("cat", "dog"):
            folder = root / split / name
            folder.mkdir(parents=True)
            for number in range(count):
                pixels = generator.integers(0, 256, (20, 24, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f"{number}.jpg")
    return root


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    root = tmp_path_factory.mktemp("made")
    convert(write(root / "photos"), root / "shards", chunk_bytes=3000, say=lambda line: None)
    return root


@pytest.fixture
def shards(made, tmp_path):
    subprocess.run(["cp", "-r", made / "shards", tmp_path / "shards"], check=True)
    return tmp_path / "shards"


def open_all(root):
    data = ImageNetDataModule(root, 4, num_workers=0, image_size=16)
    data.setup("fit")
    for loader in (data.train_dataloader(), data.val_dataloader()):
        dataset = loader.dataset
        list(map(dataset.read, range(len(dataset))))
    return data


def refused(root):
    with pytest.raises((ValueError, OSError)) as caught:
        open_all(root)
    assert "\n" not in str(caught.value)
    module = caught.traceback[-1].frame.f_globals["__name__"]
    assert module.startswith("litcam."), caught.value
    return str(caught.value)


def said(root, change):
    """Has the manifest say something else, with the hash that belongs to it."""
    file = root / "litcam.json"
    manifest = json.loads(file.read_text())
    change(manifest, manifest["splits"]["train"])
    manifest.pop("xxh64", None)
    file.write_text(as_text(manifest))
    return refused(root)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda all_, at: all_.update(format=1), "earlier litcam; convert again"),
        (lambda all_, at: all_.update(format=99), "later litcam .*; upgrade litcam"),
        (lambda all_, at: at.update(num_images=3), "has 3 images, its chunks 12"),
        (lambda all_, at: at["chunks"][0].update(file="../../x"), "'../../x', which is none of"),
        (lambda all_, at: at["chunks"][0].update(file="/etc/passwd"), "which is none of its"),
        (lambda all_, at: at["chunks"][0].update(num_bytes=-1), "size or hash"),
        (lambda all_, at: at["files"].pop("offset.npy"), "does not have the files"),
        (lambda all_, at: all_["splits"].update({"../x": at}), "none of train, val, test"),
        (lambda all_, at: at.update(chunks=[None]), "lacks what it should say"),
    ],
)
def test_a_manifest_that_says_what_cannot_be(shards, change, words):
    import re

    assert re.search(words, said(shards, change))


def with_column(root, name, change):
    """Changes a column, and has the manifest know it."""
    import xxhash

    file = root / f"train/{name}.npy"
    column = np.load(file)
    change(column)
    np.save(file, column)
    sound = {
        "num_bytes": file.stat().st_size,
        "xxh64": xxhash.xxh64(file.read_bytes()).hexdigest(),
    }
    return said(root, lambda all_, at: at["files"].update({f"{name}.npy": sound}))


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("offset", -5, "numbers below 0"),
        ("offset", 10**9, "beyond the end of"),
        ("length", 3000, "beyond the end of|over each other"),
        ("labels", 99, "none of the 2"),
        ("chunk", 77, "a chunk that is none of"),
        ("images", 5, "an image twice"),
        ("key_ends", -1, "does not part"),
    ],
)
def test_a_column_that_says_what_cannot_be(shards, name, value, words):
    import re

    def change(column):
        column[-2] = value

    message = with_column(shards, name, change)
    assert re.search(words, message) and "convert again" in message


@pytest.mark.slow
def test_flipped_and_truncated_small_files(made, tmp_path):
    sound = {
        split: [open_all(made / "shards").source.open(split, None).read(i) for i in range(12)]
        for split in ("train", "val")
    }
    generator = np.random.default_rng(0)
    files = sorted(
        at.relative_to(made / "shards")
        for at in (made / "shards").rglob("*")
        if at.suffix in (".npy", ".json") and at.name != "index.json"
    )
    outcomes = {"refused": 0, "the same": 0}
    for number in range(300):
        root = tmp_path / str(number)
        subprocess.run(["cp", "-r", made / "shards", root], check=True)
        file = root / files[number % len(files)]
        data = bytearray(file.read_bytes())
        if number % 3 == 0:
            data = data[: int(generator.integers(0, len(data)))]
        else:
            data[int(generator.integers(0, len(data)))] ^= 1 << int(generator.integers(0, 8))
        file.write_bytes(data)
        try:
            data, line = open_all(root), ""
        except (ValueError, OSError) as error:
            data, line = None, str(error)
        assert "\n" not in line
        outcomes["refused" if line else "the same"] += 1
        for split, expected in sound.items() if data else ():
            dataset = data.source.open(split, None)
            assert [dataset.read(i) for i in range(12)] == expected
        subprocess.run(["rm", "-r", root], check=True)
    assert outcomes["refused"] > 280


def test_a_chunk_that_changes_under_a_running_job(shards):
    data = open_all(shards)
    dataset = data.source.open("train", None)
    dataset.read(0)
    chunk = Path(dataset.place(0).partition(".bin:")[0] + ".bin")
    chunk.write_bytes(bytes(chunk.stat().st_size))
    os.utime(chunk, (1, 1))
    with pytest.raises(OSError, match=r"chunk-0-\d+.bin is damaged.*; copy it again"):
        dataset.read(0)


def test_a_link_in_a_circle_ends(made, tmp_path):
    root = write(tmp_path / "photos")
    (root / "train/cat/again").symlink_to(root / "train")
    (root / "train/dog/self").symlink_to(root / "train/dog")
    data = ImageNetDataModule(root, 4, num_workers=0, image_size=16)
    data.setup("fit")
    keys = list(data.train_dataloader().dataset.keys)
    assert len(keys) == len(set(keys)) < 40
    assert keys[:6] == [f"cat/{number}.jpg" for number in range(6)]


def test_an_address_that_became_a_path(tmp_path):
    # Path makes one slash of two.
    with pytest.raises(ValueError, match=r"s4:/+bucket/x is neither a folder nor one of s3://"):
        ImageNetDataModule(Path("s4://bucket/x"), cache_dir=tmp_path)


def test_datasets_are_sent_to_workers_by_the_places_of_their_files(made):
    for root in ("photos", "shards"):
        data = ImageNetDataModule(made / root, 4, num_workers=0, image_size=16)
        data.setup("fit")
        dataset = data.train_dataloader().dataset
        sent = pickle.dumps(dataset)
        assert len(sent) < 20_000
        other = pickle.loads(sent)
        assert list(other.keys) == list(dataset.keys)
        assert other.read(3) == dataset.read(3)
        assert other.fingerprint == dataset.fingerprint


@pytest.mark.slow
def test_reading_needs_no_file_locks_of_this_system():
    code = (
        "import sys; sys.modules['fcntl'] = None\n"
        "import litcam.datamodules.imagenet, litcam.datamodules.sources.shards\n"
        "assert not [name for name in sys.modules if 'datamodules.convert' in name]"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, timeout=120)
