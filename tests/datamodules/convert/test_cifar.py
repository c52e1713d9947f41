"""CIFAR in its authors' formats: every pixel, every class, and nothing that a pickle would run."""

import io
import os
import pickle
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest

from litcam.datamodules import ImageNetDataModule
from litcam.datamodules.convert import convert
from litcam.datamodules.convert.inputs import open_source
from litcam.datamodules.pixels.decode import decode

NAMES = ["airplane", "ship"]
FINE = ["apple", "rose", "wolf"]


def images(seed, num=4):
    return np.random.default_rng(seed).integers(0, 256, (num, 3072), dtype=np.uint8)


def as_python_2(told):
    """A pickle as Python 2 and an old NumPy left it: text is bytes, the old module's name."""
    data = pickle.dumps({key.encode(): value for key, value in told.items()}, protocol=2)
    return data.replace(b"cnumpy._core.multiarray\n", b"cnumpy.core.multiarray\n")


def write(root, kind):
    """Files of an archive with few images; the classes alternate, and the last batch is odd."""
    ten, python = kind.startswith("cifar-10-"), kind.endswith(("-py", "-python"))
    folder = root / kind
    folder.mkdir(parents=True)
    train = [f"data_batch_{number}" for number in range(1, 6)] if ten else ["train"]
    for seed, name in enumerate([*train, "test_batch" if ten else "test"]):
        pixels, labels = images(seed), [(seed + at) % (2 if ten else 3) for at in range(4)]
        if python:
            told = {"data": pixels, "labels" if ten else "fine_labels": labels}
            (folder / name).write_bytes(as_python_2(told))
        else:
            marks = np.array(labels, np.uint8)[:, None]
            before = marks if ten else np.concatenate([marks * 0 + 7, marks], axis=1)
            records = np.concatenate([before, pixels], axis=1)
            (folder / f"{name}.bin").write_bytes(records.tobytes())
    if python:
        key, names = ("label_names", NAMES) if ten else ("fine_label_names", FINE)
        meta = as_python_2({key: [name.encode() for name in names]})
        (folder / ("batches.meta" if ten else "meta")).write_bytes(meta)
    else:
        name = "batches.meta.txt" if ten else "fine_label_names.txt"
        (folder / name).write_text("\n".join(NAMES if ten else FINE) + "\n\n")
    return folder


KINDS = ["cifar-10-batches-py", "cifar-10-batches-bin", "cifar-100-python", "cifar-100-binary"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("where", ["inside", "above", "packed"])
def test_every_pixel_and_class(kind, where, tmp_path):
    folder = write(tmp_path / "cifar", kind)
    place = {"inside": folder, "above": folder.parent}.get(where)
    if place is None:
        packed = kind.replace("batches-py", "python").replace("batches-bin", "binary")
        place = tmp_path / f"{packed}.tar.gz"
        with tarfile.open(place, "w:gz") as tar:
            tar.add(folder, kind)
        shutil.rmtree(folder)
    for _ in range(2):  # the second time out of what the first one unpacked
        sources = open_source(place, tmp_path / "scratch")
        ten = kind.startswith("cifar-10-")
        assert sources["train"].classes == (NAMES if ten else FINE)
        for split, seeds in (("train", range(5 if ten else 1)), ("val", [5 if ten else 1])):
            wanted = {
                ((seed + at) % (2 if ten else 3), image.tobytes())
                for seed in seeds
                for at, image in enumerate(images(seed))
            }
            source = sources[split]
            found = {
                (int(source.labels[at]), decode(source.read(at), "").numpy().tobytes())
                for at in range(len(source))
            }
            assert found == wanted


def test_converted_it_trains(tmp_path):
    write(tmp_path / "cifar", "cifar-10-batches-bin")
    convert(tmp_path / "cifar", tmp_path / "shards", num_workers=1)
    data = ImageNetDataModule(
        tmp_path / "shards", batch_size=4, num_workers=0, image_size=32, crop_pct=1.0
    )
    assert data.classes == NAMES
    data.setup("validate")
    (batch,) = data.val_dataloader()
    wanted = {image.tobytes() for image in images(5)}
    assert {pixels.numpy().tobytes() for pixels in batch["image"]} == wanted


class Hostile:
    def __reduce__(self):
        return os.mkdir, ("made",)


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda file: file.write_bytes(file.read_bytes()[:-7]), "get the archive again"),
        (lambda file: file.unlink(), "it is missing"),
        (lambda file: file.write_bytes(pickle.dumps(Hostile())), "only arrays are read"),
        (lambda file: file.write_bytes(pickle.dumps([1])), "it holds no table"),
        (lambda file: file.write_bytes(as_python_2({"data": 3})), "no images with classes"),
        (lambda file: file.write_bytes(b""), "get the archive again"),
    ],
    ids=["cut", "missing", "hostile", "list", "other", "empty"],
)
def test_a_damaged_pickle_is_one_line_and_runs_nothing(spoil, said, tmp_path):
    folder = write(tmp_path / "cifar", "cifar-10-batches-py")
    spoil(folder / "data_batch_3")
    with pytest.raises(ValueError, match=said) as error:
        open_source(folder, tmp_path / "scratch")
    assert "data_batch_3" in str(error.value) and "\n" not in str(error.value)
    assert not Path("made").exists()


def test_a_cut_binary_batch_and_a_cut_archive_are_one_line(tmp_path):
    folder = write(tmp_path / "cifar", "cifar-10-batches-bin")
    whole = (folder / "data_batch_2.bin").read_bytes()
    (folder / "data_batch_2.bin").write_bytes(whole[:-1])
    with pytest.raises(ValueError, match="no whole number of images"):
        open_source(folder, tmp_path / "scratch")
    packed = tmp_path / "cifar-10-binary.tar.gz"
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w:gz") as tar:
        tar.add(folder, folder.name)
    packed.write_bytes(data.getvalue()[: len(data.getvalue()) // 2])
    with pytest.raises(ValueError, match=r"cannot read .*cifar-10-binary"):
        open_source(packed, tmp_path / "scratch2")
