"""CIFAR-10 and CIFAR-100 as their authors hand them out, binary or pickled, packed or not."""

import io
import pickle
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from einops import rearrange
from numpy.typing import NDArray
from PIL import Image

from litcam.datamodules.convert.tars import Member, TarSource, find_members, number_classes

__all__ = ["Cifar", "find_cifar"]

SIDE = 32
PIXELS = 3 * SIDE * SIDE
# The largest file of the archives has 184 MB.
MAX_BYTES = 1 << 29


class Format(NamedTuple):
    """How one of the archives lies: its folder, the files of each split, where the names are."""

    folder: str
    train: tuple[str, ...]
    val: tuple[str, ...]
    names: str
    label: str
    label_bytes: int = 0  # before the pixels of a binary record; the class is the last of them


BATCHES = tuple(f"data_batch_{number}" for number in range(1, 6))
BINARY = tuple(f"{name}.bin" for name in BATCHES)
FORMATS = (
    Format("cifar-10-batches-py", BATCHES, ("test_batch",), "batches.meta", "labels"),
    Format("cifar-10-batches-bin", BINARY, ("test_batch.bin",), "batches.meta.txt", "", 1),
    Format("cifar-100-python", ("train",), ("test",), "meta", "fine_labels"),
    Format("cifar-100-binary", ("train.bin",), ("test.bin",), "fine_label_names.txt", "", 2),
)


@dataclass(frozen=True)
class Cifar:
    """An archive that was found.

    Args:
        place: the folder of its files, or the packed archive.
        format: of its files.
    """

    place: Path
    format: Format

    def open(self, scratch: Path) -> dict[str, TarSource]:
        """Its splits ``train`` and ``val``, which are the authors' training and test images.

        Args:
            scratch: where the images are unpacked to, as PNGs, which hold every pixel.

        Raises:
            ValueError: if a file is missing, damaged, or holds anything but numbers.
        """
        names = self._read_names()
        tars, labels = {}, {}
        for split in ("train", "val"):
            tars[split] = scratch / f"{split}-{self._mark()}.tar"
            labels[split] = self._unpack(split, tars[split])
        found = {split: set(map(str, values)) for split, values in labels.items()}
        classes, numbers = number_classes(
            found["train"], found["val"], root=self.place, names=names
        )
        sources = {}
        for split, tar in tars.items():
            every = zip(find_members(tar), labels[split], strict=True)
            members = [
                Member(at.name, str(label), 0, at.offset_data, at.size) for at, label in every
            ]
            sources[split] = TarSource(
                members, numbers, classes=classes, tars=[tar], shown=[self.place / split]
            )
        return sources

    def _mark(self) -> str:
        """What a tar of earlier images is known by."""
        first = self.place if self.place.is_file() else self.place / self.format.train[0]
        state = first.stat()
        return f"{self.format.folder}-{state.st_size}-{state.st_mtime_ns}"

    def _unpack(self, split: str, tar: Path) -> list[int]:
        """The labels of a split's images, which are written into a tar unless they are there."""
        labels: list[int] = []
        tar.parent.mkdir(parents=True, exist_ok=True)
        unfinished = tar.with_suffix(".unfinished")
        files = self.format.train if split == "train" else self.format.val
        write = not tar.exists()
        with tarfile.open(unfinished, "w", format=tarfile.USTAR_FORMAT) as out:
            for name, data in self._read(files):
                pixels, found = self._parse(data, name)
                labels += found
                for number, image in enumerate(pixels if write else ()):
                    png = io.BytesIO()
                    Image.fromarray(rearrange(image, "c h w -> h w c")).save(png, "PNG")
                    entry = tarfile.TarInfo(f"{Path(name).stem}/{number:05d}.png")
                    entry.size = png.tell()
                    out.addfile(entry, io.BytesIO(png.getvalue()))
        if write:
            unfinished.replace(tar)
        else:
            unfinished.unlink()
        return labels

    def _parse(self, data: bytes, name: str) -> tuple[NDArray[np.uint8], list[int]]:
        """Pixels ``(num_images, 3, 32, 32)`` and classes of one file."""
        if before := self.format.label_bytes:
            records = np.frombuffer(data, np.uint8)
            if not len(records) or len(records) % (before + PIXELS):
                raise self._damaged(name, f"{len(data):,} bytes are no whole number of images")
            records = rearrange(records, "(n r) -> n r", r=before + PIXELS)
            pixels: Any = records[:, before:]
            labels: Any = records[:, before - 1].tolist()
        else:
            told = self._unpickle(data, name)
            pixels, labels = told.get("data"), told.get(self.format.label)
            sound = isinstance(pixels, np.ndarray) and pixels.dtype == np.uint8
            if not sound or not isinstance(labels, list) or pixels.shape != (len(labels), PIXELS):
                raise self._damaged(name, "it holds no images with classes")
            if any(not isinstance(label, int) or label < 0 for label in labels):
                raise self._damaged(name, "a class is no number")
        return rearrange(pixels, "n (c h w) -> n c h w", c=3, h=SIDE), labels

    def _read_names(self) -> list[str]:
        ((name, data),) = self._read((self.format.names,))
        if self.format.label_bytes:
            return data.decode(errors="replace").split()
        told = self._unpickle(data, name)
        names = told.get("fine_label_names") or told.get("label_names")
        if not isinstance(names, list) or not all(isinstance(each, bytes | str) for each in names):
            raise self._damaged(name, "it holds no names of classes")
        return [
            each.decode(errors="replace") if isinstance(each, bytes) else each for each in names
        ]

    def _unpickle(self, data: bytes, name: str) -> dict[str, Any]:
        try:
            told = _ArraysAlone(io.BytesIO(data), encoding="bytes").load()
        except Exception as error:  # of a damaged pickle anything may come
            raise self._damaged(name, " ".join(str(error).split())[:100]) from None
        if not isinstance(told, dict):
            raise self._damaged(name, "it holds no table")
        return {key.decode() if isinstance(key, bytes) else key: told[key] for key in told}

    def _read(self, names: tuple[str, ...]) -> Iterator[tuple[str, bytes]]:
        """The content of some of its files."""
        if self.place.is_dir():
            for name in names:
                if not (file := self.place / name).is_file():
                    raise self._damaged(name, "it is missing")
                with file.open("rb") as opened:
                    yield name, self._within(name, opened.read(MAX_BYTES + 1))
            return
        try:
            with tarfile.open(self.place) as tar:
                found = {Path(at.name).name: at for at in tar if at.isfile()}
                for name in names:
                    packed = tar.extractfile(found[name]) if name in found else None
                    if packed is None:
                        raise self._damaged(name, "it is missing")
                    yield name, self._within(name, packed.read(MAX_BYTES + 1))
        except (tarfile.TarError, EOFError, OSError) as error:
            raise ValueError(f"cannot read {self.place}: {error}; get it again") from None

    def _within(self, name: str, data: bytes) -> bytes:
        if len(data) > MAX_BYTES:
            raise self._damaged(name, f"it has more than {MAX_BYTES:,} bytes")
        return data

    def _damaged(self, name: str, reason: str) -> ValueError:
        return ValueError(f"cannot read {self.place / name}: {reason}; get the archive again")


class _ArraysAlone(pickle.Unpickler):
    """Makes arrays, lists, numbers and texts of a pickle, and runs nothing."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in (("numpy", "ndarray"), ("numpy", "dtype")):
            return getattr(np, name)
        if (module.removeprefix("numpy.").lstrip("_"), name) == ("core.multiarray", "_reconstruct"):
            return np._core.multiarray._reconstruct  # type: ignore[attr-defined]
        if (module, name) == ("_codecs", "encode"):  # bytes, as Python 3 writes them for Python 2
            return lambda text, encoding: text.encode(encoding)
        raise pickle.UnpicklingError(f"it asks for {module}.{name}, and only arrays are read")


def find_cifar(root: Path) -> Cifar | None:
    """The archive at `root`: a folder of its files, one above it, or the packed file."""
    if root.is_file():
        return next((Cifar(root, kind) for kind in FORMATS if _packs(root.name, kind)), None)
    for kind in FORMATS:
        for place in (root, root / kind.folder):
            if (place / kind.names).is_file() and (place / kind.train[0]).is_file():
                return Cifar(place, kind)
    return None


def _packs(name: str, kind: Format) -> bool:
    """Whether a file is called as the archive of this format."""
    written = "binary" if kind.label_bytes else "python"
    return name.startswith(f"cifar-{kind.folder.split('-')[1]}-{written}.tar")
