"""Files that are read whole: regular ones, and none larger than it can sensibly be."""

import errno
import os
import stat
from pathlib import Path

__all__ = ["LARGEST", "read_whole"]

# Of an image of the most pixels that are decoded, losslessly; a list of files is far below.
LARGEST = 1 << 30


def read_whole(path: str | Path) -> bytes:
    """The content of a regular file.

    A device may have no end, and a pipe without a writer would wait for one.

    Raises:
        ValueError: If it is a device or a pipe, or has more than `LARGEST` bytes.
        OSError: If it cannot be read.
    """
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    try:
        handle = os.open(path, flags)
    except OSError as error:
        if error.errno != errno.ENXIO:
            raise
        raise ValueError(f"{path} is a socket or a device; give a file") from None
    with os.fdopen(handle, "rb", buffering=0) as file:
        about = os.fstat(handle)
        if stat.S_ISDIR(about.st_mode):
            raise IsADirectoryError(f"{path} is a folder; give a file")
        if not stat.S_ISREG(about.st_mode):
            kind = "pipe" if stat.S_ISFIFO(about.st_mode) else "device"
            raise ValueError(f"{path} is a {kind}; give a file")
        if about.st_size > LARGEST:
            raise ValueError(
                f"{path} has {about.st_size / 1e9:.1f} GB, more than the {LARGEST / 1e9:.1f} "
                "that are read at once; check what it is"
            )
        return file.read()
