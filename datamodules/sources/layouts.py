"""Which layout a folder of images has, found by looking; what is wrong with it, in one line."""

import difflib
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from torchvision.datasets.folder import IMG_EXTENSIONS

EXTENSIONS = (*IMG_EXTENSIONS, ".gif")
SOLUTION = "LOC_val_solution.csv"
CLS_LOC = Path("ILSVRC", "Data", "CLS-LOC")
VAL_NAMES = ("val", "valid", "validation")


@dataclass(frozen=True)
class Layout:
    """Where the splits are.

    Attributes:
        train: Folder of class folders.
        val: Folder of class folders, or of loose images if there is a ``solution``.
        test: Folder of class folders, if there is one.
        solution: Kaggle's csv with the classes of a ``val`` of loose images.
        classes: Names of the folders in ``train``; a class number is a place in this list.
    """

    train: Path
    val: Path
    test: Path | None
    solution: Path | None
    classes: list[str]


def find_layout(root: str | Path, *, train_dir: str = "", val_dir: str = "") -> Layout:
    """Finds out how the images in a folder are arranged, by listing folders only.

    Args:
        root: Holds ``train`` and ``val`` (``valid``, ``validation``), or is Kaggle's root with
            ``ILSVRC/Data/CLS-LOC`` in it.
        train_dir: Another training folder, relative to ``root`` or absolute.
        val_dir: Another validation folder, relative to ``root`` or absolute.

    Raises:
        FileNotFoundError: If a folder, its images or Kaggle's csv are missing.
        ValueError: If the folders make no classification task.
    """
    root = Path(root).expanduser()
    _check_root(root)
    base = next((at for at in (root, root / CLS_LOC) if (at / "train").is_dir()), root)
    train = _find_folder(root if train_dir else base, [train_dir or "train"], split="training")
    classes = _folders(train)
    _check_classes(train, classes)
    names = [val_dir] if val_dir else VAL_NAMES
    val = _find_folder(root if val_dir else base, names, split="validation")
    solution = None if _folders(val) else _find_solution(root, base, val)
    test = base / "test"
    for split in (val, test):
        check_known(_folders(split), classes, place=split)
    return Layout(train, val, test if _folders(test) else None, solution, classes)


def _check_root(root: Path) -> None:
    if not root.exists():
        siblings = [path.name for path in root.parent.iterdir()] if root.parent.is_dir() else []
        close = difflib.get_close_matches(root.name, siblings, n=3)
        hint = f"did you mean {', '.join(close)}?" if close else "check the path"
        raise FileNotFoundError(f"root {root} does not exist; {hint}")
    if not root.is_dir():
        raise FileNotFoundError(f"root {root} is a file; unpack it and give the folder")
    if not any(root.iterdir()):
        raise FileNotFoundError(f"root {root} is empty; {_expected(root)}")
    if not _folders(root) and _has_images(root):
        raise FileNotFoundError(f"root {root} is flat: images but no folders; {_expected(root)}")


def _find_folder(base: Path, names: Sequence[str], *, split: str) -> Path:
    for name in names:
        folder = base / Path(name).expanduser()
        if folder.is_dir():
            return folder
    found = ", ".join(_folders(base)[:5]) or "no folders"
    raise FileNotFoundError(
        f"no {split} folder in {base}: looked for {', '.join(names)}, found {found}; "
        f"{_expected(base)}, or name them with train_dir and val_dir"
    )


def _expected(root: Path) -> str:
    return f"expected {root}/train/<class>/*.jpg and {root}/val/<class>/*.jpg"


def _folders(folder: Path) -> list[str]:
    # A hidden folder (.ipynb_checkpoints) is no class and would shift the numbers after it.
    if not folder.is_dir():
        return []
    with os.scandir(folder) as entries:
        return sorted(at.name for at in entries if at.is_dir() and not at.name.startswith("."))


def is_image(path: str) -> bool:
    """Tells by its name whether a file should be an image."""
    # macOS puts a "._photo.jpg" that is no photo beside each photo it copies.
    return path.lower().endswith(EXTENSIONS) and not os.path.basename(path).startswith(".")  # noqa: PTH119


def _has_images(folder: Path) -> bool:
    with os.scandir(folder) as entries:
        return any(is_image(entry.name) for entry in entries)


def _check_classes(train: Path, classes: list[str]) -> None:
    if not classes:
        state = "flat: images but no class folders" if _has_images(train) else "empty"
        raise FileNotFoundError(f"{train} is {state}; sort the images into {train}/<class>/")
    if len(classes) == 1:
        raise ValueError(
            f"only one class, {classes[0]!r}, in {train}; "
            "a classifier needs at least two class folders there"
        )


def check_known(found: Iterable[str], classes: list[str], *, place: Path) -> None:
    """Raises ValueError if ``place`` has a class that training lacks."""
    unknown = sorted(set(found) - set(classes))
    if unknown:
        more = f" and {len(unknown) - 3} more" if len(unknown) > 3 else ""
        raise ValueError(
            f"{place} has classes that no training folder has: {', '.join(unknown[:3])}{more}; "
            "add their training folders or remove them"
        )


def _find_solution(root: Path, base: Path, val: Path) -> Path:
    if not _has_images(val):
        raise FileNotFoundError(f"{val} is empty; put the images in {val}/<class>/")
    places = [val.parent, base, root]
    if base.parts[-3:] == CLS_LOC.parts:
        places.append(base.parents[2])
    for place in places:
        if (place / SOLUTION).is_file():
            return place / SOLUTION
    raise FileNotFoundError(
        f"{val} is flat: images but no class folders; put Kaggle's {SOLUTION} into {root}, "
        f"or sort the images into {val}/<class>/"
    )
