"""How far reading has come, told in chunks: so that they are fetched before they are needed."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["ChunkFollower", "Follower", "uses_of_chunks"]

BLOCK = 1 << 20


class Follower:
    """Is told how far the reading of images in an order has come; this one needs not know."""

    def at(self, asked: int, taken: int) -> None:
        """Says that the workers were asked for the first ``asked`` images, ``taken`` came back."""

    def close(self) -> None:
        """Says that nothing more will be read in this order."""


class ChunkFollower(Follower):
    """Turns the number of images asked for and taken into numbers of chunks.

    Args:
        plan: Is told how many chunks of the order were asked for, and how many are finished.
        first: int64 ``(num_chunks,)``, the place in the order of the first image of each chunk.
        last: int64 ``(num_chunks,)``, the place of its last image.
    """

    def __init__(self, plan: Any, first: NDArray[np.int64], last: NDArray[np.int64]) -> None:
        self._plan, self._first = plan, first
        # A chunk is behind us only when those before it are as well.
        self._last = np.maximum.accumulate(last)

    def at(self, asked: int, taken: int) -> None:
        """Says that the workers were asked for the first ``asked`` images, ``taken`` came back."""
        wanted, finished = np.searchsorted(self._first, asked), np.searchsorted(self._last, taken)
        self._plan.at(int(wanted), int(finished))

    def close(self) -> None:
        """Says that nothing more will be read in this order."""
        self._plan.close()


def uses_of_chunks(
    images: NDArray[np.int64], chunk: NDArray[np.int32], num_chunks: int
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Which chunks an order of images needs, in the order of their first need.

    Args:
        images: int64 ``(num_reads,)``.
        chunk: int32 ``(num_images,)``, where each image lies.
        num_chunks: How many there are.

    Returns:
        Numbers of the chunks, and the places in ``images`` where each is needed first and last.
    """
    first = np.full(num_chunks, -1, np.int64)
    last = np.full(num_chunks, -1, np.int64)
    # Of several values for one chunk the last one stays: no sorting, a block at a time.
    for start in range(0, len(images), BLOCK):
        of_block = chunk[images[start : start + BLOCK]]
        last[of_block] = np.arange(start, start + len(of_block))
    for start in reversed(range(0, len(images), BLOCK)):
        of_block = chunk[images[start : start + BLOCK]][::-1]
        first[of_block] = np.arange(start, start + len(of_block))[::-1]
    numbers = np.flatnonzero(first >= 0)
    numbers = numbers[np.argsort(first[numbers])]
    return numbers, first[numbers], last[numbers]
