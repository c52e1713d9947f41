"""Names of millions of images as one array of bytes, which processes share."""

from collections.abc import Iterator, Sequence
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

__all__ = ["ENCODING", "Keys"]

# Names of files are bytes on Linux, not always UTF-8.
ENCODING = ("utf-8", "surrogateescape")
BLOCK = 4096
SEARCHED = 1 << 24


class Keys(Sequence[str]):
    """Strings that are made when they are asked for, out of bytes that lie in a file.

    Args:
        data: All of them, one after another, uint8.
        ends: Where each ends, int64 ``(num_keys,)``.

    >>> keys = Keys(np.frombuffer(b"catdog", np.uint8), np.array([3, 6]))
    >>> keys[1], list(keys), keys.index("dog")
    ('dog', ['cat', 'dog'], 1)
    """

    def __init__(self, data: NDArray[np.uint8], ends: NDArray[np.int64]) -> None:
        self.data, self.ends = data, ends

    def __len__(self) -> int:
        return len(self.ends)

    @overload
    def __getitem__(self, index: int) -> str: ...

    @overload
    def __getitem__(self, index: slice) -> list[str]: ...

    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            return [self[at] for at in range(*index.indices(len(self)))]
        at = range(len(self))[index]  # counts from the end, and refuses what is beyond it
        start = self.ends[at - 1] if at else 0
        return self.data[start : self.ends[at]].tobytes().decode(*ENCODING)

    def __iter__(self) -> Iterator[str]:
        start = 0
        for at in range(0, len(self), BLOCK):
            ends = self.ends[at : at + BLOCK]
            data = self.data[start : ends[-1]].tobytes()
            begin = 0
            for end in (ends - start).tolist():
                yield data[begin:end].decode(*ENCODING)
                begin = end
            start = int(ends[-1])

    def __eq__(self, other: object) -> bool:
        if isinstance(other, Keys):
            return np.array_equal(self.ends, other.ends) and np.array_equal(self.data, other.data)
        if not isinstance(other, list | tuple):
            return NotImplemented
        return len(self) == len(other) and all(map(str.__eq__, self, other))

    __hash__ = None  # type: ignore[assignment]

    def __contains__(self, name: object) -> bool:
        return next(self._find(name), None) is not None

    def index(self, name: Any, start: int = 0, stop: int | None = None) -> int:
        """The place of a name, found among the bytes.

        Raises:
            ValueError: If it is not there.
        """
        places = range(len(self))[start:stop]
        found = next((at for at in self._find(name) if at in places), None)
        if found is None:
            raise ValueError(f"no image is called {name!r}")
        return found

    def _find(self, name: object) -> Iterator[int]:
        try:
            sought = name.encode(*ENCODING) if isinstance(name, str) else b""
        except UnicodeEncodeError:
            return
        if not sought:
            return
        for begin in range(0, len(self.data), SEARCHED):
            # Blocks overlap, so that none is missed between two.
            block = self.data[begin : begin + SEARCHED + len(sought) - 1].tobytes()
            at = block.find(sought)
            while at >= 0:
                # A name may also be part of another one, or of two.
                place = int(np.searchsorted(self.ends, begin + at, side="right"))
                first = self.ends[place - 1] if place else 0
                if first == begin + at and self.ends[place] == begin + at + len(sought):
                    yield place
                at = block.find(sought, at + 1)
