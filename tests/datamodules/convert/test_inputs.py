import io
import json
import tarfile

import numpy as np
import pytest
from PIL import Image
from timm.data import ImageNetInfo

from litcam.datamodules.convert.inputs import open_source


def jpeg(seed: int, size: tuple[int, int] = (12, 10)) -> bytes:
    file = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(file, "JPEG")
    return file.getvalue()


def write_tar(path, files):
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, data in files:
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))


def write_tars(root, labels=("0", "1", "2"), *, val=None, first="cls"):
    """Two training tars and one for validation; seeds 0 to 5 in training, 100 on in validation."""
    for shard in range(2):
        files = []
        for number in range(3):
            seed = shard * 3 + number
            label = labels[seed % len(labels)]
            about = label if first == "cls" else json.dumps({"label": label})
            files += [(f"a/im{seed}.{first}", about.encode()), (f"a/im{seed}.jpg", jpeg(seed))]
        write_tar(root / f"some-train-{shard:04d}.tar", files)
    files = []
    for number, label in enumerate(val or labels):
        files += [(f"v{number}.jpg", jpeg(100 + number)), (f"v{number}.cls", label.encode())]
    write_tar(root / "some-val-0000.tar", files)
    return root


def write_parquet(root, *, labels=(0, 1, 2), names=("ant", "bee", "cat"), paths=True):
    pa = pytest.importorskip("pyarrow")
    pq = pytest.importorskip("pyarrow.parquet")
    root.mkdir(parents=True, exist_ok=True)
    features = {"label": {"names": names}} if names else {}
    metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    image = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    schema = pa.schema([("image", image), ("label", pa.int64())], metadata=metadata)
    for name, seeds in (("train-0", range(3)), ("train-1", range(3, 6)), ("validation-0", (7, 8))):
        rows = [{"bytes": jpeg(s), "path": f"x{s}.jpg" if paths else None} for s in seeds]
        table = {"image": rows, "label": [labels[s % len(labels)] for s in seeds]}
        path = root / "data" / f"{name}-of-2.parquet"
        path.parent.mkdir(exist_ok=True)
        pq.write_table(pa.table(table, schema=schema), path, row_group_size=2)
    return root


def content(source):
    return {source.keys[i]: (int(source.labels[i]), source.read(i)) for i in range(len(source))}


@pytest.mark.parametrize("first", ["cls", "json"])
def test_tars_are_read_at_random_in_the_order_of_label_and_key(tmp_path, first):
    sources = open_source(write_tars(tmp_path / "s", first=first), tmp_path / "scratch")
    assert sources["train"].keys == ["a/im0", "a/im3", "a/im1", "a/im4", "a/im2", "a/im5"]
    expected = {f"a/im{seed}": (seed % 3, jpeg(seed)) for seed in range(6)}
    assert content(sources["train"]) == expected
    assert sources["val"].classes == ["0", "1", "2"]
    assert sources["train"].sizes().tolist() == [len(jpeg(seed)) for seed in (0, 3, 1, 4, 2, 5)]


def test_tars_in_split_folders(tmp_path):
    write_tars(tmp_path / "s")
    for split in ("train", "val"):
        (tmp_path / split).mkdir()
        for tar in (tmp_path / "s").glob(f"*{split}*"):
            tar.rename(tmp_path / split / tar.name.replace(split, "x"))
    (tmp_path / "s").rmdir()
    sources = open_source(tmp_path, tmp_path / "scratch")
    assert (len(sources["train"]), len(sources["val"])) == (6, 3)


def test_names_of_classes(tmp_path):
    named = open_source(write_tars(tmp_path / "a", ("dog", "ant", "cat")), tmp_path)
    assert named["train"].classes == ["ant", "cat", "dog"]
    assert content(named["train"])["a/im0"] == (2, jpeg(0))
    write_tars(tmp_path / "b")
    (tmp_path / "b/classes.txt").write_text("zebra\nyak\nant\n")
    listed = open_source(tmp_path / "b", tmp_path)
    assert listed["train"].classes == ["zebra", "yak", "ant"]
    assert content(listed["train"])["a/im1"] == (1, jpeg(1))
    sparse = open_source(write_tars(tmp_path / "c", ("0", "4")), tmp_path)
    assert sparse["val"].classes == ["0", "1", "2", "3", "4"]


def test_a_thousand_numbers_are_imagenet(tmp_path):
    labels = [str(number) for number in range(1000)]
    for split in ("train", "val"):
        files = [(f"{x}.{end}", data) for x in labels for end, data in (("jpg", b"x"), ("cls", x))]
        files = [(name, data if data == b"x" else data.encode()) for name, data in files]
        write_tar(tmp_path / "s" / f"{split}.tar", files)
    assert open_source(tmp_path / "s", tmp_path)["val"].classes == ImageNetInfo().label_names()


@pytest.mark.parametrize("paths", [True, False])
def test_parquet(tmp_path, paths):
    root = write_parquet(tmp_path / "s", paths=paths)
    sources = open_source(root, tmp_path / "scratch")
    names = (
        [f"x{s}.jpg" for s in range(6)]
        if paths
        else [f"train-{s // 3}-of-2/{s % 3:08d}" for s in range(6)]
    )
    assert content(sources["train"]) == {names[s]: (s % 3, jpeg(s)) for s in range(6)}
    assert sources["val"].classes == ["ant", "bee", "cat"]
    assert sources["train"].place(0) == f"{root}/data/train-0-of-2.parquet:{names[0]}"
    again = open_source(root, tmp_path / "scratch")
    assert content(again["val"]) == content(sources["val"])


def test_parquet_without_names(tmp_path):
    sources = open_source(write_parquet(tmp_path / "s", names=()), tmp_path / "scratch")
    assert sources["train"].classes == ["0", "1", "2"]


def test_without_pyarrow_one_line(tmp_path, monkeypatch):
    root = write_parquet(tmp_path / "s")
    monkeypatch.setitem(__import__("sys").modules, "pyarrow.parquet", None)
    with pytest.raises(ValueError, match="pip install pyarrow"):
        open_source(root, tmp_path / "scratch")


def test_an_archive_beside_class_folders_is_no_shard(tmp_path):
    for place in ("train/cat/a.jpg", "train/dog/b.jpg", "val/cat/c.jpg", "val/dog/d.jpg"):
        (tmp_path / "s" / place).parent.mkdir(parents=True)
        (tmp_path / "s" / place).write_bytes(jpeg(len(place)))
    (tmp_path / "s/ILSVRC2012_img_train.tar").write_bytes(b"")
    assert open_source(tmp_path / "s", tmp_path)["train"].keys == ["cat/a.jpg", "dog/b.jpg"]


def spoil_labels(root):
    write_tars(root, val=["0", "9"])


def spoil_key(root):
    write_tars(root)
    write_tar(root / "train-2.tar", [("a/im0.jpg", jpeg(0)), ("a/im0.cls", b"0")])


def spoil_class(root):
    write_tars(root)
    write_tar(root / "train-2.tar", [("new.jpg", jpeg(0)), ("old.cls", b"0")])


def spoil_end(root, length=2600):
    write_tars(root)
    tar = root / "some-train-0001.tar"
    tar.write_bytes(tar.read_bytes()[:length])


def spoil_end_between(root):
    spoil_end(root, 1024)


def spoil_end_within(root):
    spoil_end(root, 1024 + 600)


def spoil_val(root):
    write_tars(root)
    (root / "some-val-0000.tar").unlink()


def spoil_names(root):
    write_tars(root)
    (root / "classes.txt").write_text("one\ntwo\n")


def spoil_layout(root):
    (root / "photos").mkdir(parents=True)


def spoil_converted(root):
    root.mkdir()
    (root / "litcam.json").write_text("{}")


def spoil_columns(root):
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    root.mkdir()
    for split in ("train", "val"):
        pq.write_table(pa.table({"img": [b""], "label": [0]}), root / f"{split}.parquet")


def spoil_test_split(root):
    write_parquet(root, labels=(0, -1))


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (spoil_labels, "classes that no training image has: 9"),
        (spoil_key, "2 images are called 'a/im0': .*0000.tar:a/im0 and .*train-2.tar:a/im0"),
        (spoil_class, "train-2.tar have no class .* first is 'new'"),
        (spoil_end, "cannot read .*some-train-0001.tar: unexpected end of data"),
        (spoil_end_between, "cannot read .*some-train-0001.tar: unexpected end of data"),
        (spoil_end_within, "cannot read .*some-train-0001.tar: unexpected end of data"),
        (spoil_val, "has some-train-0000.tar but no val files"),
        (spoil_names, "class '2' .* not among the 2 names"),
        (spoil_layout, "which has photos. It converts class folders: .*LOC_val_.*tars.*parquet"),
        (spoil_converted, "is converted already"),
        (spoil_columns, "has the columns img, label; expected image"),
        (spoil_test_split, r"without a class \(label null or -1\)"),
    ],
)
def test_what_makes_no_sense_is_one_line(tmp_path, spoil, said):
    spoil(tmp_path / "s")
    with pytest.raises((ValueError, OSError), match=said) as error:
        open_source(tmp_path / "s", tmp_path / "scratch")
    assert "\n" not in str(error.value)
