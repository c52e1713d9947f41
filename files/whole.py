"""A file that takes the place of another one whole, or not at all."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

__all__ = ["replacing", "sync", "write_whole"]


@contextmanager
def replacing(file: str | Path) -> Iterator[Path]:
    """Yields where to write what is to take the place of `file` once it is whole.

    That is beside it, because only within one file system a file is replaced in an instant, and it
    is on the disk before it takes the place: after a kill or a power cut there is the old file or
    the new one. What a kill leaves of the new one, `NAME.partial`, the next attempt writes over.

    Raises:
        OSError: it cannot be written, and the old one is still there; the message names it.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     with replacing(Path(folder, "notes.txt")) as partial:
        ...         _ = partial.write_text("all of it")
        ...     [path.name for path in Path(folder).iterdir()]
        ['notes.txt']
    """
    file = Path(file)
    partial = file.with_name(f"{file.name}.partial")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        yield partial
        sync(partial)
        partial.replace(file)
    except BaseException as error:
        with suppress(OSError):  # what went wrong first counts
            partial.unlink()
        if isinstance(error, OSError):
            reason = f"{error.strerror or error}; {file} stays as it was"
            raise OSError(error.errno, reason) from error
        raise
    with suppress(OSError):  # some network file systems have no such call for folders
        sync(file.parent)


def write_whole(file: str | Path, text: str) -> None:
    """Writes a text file in UTF-8, whole or not at all.

    Raises:
        OSError: as `replacing` says.
    """
    with replacing(file) as partial:
        partial.write_text(text, encoding="utf-8", newline="")


def sync(path: Path) -> None:
    """Waits until a file or a folder's list of files is on the disk."""
    opened = os.open(path, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)
