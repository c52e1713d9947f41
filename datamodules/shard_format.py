"""What writer and reader of shards share: files, columns, and what a manifest has to say."""

import json
import re
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

__all__ = [
    "COLUMNS",
    "FILES",
    "FORMAT",
    "INDEX",
    "MANIFEST",
    "REMEDY",
    "as_text",
    "column_file",
    "find_flaw",
    "map_column",
    "parse_manifest",
    "starts_of",
]

FORMAT = 2
MANIFEST = "litcam.json"
# LitData's, for those who read the shards with it; litcam does not.
INDEX = "index.json"
# Of the images of a split, each a file; all but the bytes of the keys have a number an image.
COLUMNS: dict[str, Any] = {
    "key_bytes": np.uint8,  # UTF-8, one after another
    "key_ends": np.int64,
    "labels": np.int32,
    "chunk": np.int32,
    "offset": np.int64,  # of the image file in its chunk
    "length": np.int64,
    "images": np.int32,  # their indices as they lie in the chunks
}
SPLITS = ("train", "val", "test")
REMEDY = "copy the whole folder again, or convert again"

# Short enough that a file system also takes it with what is put behind it while it is fetched.
_FILE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,199}")
_HASH = re.compile(r"[0-9a-f]{16}")


def column_file(name: str) -> str:
    """The name of a column's file."""
    return f"{name}.npy"


FILES = (*map(column_file, COLUMNS), INDEX)


def map_column(path: Path) -> NDArray[Any]:
    """A column as it lies on the disk, mapped, never copied.

    Raises:
        ValueError: If the file is no ``.npy``.
        OSError: If it cannot be read.
    """
    try:
        # As a plain array: numpy's own subclass is slow to index.
        return np.asarray(np.lib.format.open_memmap(path, mode="r"))
    except OSError:
        raise
    except Exception:  # a header is Python's words, in which anything may be wrong
        raise ValueError(f"{path} is damaged: it is no column; {REMEDY}") from None


def starts_of(about: Mapping[str, Any]) -> NDArray[np.int64]:
    """Where in ``images`` each chunk of a split begins ``(num_chunks + 1,)``."""
    counts = [chunk["num_images"] for chunk in about["chunks"]]
    return np.concatenate([[0], np.cumsum(counts, dtype=np.int64)])


def as_text(manifest: Mapping[str, Any]) -> str:
    """A manifest as it is stored, with the hash of what it says."""
    return json.dumps({**manifest, "xxh64": _hash(manifest)}, indent=1)


def _hash(manifest: Mapping[str, Any]) -> str:
    said = {name: value for name, value in manifest.items() if name != "xxh64"}
    return xxhash.xxh64(json.dumps(said, sort_keys=True).encode()).hexdigest()


def parse_manifest(text: bytes, place: str) -> dict[str, Any]:
    """What a manifest says, after it was checked that it says it whole and without contradiction.

    Args:
        text: The file.
        place: Where it is, for messages.

    Raises:
        ValueError: If it is of another format or damaged, in one line.
    """
    try:
        manifest = json.loads(text)
        number = manifest["format"]
    except (ValueError, KeyError, TypeError, RecursionError):
        raise ValueError(f"{place} is damaged: it is no manifest; {REMEDY}") from None
    if number == 1:
        raise ValueError(f"{place} was written by an earlier litcam; convert again")
    if isinstance(number, int) and number > FORMAT:
        raise ValueError(
            f"{place} was written by a later litcam (format {number}, this one reads {FORMAT}); "
            "upgrade litcam: pip install -U litcam"
        )
    if number != FORMAT or manifest.get("xxh64") != _hash(manifest):
        raise ValueError(f"{place} is damaged: its hash differs; {REMEDY}")
    try:
        _check_manifest(manifest)
    except (KeyError, TypeError, AttributeError):
        raise ValueError(f"{place} is damaged: it lacks what it should say; {REMEDY}") from None
    except ValueError as error:
        raise ValueError(f"{place} is damaged: {error}; {REMEDY}") from None
    return dict(manifest)


def _check_manifest(manifest: dict[str, Any]) -> None:
    classes = manifest["classes"]
    _expect(_are(classes, str) and len(set(classes)) == len(classes), "classes has no names")
    for split, about in manifest["splits"].items():
        _expect(split in SPLITS, f"{split!r:.80} is none of {', '.join(SPLITS)}")
        chunks, files, counts = about["chunks"], about["files"], about["class_counts"]
        names = [chunk["file"] for chunk in chunks]
        for name in (*names, *files):
            _expect(
                isinstance(name, str) and _FILE.fullmatch(name) is not None,
                f"{split} names the file {name!r:.80}, which is none of its folder",
            )
        _expect(set(files) == set(FILES), f"{split} does not have the files {', '.join(FILES)}")
        _expect(len({*names, *files}) == len(names) + len(files), f"{split} names a file twice")
        for name, at in [*zip(names, chunks, strict=True), *files.items()]:
            sound = _is_count(at["num_bytes"]) and _HASH.fullmatch(at["xxh64"])
            _expect(bool(sound), f"size or hash of {split}/{name} is none")
        number, held = about["num_images"], [chunk["num_images"] for chunk in chunks]
        _expect(_is_count(number) and all(map(_is_count, (*held, *counts))), "it counts below 0")
        _expect(all(held), f"{split} has a chunk without images")
        _expect(sum(held) == number > 0, f"{split} has {number} images, its chunks {sum(held)}")
        _expect(
            len(counts) == len(classes) and sum(counts) == number,
            f"{split} has {number} images, its {len(counts)} classes {sum(counts)}",
        )
        _expect(_are(about["skipped"], str), f"{split} left out what has no name")


def _expect(sound: bool, flaw: str) -> None:
    if not sound:
        raise ValueError(flaw)


def _is_count(value: object) -> bool:
    return type(value) is int and 0 <= value < 2**62


def _are(values: object, kind: type) -> bool:
    return isinstance(values, list) and all(isinstance(value, kind) for value in values)


def find_flaw(columns: Mapping[str, NDArray[Any]], about: Mapping[str, Any]) -> str:
    """What is wrong with the columns of a split, in words, or nothing.

    Args:
        columns: All `COLUMNS`.
        about: What the manifest says of the split.
    """
    number = about["num_images"]
    for name, column in columns.items():
        if column.dtype != COLUMNS[name] or column.ndim != 1:
            return f"{column_file(name)} holds {column.ndim}-d {column.dtype}"
        if name != "key_bytes" and len(column) != number:
            return f"{column_file(name)} has {len(column)} images, {MANIFEST} says {number}"
    checks = (_flaw_of_keys, _flaw_of_labels, _flaw_of_chunks, _flaw_of_offsets)
    return next(filter(None, (check(columns, about) for check in checks)), "")


def _flaw_of_keys(columns: Mapping[str, NDArray[Any]], about: Mapping[str, Any]) -> str:
    ends = columns["key_ends"]
    whole = ends[0] >= 0 and ends[-1] == len(columns["key_bytes"]) and (ends[:-1] <= ends[1:]).all()
    return "" if whole else "key_ends.npy does not part key_bytes.npy into keys"


def _flaw_of_labels(columns: Mapping[str, NDArray[Any]], about: Mapping[str, Any]) -> str:
    labels, counts = columns["labels"], about["class_counts"]
    if labels.min() < 0 or labels.max() >= len(counts):
        return f"labels.npy has a class that is none of the {len(counts)}"
    if np.bincount(labels, minlength=len(counts)).tolist() != counts:
        return f"labels.npy and {MANIFEST} disagree about the images of each class"
    return ""


def _flaw_of_chunks(columns: Mapping[str, NDArray[Any]], about: Mapping[str, Any]) -> str:
    chunk, images, starts = columns["chunk"], columns["images"], starts_of(about)
    if chunk.min() < 0 or chunk.max() >= len(starts) - 1:
        return f"chunk.npy has a chunk that is none of the {len(starts) - 1}"
    if images.min() < 0 or images.max() >= len(images):
        return f"images.npy has an image that is none of the {len(images)}"
    seen = np.zeros(len(images), dtype=bool)
    seen[images] = True
    if not seen.all():
        return "images.npy has an image twice"
    if not np.array_equal(chunk[images], np.repeat(np.arange(len(starts) - 1), np.diff(starts))):
        return f"chunk.npy, images.npy and {MANIFEST} disagree about the images of each chunk"
    return ""


def _flaw_of_offsets(columns: Mapping[str, NDArray[Any]], about: Mapping[str, Any]) -> str:
    images = columns["images"]
    offset, length = columns["offset"][images], columns["length"][images]
    if offset.min() < 0 or length.min() < 1:
        return "offset.npy or length.npy has numbers below 0"
    for at, (start, stop) in zip(about["chunks"], pairwise(starts_of(about)), strict=True):
        # Not the sum, which may be more than an int64 holds.
        if (offset[start:stop] > at["num_bytes"] - length[start:stop]).any():
            return f"offset.npy puts an image beyond the end of {at['file']}"
        if (np.diff(offset[start:stop]) < length[start : stop - 1]).any():
            return f"offset.npy puts two images of {at['file']} over each other"
    return ""
