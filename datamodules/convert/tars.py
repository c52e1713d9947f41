"""Images in tar files: found once by their headers, then read in any order."""

import json
import tarfile
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from timm.data import ImageNetInfo
from torch import Tensor

from litcam.datamodules.files import read_whole
from litcam.datamodules.remote.names import check_name
from litcam.datamodules.sources.dataset import ImageDataset
from litcam.datamodules.sources.table import build_table

__all__ = ["Member", "TarSource", "as_stored", "find_members", "number_classes", "read_tar"]

IMAGES = ("jpg", "jpeg", "png", "webp")
NAMES = "classes.txt"
# One wrong number would otherwise make a list of names that fills the memory.
MOST_CLASSES = 1_000_000
LABEL_BYTES = 1 << 20


class Member(NamedTuple):
    """An image in a tar.

    Attributes:
        key: Its name.
        label: Its class as text: a number or a name.
        tar: Place of the tar in the list of tars.
        offset: Where its bytes begin in the tar.
        length: How many they are.
    """

    key: str
    label: str
    tar: int
    offset: int
    length: int


def as_stored(image: Tensor) -> Tensor:
    """The image itself: what is converted is not transformed."""
    return image


class TarSource(ImageDataset):
    """Images of one split in tars, in the order of their class and key."""

    def __init__(
        self,
        members: Iterable[Member],
        numbers: dict[str, int],
        *,
        classes: list[str],
        tars: Sequence[Path],
        shown: Sequence[Path] | None = None,
    ) -> None:
        """Orders the images.

        Args:
            members: The images, in any order.
            numbers: The number of each class.
            classes: Their names, in the order of the numbers.
            tars: The files that `members` count.
            shown: Names of those files for messages, if they are not the user's.

        Raises:
            ValueError: If two images have one key.
        """
        found = sorted(members, key=lambda member: (numbers[member.label], member.key))
        rows = ((member.key, numbers[member.label]) for member in found)
        folder = str((shown or tars)[0].parent)
        super().__init__(folder, classes, build_table(rows), as_stored)
        self._tars, self._shown = list(tars), list(shown or tars)
        self._tar = np.array([member.tar for member in found], dtype=np.int32)
        self._offset = np.array([member.offset for member in found], dtype=np.int64)
        self._length = np.array([member.length for member in found], dtype=np.int64)
        self._check_keys()

    def read(self, index: int) -> bytes:
        """The image file as it lies in its tar."""
        with self._tars[self._tar[index]].open("rb") as file:
            file.seek(int(self._offset[index]))
            return file.read(int(self._length[index]))

    def place(self, index: int) -> str:
        """Its tar and key."""
        return f"{self._shown[self._tar[index]]}:{self.keys[index]}"

    def sizes(self) -> NDArray[np.int64]:
        """Bytes of each image ``(num_images,)``."""
        return self._length

    def _check_keys(self) -> None:
        key, uses = Counter(self.keys).most_common(1)[0]
        if uses > 1:
            places = [self.place(index) for index, name in enumerate(self.keys) if name == key]
            raise ValueError(
                f"{uses} images are called {key!r}: {' and '.join(places[:2])}; "
                "give each image of a split a name of its own"
            )


def find_members(tar: Path) -> Iterator[tarfile.TarInfo]:
    """Lists the files in a tar without keeping the list, whatever its size.

    Raises:
        ValueError: If it is no tar or ends early.
    """
    try:
        with tarfile.open(tar, "r:") as file:
            while (member := file.next()) is not None:
                file.members.clear()  # type: ignore[attr-defined]
                if not member.offset < file.offset <= tar.stat().st_size:
                    raise tarfile.ReadError("unexpected end of data")
                if member.isfile():
                    yield member
            # tarfile takes a tar that stops between two files, or within a header, for whole.
            with tar.open("rb") as content:
                content.seek(file.offset)
                if content.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
                    raise tarfile.ReadError("unexpected end of data")
    except (tarfile.TarError, ValueError, OverflowError, RecursionError, MemoryError) as error:
        # Of a header with a wrong number anything may come.
        raise ValueError(f"cannot read {tar}: {error}; get it again") from None


def read_tar(tar: Path, number: int) -> list[Member]:
    """Finds the images of a tar that follows WebDataset's naming.

    Args:
        tar: Files of one sample share their name up to its first dot; after the dot an image has
            ``jpg``, ``jpeg``, ``png`` or ``webp``, its class ``cls``, or ``json`` with ``label``.
        number: Of this tar, for `Member`.

    Raises:
        ValueError: If it is broken, or if an image has no class.
    """
    images: dict[str, tuple[int, int]] = {}
    labels: dict[str, str] = {}
    with tar.open("rb") as file:
        for member in find_members(tar):
            folder, slash, name = member.name.removeprefix("./").rpartition("/")
            stem, _, suffix = name.partition(".")
            key, suffix = folder + slash + stem, suffix.lower()
            if not stem or suffix not in (*IMAGES, "cls", "json"):
                continue
            check_name(key, str(tar))
            if suffix in IMAGES:
                if key in images:
                    raise ValueError(
                        f"two images in {tar} are called {key!r}; "
                        "give each image of a split a name of its own"
                    )
                images[key] = member.offset_data, member.size
            elif suffix == "cls" or key not in labels:
                file.seek(member.offset_data)
                label = _read_label(file.read(min(member.size, LABEL_BYTES)), suffix)
                if label is not None:
                    labels[key] = label
    if missing := sorted(set(images) - set(labels)):
        raise ValueError(
            f"{len(missing)} images in {tar} have no class (.cls, or .json with label) beside "
            f"them, the first is {missing[0]!r}; files of one image share their name up to its "
            "first dot"
        )
    return [Member(key, labels[key], number, *images[key]) for key in images]


def _read_label(data: bytes, suffix: str) -> str | None:
    try:
        text = data.decode()
        label = json.loads(text).get("label") if suffix == "json" else text.strip()
    except (ValueError, AttributeError, RecursionError):
        return None
    named = isinstance(label, str | int | float) and label != ""
    return _plain(str(label)) if named else None


def _plain(label: str) -> str:
    # As many digits as no number of a class has are a name.
    return str(int(label)) if label.isdecimal() and len(label) < 20 else label


def _read_names(file: Path) -> list[str]:
    try:
        lines = read_whole(file).decode().split("\n")
    except UnicodeDecodeError:
        raise ValueError(f"{file} is not UTF-8; write it again, a name a line") from None
    names = [line.strip() for line in lines if line.strip()]
    if not names:
        raise ValueError(f"{file} is empty; write the names of the classes, a name a line")
    return names


def number_classes(
    train: set[str], val: set[str], *, root: Path, names: Sequence[str] = ()
) -> tuple[list[str], dict[str, int]]:
    """Names the classes, in the order of their numbers, and gives each label its number.

    Args:
        train: Labels of the training images.
        val: Labels of the validation images.
        root: May hold ``classes.txt``, a name a line; for messages.
        names: Names that the files themselves give.

    Raises:
        ValueError: If validation has a class that training lacks, or a class has no name.
    """
    if unknown := sorted(val - train):
        raise ValueError(
            f"the validation images in {root} have classes that no training image has: "
            f"{', '.join(unknown[:3])}; add training images of them or remove them"
        )
    if (root / NAMES).exists():
        names = _read_names(root / NAMES)
    if not all(label.isdecimal() for label in train):
        classes = list(names) or sorted(train)
        numbers = {name: number for number, name in enumerate(classes)}
    else:
        numbers = {label: int(label) for label in train}
        if (largest := max(numbers.values())) >= MOST_CLASSES:
            raise ValueError(
                f"the images in {root} have a class number {largest}, which is more than "
                f"{MOST_CLASSES:,} classes; write names instead of numbers"
            )
        if set(numbers.values()) == set(range(1000)):
            names = names or ImageNetInfo().label_names()
        classes = list(names) or [str(number) for number in range(max(numbers.values()) + 1)]
    if unnamed := sorted(x for x in train if numbers.get(x, len(classes)) >= len(classes)):
        raise ValueError(
            f"class {unnamed[0]!r} of {root} is not among the {len(classes)} names of the "
            f"classes; {NAMES} there needs a line for every class"
        )
    if twice := [name for name, uses in Counter(classes).items() if uses > 1]:
        raise ValueError(
            f"several classes of {root} are called {twice[0]!r}; {NAMES} there can give each a "
            "name of its own"
        )
    return classes, numbers
