import json
import os
import shutil
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
import xxhash
from litdata import StreamingDataset
from litdata.streaming.writer import BinaryWriter
from PIL import Image
from test_inputs import write_parquet, write_tars

from litcam.datamodules.convert import convert
from litcam.datamodules.convert.inputs import open_source
from litcam.datamodules.convert.litdata import Item, index_of, write_items
from litcam.datamodules.convert.manifest import check
from litcam.datamodules.pixels.decode import decode
from litcam.datamodules.shard_format import as_text
from litcam.datamodules.sources.folders import FolderDataset

# About four of the images below.
SMALL = 4000


def write_tree(root: Path, *, classes: int = 3, train: int = 6, val: int = 2) -> Path:
    rng = np.random.default_rng(0)
    for split, count in (("train", train), ("val", val)):
        for name in range(classes):
            folder = root / split / f"n{name:03d}"
            folder.mkdir(parents=True)
            for number in range(count):
                pixels = rng.integers(0, 256, (16 + number, 20, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f"{number}.JPEG", quality=90)
    return root


def write_kaggle(root: Path) -> Path:
    write_tree(root / "tree", val=2)
    base = root / "ILSVRC" / "Data" / "CLS-LOC"
    (base / "val").mkdir(parents=True)
    (root / "tree/train").rename(base / "train")
    rows = ["ImageId,PredictionString"]
    for place in (root / "tree/val").glob("*/*.JPEG"):
        name = f"ILSVRC2012_val_{place.stem}{place.parent.name}"
        place.rename(base / "val" / f"{name}.JPEG")
        rows.append(f"{name},{place.parent.name} 1 2 3 4 ")
    shutil.rmtree(root / "tree")
    (root / "LOC_val_solution.csv").write_text("\n".join(rows) + "\n")
    return root


@pytest.fixture
def tree(tmp_path):
    return write_tree(tmp_path / "photos")


class Shards:
    """The format read as DESIGN describes it, and by nothing of litcam."""

    def __init__(self, root, split):
        self.folder = root / split
        self.about = json.loads((root / "litcam.json").read_text())["splits"][split]
        self.arrays = {at.stem: np.load(at) for at in self.folder.glob("*.npy")}
        text, starts = self.arrays["key_bytes"].tobytes(), [0, *self.arrays["key_ends"]]
        self.keys = [text[a:b].decode() for a, b in pairwise(starts)]
        self.labels = self.arrays["labels"].tolist()

    def read(self, index):
        number, offset, length = (int(self.arrays[x][index]) for x in ("chunk", "offset", "length"))
        data = (self.folder / f"chunk-0-{number}.bin").read_bytes()
        return data[offset : offset + length]

    def stored_order(self):
        order = np.lexsort((self.arrays["offset"], self.arrays["chunk"])).tolist()
        assert order == self.arrays["images"].tolist()
        return order


def files(root):
    return {str(at.relative_to(root)): at.read_bytes() for at in root.rglob("*") if at.is_file()}


def assert_equal_to_source(dst, src, scratch):
    for split, source in open_source(src, scratch).items():
        shards = Shards(dst, split)
        assert shards.keys == list(source.keys)
        assert shards.labels == source.labels.tolist()
        assert [shards.read(i) for i in range(len(source))] == [
            source.read(i) for i in range(len(source))
        ]


@pytest.mark.parametrize("write", [write_tree, write_kaggle])
def test_the_bytes_of_folders_and_the_order_of_the_folder_dataset(tmp_path, write):
    src = write(tmp_path / "src")
    manifest = convert(src, tmp_path / "dst", chunk_bytes=SMALL)
    assert_equal_to_source(tmp_path / "dst", src, tmp_path)
    base = src if write is write_tree else src / "ILSVRC/Data/CLS-LOC"
    same = FolderDataset(base / "train", manifest["classes"], transform=lambda image: image)
    shards = Shards(tmp_path / "dst", "train")
    assert (shards.keys, shards.labels) == (same.keys, same.labels.tolist())
    assert shards.read(0) == (base / "train" / shards.keys[0]).read_bytes()
    assert manifest["splits"]["train"]["class_counts"] == [6, 6, 6]
    assert len(manifest["splits"]["train"]["chunks"]) > 2


@pytest.mark.parametrize("kind", ["tars", "parquet"])
def test_the_bytes_of_tars_and_parquet(tmp_path, kind):
    src = {"tars": write_tars, "parquet": write_parquet}[kind](tmp_path / "src")
    convert(src, tmp_path / "dst", chunk_bytes=SMALL)
    assert_equal_to_source(tmp_path / "dst", src, tmp_path / "scratch")
    assert not (tmp_path / "dst/unpacked").exists()
    check(tmp_path / "dst")


def test_litdata_reads_it_without_pyarrow_and_changes_nothing(tree, tmp_path):
    convert(tree, tmp_path / "dst", chunk_bytes=SMALL)
    before = files(tmp_path / "dst")
    shards = Shards(tmp_path / "dst", "train")
    expected = [(shards.keys[i], shards.labels[i], shards.read(i)) for i in shards.stored_order()]
    found = StreamingDataset(str(tmp_path / "dst/train"))
    assert [(s["key"], s["label"], s["image"]) for s in found] == expected
    assert files(tmp_path / "dst") == before
    # Arrow rows could be read only where pyarrow is installed.
    assert not any(b"ARROW1" in data for data in before.values())


def test_every_byte_is_as_litdata_itself_writes_it(tmp_path):
    images = [Item(bytes([number]) * number, number - 2, f"n/ä{number}.jpg") for number in range(5)]
    offsets, digest = write_items(tmp_path / "ours.bin", images)
    writer = BinaryWriter(str(tmp_path / "theirs"), chunk_size=5)
    for place, image in enumerate(images):
        writer[place] = image._asdict()
    for item in writer._serialized_items.values():
        item.sample = None  # with pyarrow it would store Arrow rows
    writer.done()
    ours = (tmp_path / "ours.bin").read_bytes()
    assert ours == (tmp_path / "theirs/chunk-0-0.bin").read_bytes()
    assert digest == xxhash.xxh64(ours).hexdigest()
    assert [ours[at : at + len(x.image)] for at, x in zip(offsets, images, strict=True)] == [
        x.image for x in images
    ]
    theirs = json.loads((tmp_path / "theirs/0.index.json").read_text())
    chunk = {"file": "chunk-0-0.bin", "num_images": 5, "num_bytes": len(ours)}
    assert index_of([chunk], "now") == {**theirs, "updated_at": "now"}


def test_a_chunk_too_large_for_its_format_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("litcam.datamodules.convert.litdata.LARGEST", 100)
    with pytest.raises(ValueError, match="smaller --chunk_mb"):
        write_items(tmp_path / "large.bin", [Item(bytes(100), 0, "a.jpg")])
    assert not (tmp_path / "large.bin").exists()


def test_neighbours_in_a_shard_are_of_many_classes(tmp_path):
    src = write_tree(tmp_path / "src", classes=100, train=10, val=1)
    convert(src, tmp_path / "dst", chunk_bytes=100_000)
    shards = Shards(tmp_path / "dst", "train")
    labels = [shards.labels[i] for i in shards.stored_order()]
    assert min(len(set(labels[at : at + 64])) for at in range(0, len(labels) - 63, 64)) >= 40


def test_the_seed_alone_decides_where_an_image_lies(tree, tmp_path):
    for name, options in (("a", {}), ("b", {"num_workers": 1}), ("c", {"seed": 1})):
        convert(tree, tmp_path / name, chunk_bytes=SMALL, **options)
    assert files(tmp_path / "a") == files(tmp_path / "b")
    orders = [Shards(tmp_path / name, "train").stored_order() for name in "ac"]
    assert orders[0] != orders[1]
    expected = torch.randperm(18, generator=torch.Generator().manual_seed(0)).tolist()
    assert orders[0] == expected


def test_smaller_images(tree, tmp_path):
    convert(tree, tmp_path / "dst", short_side=18)
    source, shards = open_source(tree, tmp_path)["train"], Shards(tmp_path / "dst", "train")
    for index in range(len(source)):
        before, after = (decode(at.read(index), "") for at in (source, shards))
        short = min(before.shape[1:])
        assert min(after.shape[1:]) == min(18, short)
        assert (shards.read(index) == source.read(index)) == (short <= 18)


def test_an_empty_class_keeps_its_number(tree, tmp_path):
    shutil.rmtree(tree / "train/n001")
    (tree / "train/n001").mkdir()
    with pytest.warns(UserWarning, match="n001"):
        manifest = convert(tree, tmp_path / "dst")
    assert manifest["classes"] == ["n000", "n001", "n002"]
    assert manifest["splits"]["train"]["class_counts"] == [6, 0, 6]
    assert set(Shards(tmp_path / "dst", "train").labels) == {0, 2}


@pytest.fixture
def broken(tree):
    whole = (tree / "train/n000/0.JPEG").read_bytes()
    (tree / "train/n000/0.JPEG").write_bytes(whole[: len(whole) // 2])
    (tree / "train/n001/1.JPEG").write_bytes(b"")
    (tree / "train/n002/2.JPEG").write_bytes(b"\xff\xd8 no photo")
    (tree / "val/n002/1.JPEG").write_bytes(b"")
    return tree, whole


def test_broken_images_are_named_and_nothing_is_published(broken, tmp_path):
    src, whole = broken
    with pytest.raises(ValueError, match="4 images cannot be decoded") as error:
        convert(src, tmp_path / "dst", chunk_bytes=SMALL)
    assert not (tmp_path / "dst").exists()
    lines = (tmp_path / "dst.partial/broken.txt").read_text().splitlines()
    places = ["train/n000/0.JPEG", "train/n001/1.JPEG", "train/n002/2.JPEG", "val/n002/1.JPEG"]
    assert sorted(line.partition(":")[0] for line in lines) == [str(src / at) for at in places]
    assert all(word in str(error.value) for word in ("and 1 more", "--skip_broken", "broken.txt"))
    for place in places:
        (src / place).write_bytes(whole)
    kept = {at: at.stat().st_mtime_ns for at in (tmp_path / "dst.partial").glob("*/*.bin")}
    assert kept
    convert(src, tmp_path / "dst", chunk_bytes=SMALL)
    for old, time in kept.items():
        assert (tmp_path / "dst" / old.parent.name / old.name).stat().st_mtime_ns == time
    assert_equal_to_source(tmp_path / "dst", src, tmp_path)


def test_broken_images_are_left_out_if_asked(broken, tmp_path):
    src, _ = broken
    lines = []
    # One image a chunk: some chunks have nothing left.
    manifest = convert(src, tmp_path / "dst", chunk_bytes=1, skip_broken=True, say=lines.append)
    about = manifest["splits"]["train"]
    assert about["skipped"] == ["n000/0.JPEG", "n001/1.JPEG", "n002/2.JPEG"]
    assert manifest["splits"]["val"]["skipped"] == ["n002/1.JPEG"]
    assert (about["num_images"], about["class_counts"]) == (15, [5, 5, 5])
    assert "left out 4 images" in lines[0]
    source, shards = open_source(src, tmp_path)["train"], Shards(tmp_path / "dst", "train")
    assert shards.keys == [key for key in source.keys if key not in about["skipped"]]
    for index, key in enumerate(shards.keys):
        assert shards.read(index) == (src / "train" / key).read_bytes()
    check(tmp_path / "dst")


def flip(path, at=-40):
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


DAMAGE = {
    "flipped": (lambda at: flip(at / "train/chunk-0-1.bin"), "train/chunk-0-1.bin is not what"),
    "short": (lambda at: os.truncate(at / "val/chunk-0-0.bin", 99), "val/chunk-0-0.bin has 99 byt"),
    "missing": (lambda at: (at / "train/chunk-0-2.bin").unlink(), "train/chunk-0-2.bin is missing"),
    "extra": (lambda at: (at / "train/chunk-0-99.bin").touch(), "train/chunk-0-99.bin does not"),
    "keys": (lambda at: flip(at / "train/key_bytes.npy", -1), "train/key_bytes.npy is not what"),
    "places": (lambda at: flip(at / "val/offset.npy"), "val/offset.npy is not what"),
    "index": (lambda at: (at / "val/index.json").write_text("{}"), "val/index.json has 2 bytes"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_damage_is_found(tree, tmp_path, kind):
    convert(tree, tmp_path / "dst", chunk_bytes=SMALL)
    check(tmp_path / "dst")
    spoil, said = DAMAGE[kind]
    spoil(tmp_path / "dst")
    with pytest.raises(ValueError, match=f"dst is damaged: {said}"):
        check(tmp_path / "dst")


def say(root, change):
    """Has a manifest say something else, with the hash that belongs to it."""
    file = root / "litcam.json"
    manifest = json.loads(file.read_text())
    change(manifest)
    del manifest["xxh64"]
    file.write_text(as_text(manifest))


def test_a_manifest_that_contradicts_the_files(tree, tmp_path):
    convert(tree, tmp_path / "dst", chunk_bytes=SMALL)
    say(tmp_path / "dst", lambda at: at["splits"]["val"].update(class_counts=[4, 1, 1]))
    with pytest.raises(ValueError, match=r"labels.npy and litcam.json disagree about the images"):
        check(tmp_path / "dst")


def test_real_photos(photos, tmp_path):
    convert(photos, tmp_path / "dst", chunk_bytes=3_000_000)
    assert_equal_to_source(tmp_path / "dst", photos, tmp_path)
    check(tmp_path / "dst")
