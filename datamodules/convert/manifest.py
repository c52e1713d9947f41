"""What a converted folder says of itself: written at the end, and checked against the files."""

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from litcam.datamodules.convert.chunks import Chunk, Written, fingerprint, replace_text
from litcam.datamodules.convert.inputs import Source
from litcam.datamodules.convert.litdata import index_of
from litcam.datamodules.files import read_whole
from litcam.datamodules.shard_format import (
    COLUMNS,
    FILES,
    FORMAT,
    INDEX,
    MANIFEST,
    as_text,
    column_file,
    find_flaw,
    map_column,
    parse_manifest,
)
from litcam.datamodules.sources.keys import ENCODING
from litcam.files import sync

__all__ = ["MANIFEST", "check", "read_manifest", "write_manifest", "write_split"]

PLACES = ("labels", "chunk", "offset", "length")
BLOCK = 1 << 24


def write_split(
    root: Path, source: Source, chunks: Sequence[Chunk], written: dict[Chunk, Written]
) -> dict[str, Any]:
    """Writes what is found beside the chunks of a split, and returns its part of the manifest.

    Args:
        root: Folder of all splits.
        source: The images that were converted.
        chunks: All chunks of the split.
        written: What is known of each.

    Raises:
        ValueError: If every image was broken.
    """
    split = chunks[0].split
    arrays = {name: np.full(len(source), -1, COLUMNS[name]) for name in PLACES}
    arrays["labels"][:] = source.labels
    entries: list[dict[str, Any]] = []
    for chunk in chunks:
        at = written[chunk]
        if not at.lengths:  # all its images were left out
            continue
        number = len(entries)
        file = _renumber(chunk, number, root)
        left_out = set(at.skipped)
        indices = [index for index in chunk.indices if index not in left_out]
        arrays["chunk"][indices] = number
        arrays["offset"][indices] = at.offsets
        arrays["length"][indices] = at.lengths
        size = {"num_images": len(indices), "num_bytes": at.num_bytes}
        entries.append({"file": file.name, **size, "xxh64": at.xxh64})
    kept = arrays["chunk"] >= 0
    if not kept.any():
        raise ValueError(f"not one of the {len(source)} {split} images can be read; look at them")
    folder = root / split
    keys = [key.encode(*ENCODING) for key, keep in zip(source.keys, kept, strict=True) if keep]
    columns: dict[str, Any] = {name: array[kept] for name, array in arrays.items()}
    columns["key_bytes"] = np.frombuffer(b"".join(keys), np.uint8)
    columns["key_ends"] = np.cumsum([len(key) for key in keys], dtype=np.int64)
    columns["images"] = np.lexsort((columns["offset"], columns["chunk"])).astype(np.int32)
    for name, column in columns.items():
        np.save(folder / column_file(name), column)
    index = index_of(entries, fingerprint(entry["xxh64"] for entry in entries))
    (folder / INDEX).write_text(json.dumps(index, sort_keys=True))
    counts = np.bincount(columns["labels"], minlength=len(source.classes))
    return {
        "num_images": len(keys),
        "class_counts": counts.tolist(),
        "skipped": [source.keys[index] for index in np.flatnonzero(~kept).tolist()],
        "chunks": entries,
        "files": {
            name: {"num_bytes": (folder / name).stat().st_size, "xxh64": _hash(folder / name)}
            for name in FILES
        },
    }


def _renumber(chunk: Chunk, number: int, root: Path) -> Path:
    old = chunk.file(root)
    new = old.with_name(f"chunk-0-{number}.bin")
    if new != old:
        # Not after: a note must never lie beside another chunk than its own.
        old.with_suffix(".json").unlink()
        old.replace(new)
    return new


def write_manifest(
    root: Path,
    splits: dict[str, dict[str, Any]],
    *,
    classes: Sequence[str],
    seed: int,
    short_side: int | None,
) -> None:
    """Writes the manifest, once everything it speaks of is on the disk."""
    about = {"format": FORMAT, "classes": list(classes), "seed": seed, "short_side": short_side}
    for split in splits:
        for name in FILES:
            sync(root / split / name)
        sync(root / split)
    replace_text(root / MANIFEST, as_text({**about, "splits": splits}))
    sync(root)


def expected_files(manifest: dict[str, Any]) -> set[str]:
    """All files of a converted folder, relative to it."""
    files = {MANIFEST}
    for split, about in manifest["splits"].items():
        files |= {f"{split}/{name}" for name in FILES}
        files |= {f"{split}/{chunk['file']}" for chunk in about["chunks"]}
    return files


def read_manifest(root: str | Path) -> dict[str, Any]:
    """The manifest of a converted folder.

    Raises:
        ValueError: If the folder is not one, or was made by a later litcam.
    """
    file = Path(root).expanduser() / MANIFEST
    try:
        text = read_whole(file)
    except OSError:
        raise ValueError(
            f"{root} is not a converted folder: no {MANIFEST} in it; make one with "
            "`litcam convert SRC DST`"
        ) from None
    return parse_manifest(text, str(file))


def check(root: str | Path, tick: Callable[[int], None] = lambda num_bytes: None) -> dict[str, Any]:
    """Compares a converted folder with its manifest, byte for byte.

    Args:
        root: The folder.
        tick: Called with the number of bytes read.

    Returns:
        The manifest.

    Raises:
        ValueError: If a file is missing, superfluous, too short or different, in one line.
    """
    root = Path(root).expanduser()
    manifest = read_manifest(root)
    problems = list(_find_problems(root, manifest, tick))
    if problems:
        more = f", and {len(problems) - 1} more" if len(problems) > 1 else ""
        raise ValueError(f"{root} is damaged: {problems[0]}{more}; copy or convert it again")
    return manifest


def _find_problems(
    root: Path, manifest: dict[str, Any], tick: Callable[[int], None]
) -> Iterator[str]:
    expected = expected_files(manifest)
    there = {str(at.relative_to(root).as_posix()) for at in root.rglob("*") if at.is_file()}
    for name in sorted(expected - there):
        yield f"{name} is missing"
    for name in sorted(there - expected):
        if not name.rpartition("/")[2].startswith("."):
            yield f"{name} does not belong there"
    for split, about in manifest["splits"].items():
        sound = {**about["files"], **{chunk["file"]: chunk for chunk in about["chunks"]}}
        for name, at in sorted(sound.items()):
            file = root / split / name
            if not file.is_file():
                continue
            size = file.stat().st_size
            if size != at["num_bytes"]:
                yield f"{split}/{name} has {size} bytes instead of {at['num_bytes']}"
            elif _hash(file, tick) != at["xxh64"]:
                yield f"{split}/{name} is not what was written (its hash differs)"
        if expected <= there:
            yield from _find_contradictions(root / split, split, manifest)


def _find_contradictions(folder: Path, split: str, manifest: dict[str, Any]) -> Iterator[str]:
    about = manifest["splits"][split]
    try:
        columns = {name: map_column(folder / column_file(name)) for name in COLUMNS}
        index = json.loads((folder / INDEX).read_text())["chunks"]
        index = [(at["filename"], at["chunk_size"], at["chunk_bytes"]) for at in index]
    except (ValueError, KeyError, TypeError, RecursionError, OSError):
        yield f"{split}: {', '.join(FILES)} cannot all be read"
        return
    if index != [(at["file"], at["num_images"], at["num_bytes"]) for at in about["chunks"]]:
        yield f"{split}/{INDEX} and {MANIFEST} disagree about the chunks"
    if flaw := find_flaw(columns, about):
        yield f"{split}: {flaw}"


def _hash(file: Path, tick: Callable[[int], None] = lambda num_bytes: None) -> str:
    digest = xxhash.xxh64()
    with file.open("rb") as handle:
        while block := handle.read(BLOCK):
            digest.update(block)
            tick(len(block))
    return digest.hexdigest()
