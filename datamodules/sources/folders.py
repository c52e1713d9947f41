"""The dataset of images in folders, and what their classes are called."""

import csv
import io
import os
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from timm.data import ImageNetInfo
from torch import Tensor

from litcam.datamodules.files import read_whole
from litcam.datamodules.sources.dataset import ImageDataset
from litcam.datamodules.sources.layouts import EXTENSIONS, check_known, find_layout, is_image
from litcam.datamodules.sources.table import build_table


class FolderDataset(ImageDataset):
    """Images of one split, each a file; its key is its path relative to ``folder``."""

    def __init__(
        self,
        folder: Path,
        classes: list[str],
        *,
        transform: Callable[[Tensor], Tensor],
        solution: Path | None = None,
        images_per_class: int | None = None,
    ) -> None:
        pairs = _from_csv(folder, classes, solution) if solution else _from_folders(folder, classes)
        if not pairs:
            raise FileNotFoundError(
                f"no images in the class folders of {folder}; looked for {', '.join(EXTENSIONS)}"
            )
        if images_per_class:
            pairs = _first_of_each(pairs, images_per_class)
        super().__init__(str(folder), classes, build_table(pairs), transform)

    def read(self, index: int) -> bytes:
        """The image file as it is."""
        try:
            return read_whole(self.place(index))
        except FileNotFoundError:
            raise ValueError(
                f"{self.place(index)} was there when the folder was listed, and is gone; put it "
                "back, or start again without it"
            ) from None

    def place(self, index: int) -> str:
        """Its path."""
        return f"{self.folder}/{self.keys[index]}"

    def warn_of_empty_classes(self) -> None:
        """Warns, once for all of them, of classes that keep their number but have no image."""
        counts = np.bincount(self.labels, minlength=len(self.classes)).tolist()
        empty = [name for name, count in zip(self.classes, counts, strict=True) if count == 0]
        if empty:
            more = ", …" if len(empty) > 5 else ""
            rank_zero_warn(
                f"{len(empty)} of {len(self.classes)} class folders in {self.folder} have no "
                f"images: {', '.join(empty[:5])}{more}; they keep their class numbers"
            )


class Folders:
    """A data set of class folders, or of Kaggle's layout; see `find_layout`.

    Attributes:
        classes: Names of the class folders, in the order of their numbers.
        has_test: Whether there is a test split.
    """

    def __init__(self, root: str | Path, *, train_dir: str = "", val_dir: str = "") -> None:
        self.layout = find_layout(root, train_dir=train_dir, val_dir=val_dir)
        self.classes = self.layout.classes
        self.has_test = self.layout.test is not None

    def open(
        self,
        split: str,
        transform: Callable[[Tensor], Tensor],
        *,
        images_per_class: int | None = None,
    ) -> FolderDataset:
        """The images of a split; in training, classes without images are named.

        Raises:
            FileNotFoundError: If it has no images.
            ValueError: If Kaggle's csv and its images do not go together.
        """
        dataset = FolderDataset(
            getattr(self.layout, split),
            self.classes,
            transform=transform,
            solution=self.layout.solution if split == "val" else None,
            images_per_class=images_per_class,
        )
        if split == "train":
            dataset.warn_of_empty_classes()
        return dataset


def _from_folders(folder: Path, classes: list[str]) -> list[tuple[str, int]]:
    prefix = str(folder) + os.sep
    return [
        (path.removeprefix(prefix), number)
        for number, name in enumerate(classes)
        if (folder / name).is_dir()  # only training has to have them all
        for path in _images_below(f"{prefix}{name}", set())
    ]


def _images_below(folder: str, above: set[tuple[int, int]]) -> Iterator[str]:
    """The images in a folder and those below it, by name; a link to a folder above ends there."""
    state = os.stat(folder)  # noqa: PTH116
    here = (state.st_dev, state.st_ino)
    if here in above:
        return
    with os.scandir(folder) as listed:
        entries = sorted(listed, key=lambda entry: entry.name)
    below = []
    for entry in entries:
        if entry.is_dir():
            below.append(entry.path)
        elif is_image(entry.name):
            yield entry.path
    for path in below:
        yield from _images_below(path, above | {here})


def _first_of_each(pairs: list[tuple[str, int]], count: int) -> list[tuple[str, int]]:
    seen: Counter[int] = Counter()
    kept = []
    for key, label in pairs:
        seen[label] += 1
        if seen[label] <= count:
            kept.append((key, label))
    return kept


def _from_csv(folder: Path, classes: list[str], solution: Path) -> list[tuple[str, int]]:
    rows = _read_solution(solution)
    with os.scandir(folder) as entries:
        names = sorted(entry.name for entry in entries if is_image(entry.name))
    files = {Path(name).stem: name for name in names}
    for here, there, place in ((files, rows, solution), (rows, files, folder)):
        if missing := sorted(set(here) - set(there)):
            raise ValueError(
                f"{len(missing)} images are in only one of {folder} and {solution}: {place} lacks "
                f"{missing[0]}; take both from the same download"
            )
    check_known(rows.values(), classes, place=solution)
    numbers = {name: number for number, name in enumerate(classes)}
    return [(name, numbers[rows[stem]]) for stem, name in files.items()]


def _read_solution(solution: Path) -> dict[str, str]:
    # "ILSVRC2012_val_00000001,n01751748 111 108 231 235 ": the class, then its boxes
    try:
        table = csv.DictReader(io.StringIO(read_whole(solution).decode(), newline=""))
        return {row["ImageId"]: row["PredictionString"].split()[0] for row in table}
    except (KeyError, IndexError, AttributeError, UnicodeDecodeError, csv.Error):
        raise ValueError(
            f"{solution} is not Kaggle's csv: every line needs ImageId and PredictionString; "
            "download it again"
        ) from None


def readable_names(classes: list[str]) -> list[str]:
    """Names classes as people do where their folders are ImageNet synsets, as timm knows them.

    Of a synset's words the first is taken, or the one that spells it out ("tabby, tabby cat").

    >>> readable_names(["n02123045", "my_dog"])
    ['tabby cat', 'my_dog']
    """
    info = ImageNetInfo()
    names = []
    for folder in classes:
        try:
            words = info.label_name_to_description(folder).split(", ")
        except KeyError:
            words = [folder]
        names.append(next((word for word in words if word.startswith(words[0] + " ")), words[0]))
    # "crane" is a bird and a machine
    uses = Counter(names)
    return [
        name if uses[name] == 1 else f"{name} ({folder})"
        for name, folder in zip(names, classes, strict=True)
    ]
