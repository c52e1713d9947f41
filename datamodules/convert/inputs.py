"""What can be converted: class folders, Kaggle's ImageNet, WebDataset tars, parquet files."""

import json
import os
import tarfile
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from litcam.datamodules.convert.cifar import find_cifar
from litcam.datamodules.convert.tars import (
    NAMES,
    Member,
    TarSource,
    as_stored,
    find_members,
    number_classes,
    read_tar,
)
from litcam.datamodules.remote.names import is_inside
from litcam.datamodules.sources.folders import FolderDataset
from litcam.datamodules.sources.layouts import CLS_LOC, VAL_NAMES, find_layout

__all__ = ["LAYOUTS", "FolderSource", "Source", "TarSource", "open_source"]

LAYOUTS = {
    "class folders": "train/<class>/*.jpg and val/<class>/*.jpg",
    "Kaggle's ImageNet": "ILSVRC/Data/CLS-LOC and LOC_val_solution.csv",
    "WebDataset tars": "*train*.tar and *val*.tar, or train/*.tar and val/*.tar",
    "CIFAR-10, CIFAR-100": "the authors' cifar-10-python.tar.gz or -binary.tar.gz, also unpacked",
    "Hugging Face parquet": "*train*.parquet and *validation*.parquet, also in data/",
}


class FolderSource(FolderDataset):
    """Images of one split, each a file."""

    def sizes(self) -> NDArray[np.int64]:
        """Bytes of each image ``(num_images,)``."""
        prefix = str(self.folder) + os.sep
        sizes = (os.stat(prefix + key).st_size for key in self.keys)  # noqa: PTH116
        return np.fromiter(sizes, dtype=np.int64, count=len(self.keys))


Source = FolderSource | TarSource


def open_source(path: str | Path, scratch: str | Path) -> dict[str, Source]:
    """Finds the images of each split by looking at how they are laid out.

    Args:
        path: Folder in one of the `LAYOUTS`.
        scratch: Where the images of parquet files and of CIFAR are unpacked to.

    Returns:
        ``train``, ``val`` and, of folders, ``test``, where it exists.

    Raises:
        FileNotFoundError: If a split or its images are missing.
        ValueError: If there is nothing to convert, what there is makes no sense, or pyarrow is
            missing.
    """
    root = Path(path).expanduser()
    if (root / "litcam.json").is_file():
        raise ValueError(f"{root} is converted already; train with --data.root {root}")
    if cifar := find_cifar(root):
        return dict(cifar.open(Path(scratch)))
    if root.is_dir() and not _has_class_folders(root):
        for suffix, opened in ((".tar", _open_tars), (".parquet", _open_parquet)):
            shards = _find_shards(root, suffix)
            if shards["train"] or shards["val"]:
                _check_splits(shards, root, suffix)
                return opened(root, shards, Path(scratch))
        if not any((base / "train").is_dir() for base in (root, root / CLS_LOC)):
            _refuse(root)
    return _open_folders(root)


def _has_class_folders(root: Path) -> bool:
    # An unpacked ImageNet often still has its ILSVRC2012_img_train.tar beside it.
    bases = (root / "train", root / CLS_LOC / "train")
    return any(path.is_dir() for base in bases if base.is_dir() for path in base.iterdir())


def _refuse(root: Path) -> None:
    found = sorted(path.name for path in root.iterdir() if not path.name.startswith("."))
    if not found:
        raise FileNotFoundError(f"{root} is empty; check the path")
    more = ", …" if len(found) > 4 else ""
    accepted = "; ".join(f"{name}: {layout}" for name, layout in LAYOUTS.items())
    raise ValueError(
        f"no layout that litcam knows in {root}, which has {', '.join(found[:4])}{more}. "
        f"It converts {accepted}"
    )


def _open_folders(root: Path) -> dict[str, Source]:
    layout = find_layout(root)
    train = FolderSource(layout.train, layout.classes, transform=as_stored)
    train.warn_of_empty_classes()
    val = FolderSource(layout.val, layout.classes, transform=as_stored, solution=layout.solution)
    splits: dict[str, Source] = {"train": train, "val": val}
    if layout.test:
        splits["test"] = FolderSource(layout.test, layout.classes, transform=as_stored)
    return splits


def _find_shards(root: Path, suffix: str) -> dict[str, list[Path]]:
    found: dict[str, list[Path]] = {"train": [], "val": []}
    for folder in (root, root / "data", *(root / name for name in ("train", *VAL_NAMES))):
        for path in sorted(folder.glob(f"*{suffix}")):
            said = path.name if folder in (root, root / "data") else folder.name
            split = next((name for name in found if name in said.lower()), None)
            if split and not path.name.startswith(".") and path.is_file():
                found[split].append(path)
    return found


def _check_splits(shards: dict[str, list[Path]], root: Path, suffix: str) -> None:
    for split, paths in shards.items():
        if not paths:
            there = shards["train" if split == "val" else "val"][0].name
            raise FileNotFoundError(
                f"{root} has {there} but no {split} files; expected *{split}*{suffix} there, "
                f"or {split}/*{suffix}"
            )


def _open_tars(root: Path, shards: dict[str, list[Path]], scratch: Path) -> dict[str, Source]:
    found = {}
    for split, tars in shards.items():
        found[split] = [item for number, tar in enumerate(tars) for item in read_tar(tar, number)]
        if not found[split]:
            raise ValueError(
                f"no images with classes in {tars[0]}; a WebDataset tar holds NAME.jpg and "
                "NAME.cls; unpack any other tar and convert the folders"
            )
    labels = {split: {item.label for item in items} for split, items in found.items()}
    folder = next((at for at in (root, shards["train"][0].parent) if (at / NAMES).is_file()), root)
    classes, numbers = number_classes(labels["train"], labels["val"], root=folder)
    return {
        split: TarSource(items, numbers, classes=classes, tars=shards[split])
        for split, items in found.items()
    }


def _open_parquet(root: Path, shards: dict[str, list[Path]], scratch: Path) -> dict[str, Source]:
    try:
        import pyarrow.parquet as pq
    except ImportError:
        raise ValueError(
            f"{root} holds parquet files, which pyarrow reads: pip install pyarrow"
        ) from None
    rows: dict[str, list[dict[str, list[Any]]]] = {}
    names: list[str] = []
    for split, paths in shards.items():
        rows[split] = [_read_rows(pq, path) for path in paths]
        names = names or _read_names(pq, paths[0])
    labels = {
        split: {str(label) for part in parts for label in part["label"]}
        for split, parts in rows.items()
    }
    classes, numbers = number_classes(labels["train"], labels["val"], root=root, names=names)
    splits: dict[str, Source] = {}
    for split, paths in shards.items():
        tars = [_unpack(pq, path, split, scratch) for path in paths]
        found = _members(rows[split], paths, tars)
        splits[split] = TarSource(found, numbers, classes=classes, tars=tars, shown=paths)
    return splits


def _read_rows(pq: Any, path: Path) -> dict[str, list[Any]]:
    """Labels and names of the images of a file, without their bytes."""
    try:
        with pq.ParquetFile(path) as file:
            columns = {file.schema.column(at).path for at in range(len(file.schema))}
            if not {"image.bytes", "label"} <= columns:
                raise ValueError(
                    f"{path} has the columns {', '.join(sorted(columns)[:6])}; "
                    "expected image (with bytes and path) and label, as Hugging Face writes them"
                )
            named = "image.path" in columns
            table = file.read(columns=["label", *(["image.path"] if named else [])])
    except OSError as error:  # pyarrow.ArrowInvalid is a ValueError, and so below
        raise OSError(f"cannot read {path}: {error}; get it again") from None
    except ValueError as error:
        line = " ".join(str(error).split())
        raise ValueError(line if str(path) in line else f"cannot read {path}: {line}") from None
    labels = table.column("label").to_pylist()
    if any(not isinstance(label, int) or label < 0 for label in labels):
        raise ValueError(f"{path} has images without a class (label null or -1); remove the file")
    images = table.column("image").to_pylist() if named else [{}] * len(labels)
    return {"label": labels, "path": [(image or {}).get("path") for image in images]}


def _read_names(pq: Any, path: Path) -> list[str]:
    try:
        metadata = pq.read_schema(path).metadata or {}
        features = json.loads(metadata[b"huggingface"])["info"]["features"]
        names = features["label"]["names"]
    except (KeyError, ValueError, TypeError):
        return []
    sound = isinstance(names, list) and all(isinstance(name, str) for name in names)
    return names if sound else []


def _unpack(pq: Any, path: Path, split: str, scratch: Path) -> Path:
    """Copies the images of a file into a tar, because a row cannot be read without its group."""
    scratch.mkdir(parents=True, exist_ok=True)
    state = path.stat()
    tar = scratch / f"{split}-{path.stem}-{state.st_size}-{state.st_mtime_ns}.tar"
    if tar.exists():
        return tar
    unfinished = tar.with_suffix(".unfinished")
    with (
        pq.ParquetFile(path) as file,
        tarfile.open(unfinished, "w", format=tarfile.USTAR_FORMAT) as out,
    ):
        for group in range(file.num_row_groups):
            for image in file.read_row_group(group, columns=["image.bytes"]).column("image"):
                data = (image.as_py() or {}).get("bytes")
                if data is None:
                    raise ValueError(f"{path} names image files but does not hold their bytes")
                entry = tarfile.TarInfo("image")
                entry.size = len(data)
                out.addfile(entry, BytesIO(data))
    unfinished.replace(tar)
    return tar


def _members(
    rows: Sequence[dict[str, list[Any]]], paths: Sequence[Path], tars: Sequence[Path]
) -> list[Member]:
    named = [name for part in rows for name in part["path"]]
    # Some data sets leave the names out, begin them anew in each file, or keep whole paths.
    unique = len(set(named)) == len(named) and all(name and is_inside(name) for name in named)
    found = []
    for number, (part, path, tar) in enumerate(zip(rows, paths, tars, strict=True)):
        every = zip(part["label"], part["path"], find_members(tar), strict=True)
        for row, (label, name, member) in enumerate(every):
            key = name if unique else f"{path.stem}/{row:08d}"
            found.append(Member(key, str(label), number, member.offset_data, member.size))
    return found
