"""Which image goes into which chunk, and what an earlier run has done of it."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from litcam.datamodules.convert.chunks import (
    Chunk,
    Written,
    clear_unfinished,
    fingerprint,
    read_written,
    replace_text,
    stored,
)
from litcam.datamodules.convert.inputs import Source
from litcam.datamodules.files import read_whole

__all__ = ["PLAN", "Plan", "make_plan"]

PLAN = "plan.json"
# Images that are looked at to know how many make a chunk; if they are to be made smaller, each
# takes as long as converting it.
SAMPLE, SAMPLE_SMALLER = 1000, 100


@dataclass
class Plan:
    """All chunks of all splits.

    Attributes:
        chunks: In the order of split and number.
        written: What is known of those that are there.
        num_bytes: Of the images of each, before they are converted.
        goes_on: Whether an earlier run made this plan.
    """

    chunks: list[Chunk] = field(default_factory=list)
    written: dict[Chunk, Written] = field(default_factory=dict)
    num_bytes: dict[Chunk, int] = field(default_factory=dict)
    goes_on: bool = False

    def of(self, split: str) -> list[Chunk]:
        """The chunks of a split."""
        return [chunk for chunk in self.chunks if chunk.split == split]

    def done(self) -> list[Chunk]:
        """The chunks that are there."""
        return [chunk for chunk in self.chunks if chunk in self.written]

    def missing(self) -> list[Chunk]:
        """The chunks that are not."""
        return [chunk for chunk in self.chunks if chunk not in self.written]

    def missing_bytes(self) -> int:
        """About how many bytes are still to be written."""
        read = sum(self.num_bytes[chunk] for chunk in self.written)
        ratio = sum(at.num_bytes for at in self.written.values()) / read if read else 1.0
        return int(ratio * sum(self.num_bytes[chunk] for chunk in self.missing()))


def make_plan(
    sources: dict[str, Source],
    root: Path,
    *,
    seed: int,
    chunk_bytes: int,
    short_side: int | None,
    skip_broken: bool,
) -> Plan:
    """Makes a plan, or finds the one that an earlier run began in `root` and what it finished.

    Args:
        sources: The images of each split.
        root: Folder of all splits.
        seed: Of the order in which images are laid into chunks.
        chunk_bytes: About the size of a chunk.
        short_side: See `chunks.stored`.
        skip_broken: Whether chunks that lack broken images are finished.

    Raises:
        ValueError: If the plan that is there was made for other images or settings.
    """
    clear_unfinished(root)
    asked: dict[str, Any] = {"seed": seed, "short_side": short_side, "chunk_mb": chunk_bytes / 1e6}
    asked["images"] = {split: _identity(source) for split, source in sources.items()}
    file = root / PLAN
    begun = _read_begun(file) if file.exists() else {}
    if begun:
        _check_same(begun["asked"], asked, root)
    counts = begun.get("images_per_chunk", {})
    plan = Plan(goes_on=bool(begun))
    for split, source in sources.items():
        sizes = source.sizes()
        order = torch.randperm(len(source), generator=torch.Generator().manual_seed(seed))
        if split not in counts:
            mean = _mean_size(source, sizes, order.tolist(), short_side)
            counts[split] = max(1, round(chunk_bytes / max(mean, 1)))
        for number, indices in enumerate(order.split(counts[split])):
            chunk = _make_chunk(source, sizes, split, number, indices.tolist())
            plan.chunks.append(chunk)
            plan.num_bytes[chunk] = int(sizes[indices.numpy()].sum())
            written = read_written(chunk, root, skip_broken=skip_broken)
            if written:
                plan.written[chunk] = written
    if not begun:
        replace_text(file, json.dumps({"asked": asked, "images_per_chunk": counts}))
    return plan


def _read_begun(file: Path) -> dict[str, Any]:
    try:
        begun = json.loads(read_whole(file))
        if begun["asked"]["images"] and all(begun["images_per_chunk"].values()):
            return dict(begun)
    except (ValueError, KeyError, TypeError, AttributeError):
        pass
    raise ValueError(f"{file} is damaged; delete {file.parent} to begin anew")


def _identity(source: Source) -> str:
    for index, key in enumerate(source.keys):
        try:
            key.encode()
        except UnicodeEncodeError:
            raise ValueError(
                f"the name of {source.place(index)!r} is not UTF-8; rename it"
            ) from None
        if key.splitlines() != [key]:
            raise ValueError(f"the name of {source.place(index)!r} has a line break; rename it")
    names = zip(source.keys, source.labels.tolist(), strict=True)
    return f"{len(source)} images, {fingerprint(names)}, {fingerprint(source.classes)}"


def _check_same(begun: dict[str, Any], asked: dict[str, Any], root: Path) -> None:
    remedy = f"delete {root} to begin anew"
    if begun["images"] != asked["images"]:
        raise ValueError(
            f"{root} was begun with other images: some were added, removed or renamed since; "
            f"{remedy}, or put them back"
        )
    for name, value in begun.items():
        if asked[name] != value:
            before, now = (
                f"--{name} {at}" if at is not None else f"no --{name}"
                for at in (value, asked[name])
            )
            raise ValueError(
                f"{root} was begun with {before}, now it is {now}; {remedy}, or go on with {before}"
            )


def _mean_size(
    source: Source, sizes: NDArray[np.int64], order: Sequence[int], short_side: int | None
) -> float:
    if short_side is None:
        return float(sizes[list(order[:SAMPLE])].mean())
    found = []
    for index in order[:SAMPLE_SMALLER]:
        try:
            found.append(len(stored(source.read(index), source.place(index), short_side)))
        except (ValueError, OSError):  # said later, when it is this image's turn
            continue
    return sum(found) / max(len(found), 1)


def _make_chunk(
    source: Source, sizes: NDArray[np.int64], split: str, number: int, indices: list[int]
) -> Chunk:
    # An image that was repaired since has another size: its chunk alone is written again.
    parts = ((source.keys[at], int(source.labels[at]), int(sizes[at])) for at in indices)
    return Chunk(split, number, tuple(indices), fingerprint(parts))
