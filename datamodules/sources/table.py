"""What is known of the images of a split: columns in files, mapped by every process that asks."""

import itertools
import tempfile
from collections.abc import Iterable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import xxhash
from numpy.typing import NDArray

from litcam.datamodules.shard_format import COLUMNS, column_file, map_column
from litcam.datamodules.sources.keys import ENCODING, Keys
from litcam.datamodules.sources.scratch import Scratch

__all__ = ["Chunks", "ImageTable", "build_table"]

BLOCK = 1 << 14
HASHED = 1 << 20


class Chunks(NamedTuple):
    """How images lie in files that many of them share.

    Attributes:
        images: int32 ``(num_images,)``, their indices, chunk by chunk as they are stored.
        starts: int64 ``(num_chunks + 1,)``, where in ``images`` each chunk begins.
    """

    images: NDArray[np.int32]
    starts: NDArray[np.int64]


class ImageTable:
    """Columns with a row an image. Another process is sent the places of the files, no content.

    Args:
        files: Of ``key_bytes``, ``key_ends`` and ``labels``, and of the other columns of
            `litcam.datamodules.shard_format` where images share files.
        starts: Where each chunk begins in ``images``, if that is among the columns.

    Attributes:
        columns: The arrays.
        keys: Names of the images.
        labels: int32 ``(num_images,)``.
        chunks: How the images are stored; None if that is not known, or each is its own file.

    Raises:
        ValueError: If a file is no column.
        OSError: If a file cannot be read.
    """

    def __init__(self, files: Mapping[str, Path], starts: NDArray[np.int64] | None = None) -> None:
        self.files, self._starts = dict(files), starts
        self.columns = {name: map_column(path) for name, path in self.files.items()}
        self.keys = Keys(self.columns["key_bytes"], self.columns["key_ends"])
        self.labels: NDArray[np.int32] = self.columns["labels"]
        self.chunks = None if starts is None else Chunks(self.columns["images"], starts)

    def __len__(self) -> int:
        return len(self.labels)

    def __reduce__(self) -> tuple[Any, ...]:
        return ImageTable, (self.files, self._starts)

    def __deepcopy__(self, memo: dict[int, Any]) -> "ImageTable":
        return self  # nothing in it changes, and its files go away with it

    @cached_property
    def fingerprint(self) -> str:
        """The xxh64 of keys and labels."""
        digest = xxhash.xxh64()
        for name in ("key_bytes", "key_ends", "labels"):
            column = self.columns[name]
            for at in range(0, len(column), HASHED):
                digest.update(column[at : at + HASHED].tobytes())
        return digest.hexdigest()


def build_table(
    rows: Iterable[tuple[str, int]],
    *,
    starts: NDArray[np.int64] | None = None,
    **columns: NDArray[Any],
) -> ImageTable:
    """Writes a table into a temporary folder, which goes away with it or with this process.

    Args:
        rows: Name and label of each image; of these a block at a time is in memory.
        starts: See `ImageTable`.
        **columns: Further ones.

    Raises:
        OSError: If there is no room for it.
    """
    try:
        scratch = Scratch()
    except OSError as error:
        raise _no_room(tempfile.gettempdir(), error) from None
    try:
        names = ("key_bytes", "key_ends", "labels", *columns)
        files = {name: scratch.folder / column_file(name) for name in names}
        _write_rows(files, rows)
        for name, column in columns.items():
            np.save(files[name], column.astype(COLUMNS[name], copy=False))
        table = ImageTable(files, starts)
    except BaseException as error:
        scratch.remove()
        if isinstance(error, OSError) and error.filename is None and error.errno is not None:
            raise _no_room(str(scratch.folder.parent), error) from None
        raise
    scratch.remove_with(table)
    return table


def _no_room(place: str, error: OSError) -> OSError:
    # Without its number: a command that is out of room elsewhere would take it for its own.
    return OSError(
        f"cannot write the list of images to {place}: {error.strerror}; make room there, or set "
        "TMPDIR to another folder"
    )


def _write_rows(files: Mapping[str, Path], rows: Iterable[tuple[str, int]]) -> None:
    rows, end = iter(rows), 0
    with (
        _Column(files["key_bytes"], "key_bytes") as key_bytes,
        _Column(files["key_ends"], "key_ends") as key_ends,
        _Column(files["labels"], "labels") as labels,
    ):
        while block := list(itertools.islice(rows, BLOCK)):
            keys = [key.encode(*ENCODING) for key, _ in block]
            ends = end + np.cumsum(np.fromiter(map(len, keys), np.int64, len(keys)))
            end = int(ends[-1])
            key_bytes.add(np.frombuffer(b"".join(keys), np.uint8))
            key_ends.add(ends)
            labels.add(np.fromiter((label for _, label in block), np.int32, len(block)))


class _Column:
    """An ``.npy`` file that grows; how long it is, is written into its header at the end."""

    HEADER = 128

    def __init__(self, path: Path, name: str) -> None:
        self._file = path.open("wb")
        self._kind, self._length = np.dtype(COLUMNS[name]), 0
        self._file.write(bytes(self.HEADER))

    def __enter__(self) -> "_Column":
        return self

    def add(self, values: NDArray[Any]) -> None:
        self._file.write(values.astype(self._kind, copy=False).data)
        self._length += len(values)

    def __exit__(self, *error: object) -> None:
        # The format: https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html
        shape, order = (self._length,), False
        about = repr({"descr": self._kind.str, "fortran_order": order, "shape": shape})
        magic = b"\x93NUMPY\x01\x00" + (self.HEADER - 10).to_bytes(2, "little")
        with self._file as file:
            file.seek(0)
            file.write((magic + about.encode()).ljust(self.HEADER - 1) + b"\n")
