"""What a converted folder says of itself: written at the end, and checked against the files."""

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import xxhash

from litcam.datamodules.convert.chunks import Chunk, Written, fingerprint, replace_text, sync
from litcam.datamodules.convert.sources import Source

__all__ = ["MANIFEST", "check", "read_manifest", "write_manifest", "write_split"]

MANIFEST = "litcam.json"
FORMAT = 1
KEYS, SAMPLES, INDEX = FILES = ("keys.txt", "samples.npz", "index.json")
ARRAYS = {"label": np.int32, "chunk": np.int32, "offset": np.int64, "length": np.int64}
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
    arrays = {name: np.full(len(source), -1, kind) for name, kind in ARRAYS.items()}
    arrays["label"][:] = source.labels.numpy()
    entries: list[dict[str, Any]] = []
    litdata: list[dict[str, Any]] = []
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
        litdata.append({**at.litdata["chunks"][0], "filename": file.name})
    kept = arrays["chunk"] >= 0
    if not kept.any():
        raise ValueError(f"not one of the {len(source)} {split} images can be read; look at them")
    folder = root / split
    keys = [key for key, keep in zip(source.keys, kept.tolist(), strict=True) if keep]
    (folder / KEYS).write_bytes(("\n".join(keys) + "\n").encode())
    columns: dict[str, Any] = {name: array[kept] for name, array in arrays.items()}
    np.savez(folder / SAMPLES, **columns)
    config = next(written[at].litdata["config"] for at in chunks if written[at].lengths)
    config["chunk_size"] = max(entry["num_images"] for entry in entries)
    index = {"chunks": litdata, "config": config}
    # LitData tells by it whether its copy of a remote folder is still good.
    index["updated_at"] = fingerprint(entry["xxh64"] for entry in entries)
    (folder / INDEX).write_text(json.dumps(index, sort_keys=True))
    counts = np.bincount(arrays["label"][kept], minlength=len(source.classes))
    return {
        "num_images": len(keys),
        "class_counts": counts.tolist(),
        "skipped": [source.keys[index] for index in np.flatnonzero(~kept)],
        "chunks": entries,
        "files": {name: _hash(folder / name) for name in FILES},
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
    text = json.dumps({**about, "splits": splits}, indent=1)
    replace_text(root / MANIFEST, text)
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
        manifest = json.loads(file.read_text(encoding="utf-8"))
        if manifest["format"] > FORMAT:
            raise ValueError(f"{file} was written by a later litcam; pip install -U litcam")
        expected_files(manifest)
    except OSError:
        raise ValueError(
            f"{root} is not a converted folder: no {MANIFEST} in it; make one with "
            "`litcam convert SRC DST`"
        ) from None
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError):
        raise ValueError(f"{file} is damaged; convert again, or copy the folder again") from None
    return dict(manifest)


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
        sizes = {chunk["file"]: chunk["num_bytes"] for chunk in about["chunks"]}
        hashes = {**about["files"], **{chunk["file"]: chunk["xxh64"] for chunk in about["chunks"]}}
        for name in sorted(hashes):
            file = root / split / name
            if not file.is_file():
                continue
            size = file.stat().st_size
            if size != sizes.get(name, size):
                yield f"{split}/{name} has {size} bytes instead of {sizes[name]}"
            elif _hash(file, tick) != hashes[name]:
                yield f"{split}/{name} is not what was written (its hash differs)"
        if expected <= there:
            yield from _find_contradictions(root / split, split, manifest)


def _find_contradictions(folder: Path, split: str, manifest: dict[str, Any]) -> Iterator[str]:
    about, classes = manifest["splits"][split], manifest["classes"]
    try:
        keys = (folder / KEYS).read_bytes().decode().split("\n")[:-1]
        with np.load(folder / SAMPLES) as file:
            arrays = {name: file[name] for name in ARRAYS}
        index = json.loads((folder / INDEX).read_text())["chunks"]
        index = [(at["filename"], at["chunk_size"], at["chunk_bytes"]) for at in index]
    except (ValueError, KeyError, TypeError, OSError, BadZipFile):
        yield f"{split}: {', '.join(FILES)} cannot all be read"
        return
    chunks = about["chunks"]
    if index != [(at["file"], at["num_images"], at["num_bytes"]) for at in chunks]:
        yield f"{split}/{INDEX} and {MANIFEST} disagree about the chunks"
    if {len(keys), *(len(array) for array in arrays.values())} != {about["num_images"]}:
        yield f"{split} has {len(keys)} keys, {MANIFEST} says {about['num_images']} images"
        return
    counts = np.bincount(arrays["label"], minlength=len(classes)).tolist()
    if counts != about["class_counts"]:
        yield f"{split}/{SAMPLES} and {MANIFEST} disagree about the images of each class"
    held = np.bincount(arrays["chunk"], minlength=len(chunks)).tolist()
    if held != [at["num_images"] for at in chunks]:
        yield f"{split}/{SAMPLES} and {MANIFEST} disagree about the images of each chunk"
        return
    ends = arrays["offset"] + arrays["length"]
    for number in np.flatnonzero(
        ends > np.array([at["num_bytes"] for at in chunks])[arrays["chunk"]]
    ):
        yield f"{split}/{SAMPLES} puts {keys[number]} beyond its chunk"
        return


def _hash(file: Path, tick: Callable[[int], None] = lambda num_bytes: None) -> str:
    digest = xxhash.xxh64()
    with file.open("rb") as handle:
        while block := handle.read(BLOCK):
            digest.update(block)
            tick(len(block))
    return digest.hexdigest()
