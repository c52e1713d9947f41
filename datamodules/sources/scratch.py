"""Temporary folders of which a process that is killed leaves none for good.

Each is locked for as long as its process, or one that was forked from it, lives; whoever makes
the next one removes those that nobody holds.
"""

import os
import shutil
import tempfile
import weakref
from pathlib import Path
from typing import Any

__all__ = ["Scratch"]

PREFIX = "litcam-table-"


class Scratch:
    """A new folder in TMPDIR.

    Attributes:
        folder: Its path.

    Raises:
        OSError: If there is no room for it.
    """

    def __init__(self) -> None:
        for path in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
            if (lock := _lock(path, wait=False)) is not None:
                _remove(path, lock, os.getpid())
        while True:
            self.folder = Path(tempfile.mkdtemp(prefix=PREFIX))
            self._lock = _lock(self.folder, wait=True)
            if self.folder.exists():
                return
            # Another process came between, and took it for abandoned.
            if self._lock is not None:
                os.close(self._lock)

    def remove(self) -> None:
        """Removes it now."""
        _remove(self.folder, self._lock, os.getpid())

    def remove_with(self, owner: Any) -> None:
        """Removes it when an object goes away, or the process ends, but no fork of it."""
        weakref.finalize(owner, _remove, self.folder, self._lock, os.getpid())


def _lock(folder: Path, *, wait: bool) -> int | None:
    """An open handle that holds a folder; None where it is held, gone, or cannot be locked."""
    try:
        from fcntl import LOCK_EX, LOCK_NB, flock

        handle = os.open(folder, os.O_RDONLY | os.O_NOFOLLOW)
    except (ModuleNotFoundError, OSError):
        return None
    try:
        flock(handle, LOCK_EX if wait else LOCK_EX | LOCK_NB)
    except OSError:
        os.close(handle)
        return None
    return handle


def _remove(folder: Path, lock: int | None, owner: int) -> None:
    if os.getpid() == owner:  # a forked process has the table, but not the files, to itself
        shutil.rmtree(folder, ignore_errors=True)
        if lock is not None:
            os.close(lock)
