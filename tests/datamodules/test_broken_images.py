"""Images that cannot be read: named and counted in training, the end of a validation."""

import errno
import logging

import numpy as np
import pytest
import torch
from PIL import Image

from litcam.datamodules import ImageNetDataModule
from litcam.datamodules.convert import convert
from litcam.datamodules.sources.dataset import Draw

COUNT = 12


@pytest.fixture
def root(tmp_path):
    generator = np.random.default_rng(0)
    for split in ("train", "val"):
        for name in ("cat", "dog"):
            folder = tmp_path / "photos" / split / name
            folder.mkdir(parents=True)
            for number in range(COUNT // 2):
                pixels = generator.integers(0, 256, (20, 24, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f"{number}.jpg")
    return tmp_path / "photos"


def load(root, split="train", **options):
    data = ImageNetDataModule(root, 4, num_workers=0, image_size=16, **options)
    data.setup("fit")
    return getattr(data, f"{split}_dataloader")()


def truncated(path):
    path.write_bytes(path.read_bytes()[:200])


def emptied(path):
    path.write_bytes(b"")


def vanished(path):
    path.unlink()


@pytest.mark.parametrize("damage", [truncated, emptied, vanished])
def test_a_broken_image_is_named_once_and_its_place_taken(root, caplog, damage):
    loader = load(root)
    damage(root / "train/dog/3.jpg")
    broken = loader.dataset.keys.index("dog/3.jpg")
    with caplog.at_level(logging.WARNING, "lightning.pytorch.litcam"):
        for epoch in range(3):
            loader.sampler.set_epoch(epoch)
            seen = [index for batch in loader for index in batch["index"].tolist()]
            assert len(seen) == COUNT
            assert broken not in seen
            assert len(set(seen)) == COUNT - 1
    (record,) = caplog.records
    assert "broken image 1 of at most 10" in record.message
    assert "train/dog/3.jpg" in record.message
    assert "\n" not in record.message


@pytest.mark.parametrize("max_broken", [0, 2])
def test_one_more_than_allowed_ends_the_run(root, max_broken):
    loader = load(root, max_broken=max_broken)
    for number in range(max_broken + 1):
        truncated(root / f"train/cat/{number}.jpg")
    with pytest.raises(ValueError, match=rf"train/cat/\d.jpg.*max_broken={max_broken}"):
        list(loader)


def test_a_batch_of_nothing_but_broken_images_ends_the_run(root):
    loader = load(root, max_broken=100)
    for path in (root / "train").rglob("*.jpg"):
        truncated(path)
    with pytest.raises(ValueError, match="not one image of a training batch"):
        list(loader)


@pytest.mark.parametrize("damage", [truncated, vanished])
def test_validation_never_goes_on_with_fewer(root, damage):
    loader = load(root, "val")
    damage(root / "val/cat/0.jpg")
    with pytest.raises(ValueError, match=r"val/cat/0.jpg"):
        list(loader)


@pytest.mark.parametrize("split", ["train", "val"])
def test_a_damaged_chunk_is_named_and_never_skipped(root, tmp_path, split):
    convert(root, tmp_path / "shards", chunk_bytes=3000, say=lambda line: None)
    chunk = tmp_path / f"shards/{split}/chunk-0-1.bin"
    data = bytearray(chunk.read_bytes())
    data[-50] ^= 1
    chunk.write_bytes(data)
    with pytest.raises(OSError, match=r"chunk-0-1.bin is damaged.*litcam convert --check"):
        list(load(tmp_path / "shards", split))


def test_a_disk_that_fails_is_no_broken_image(root, monkeypatch):
    loader = load(root)

    def fail(index):
        raise OSError(errno.EIO, "Input/output error", loader.dataset.place(index))

    monkeypatch.setattr(loader.dataset, "read", fail)
    with pytest.raises(OSError, match=r"Input/output error.*train"):
        list(loader)


def test_shards_and_folders_hold_the_same(root, tmp_path):
    (root / "train/axolotl").mkdir()  # empty: the numbers of the others must not shift
    with pytest.warns(UserWarning, match="axolotl"):
        convert(root, tmp_path / "shards", chunk_bytes=3000, say=lambda line: None)
    for split in ("train", "val"):
        with pytest.warns(UserWarning, match="axolotl"):
            one = load(root, split).dataset
        other = load(tmp_path / "shards", split).dataset
        assert one.keys == other.keys
        assert one.classes == other.classes == ["axolotl", "cat", "dog"]
        assert one.labels.tolist() == other.labels.tolist()
        for index in range(len(one)):
            assert one.read(index) == other.read(index)
            draw = Draw(index, 5)  # the same random crop
            assert torch.equal(one[draw]["image"], other[draw]["image"])
