"""Which image is taken when: every one of an epoch once, on any number of processes.

The order of an epoch is a function of seed and epoch alone. Each process takes one stretch of it,
batch by batch, so that images that lie together are read together. What an interrupted epoch has
already trained follows from how many batches were done; the rest of the order is then shared out
among the processes there are now, be they more, fewer or the same. Places in an order are counted
in spans, and only those a process takes are turned into images.
"""

from collections.abc import Iterable, Sequence
from itertools import chain
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "Images",
    "Stored",
    "Stretch",
    "as_images",
    "evaluated",
    "part",
    "remaining",
    "seeds",
    "taken",
    "total",
]

# Images of so many chunks are shuffled among each other: as few as mix well, because a process has
# all of them in the cache of its node at once, and a part of the next ones.
CHUNKS_SHUFFLED_TOGETHER = 4

Images = NDArray[np.int64]
Spans = Sequence[range]


class Stored(Protocol):
    """How images lie in files that many of them share."""

    @property
    def images(self) -> NDArray[np.integer]:
        """``(num_images,)``, their places in ``keys``, file by file."""

    @property
    def starts(self) -> NDArray[np.integer]:
        """``(num_files + 1,)``, where in ``images`` those of each file begin."""


class Stretch(NamedTuple):
    """Part of an epoch that was trained by so many processes, each ``num_batches`` batches."""

    num_processes: int
    batch_size: int
    num_batches: int


def total(spans: Spans) -> int:
    """How many places there are in some spans.

    >>> total([range(3), range(5, 10)])
    8
    """
    return sum(map(len, spans))


def remaining(num_images: int, stretches: Iterable[Stretch]) -> list[range]:
    """The places that some stretches of an epoch leave over, in their order.

    >>> remaining(10, [Stretch(num_processes=2, batch_size=2, num_batches=1)])
    [range(2, 4), range(6, 8), range(8, 10)]
    """
    rest = [range(num_images)]
    for num_processes, batch_size, num_batches in stretches:
        share = total(rest) // (num_processes * batch_size) * batch_size
        done = num_batches * batch_size
        left = [_cut(rest, r * share + done, (r + 1) * share) for r in range(num_processes)]
        rest = [*chain(*left), *_cut(rest, num_processes * share, total(rest))]
    return rest


def taken(num_images: int, stretches: Iterable[Stretch]) -> list[range]:
    """The places that some stretches of an epoch took, in ascending order."""
    found, start = [], 0
    for span in sorted(remaining(num_images, stretches), key=lambda span: span.start):
        found.append(range(start, span.start))
        start = span.stop
    return [span for span in (*found, range(start, num_images)) if span]


def part(spans: Spans, rank: int, num_processes: int, batch_size: int) -> list[range]:
    """The share that one process takes of what is left: whole batches, as many as the others.

    >>> part([range(10)], rank=1, num_processes=2, batch_size=2)
    [range(4, 8)]
    """
    share = total(spans) // (num_processes * batch_size) * batch_size
    return _cut(spans, rank * share, (rank + 1) * share)


def _cut(spans: Spans, start: int, stop: int) -> list[range]:
    """The places number ``start`` to ``stop`` of some spans."""
    found = []
    for span in spans:
        piece = span[max(start, 0) : max(stop, 0)]
        if piece:
            found.append(piece)
        start, stop = start - len(span), stop - len(span)
    return found


def as_images(
    spans: Spans, num_images: int, stored: Stored | None, *, seed: int, epoch: int
) -> Images:
    """What lies at some places of the order of an epoch.

    Args:
        spans: The places.
        num_images: How many images the whole epoch has.
        stored: How they lie in shared files, else None. Files are then taken in a random order,
            and images shuffled within `CHUNKS_SHUFFLED_TOGETHER` of them.
        seed: Of the run.
        epoch: From 0.

    Returns:
        Indices, int64 ``(total(spans),)``.
    """
    if stored is None:
        order = _generator(seed, epoch).permutation(num_images)
        pieces: list[NDArray[Any]] = [order[span.start : span.stop] for span in spans]
    else:
        pieces = [piece for span in spans for piece in _of_files(span, stored, seed, epoch)]
    return np.concatenate(pieces).astype(np.int64, copy=False) if pieces else np.empty(0, np.int64)


def _of_files(span: range, stored: Stored, seed: int, epoch: int) -> Iterable[NDArray[np.integer]]:
    """What lies in a span, group by group of files; no other group is looked at."""
    turn = _generator(seed, epoch).permutation(len(stored.starts) - 1)
    sizes = np.diff(stored.starts)[turn]
    ends = np.add.reduceat(sizes, np.arange(0, len(turn), CHUNKS_SHUFFLED_TOGETHER)).cumsum()
    first = int(np.searchsorted(ends, span.start, side="right"))
    last = int(np.searchsorted(ends, span.stop, side="left"))
    for group in range(first, last + 1):
        at = group * CHUNKS_SHUFFLED_TOGETHER
        files = turn[at : at + CHUNKS_SHUFFLED_TOGETHER]
        images = np.concatenate(
            [stored.images[stored.starts[file] : stored.starts[file + 1]] for file in files]
        )
        _generator(seed, epoch, group).shuffle(images)
        start = int(ends[group]) - len(images)
        yield images[max(span.start - start, 0) : span.stop - start]


def _generator(*numbers: int) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence(numbers)))


def evaluated(num_images: int, stored: Stored | None, *, rank: int, num_replicas: int) -> Images:
    """One process's share of every image once, in the order in which they are stored, int64."""
    order = np.arange(num_images) if stored is None else stored.images
    share, more = divmod(num_images, num_replicas)
    start = rank * share + min(rank, more)
    return np.asarray(order[start : start + share + (rank < more)], dtype=np.int64)


def seeds(images: Images, *, seed: int, epoch: int) -> NDArray[np.uint64]:
    """A seed for the random transform of each image, the same whoever takes it.

    A hash of run, epoch and image: SplitMix64 (Steele, Lea and Flood 2014,
    doi:10.1145/2660193.2660195), which needs no table of all images.

    Args:
        images: Their places in ``keys``, any shape.
        seed: Of the run.
        epoch: From 0.

    Returns:
        uint64, the same shape.
    """
    (key,) = np.random.SeedSequence([seed, epoch, 1]).generate_state(1, np.uint64)
    with np.errstate(over="ignore"):
        mixed = key + (images.astype(np.uint64) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
        mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))
