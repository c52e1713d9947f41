"""One file into the cache: under a name of its own, checked, then given its name at once."""

import errno
import hashlib
import itertools
import os
import re
import shutil
import socket
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path

import xxhash

from litcam.datamodules.files import LARGEST
from litcam.datamodules.remote.transfers import Getter, explain, make_getter, reason

FULL = {errno.ENOSPC, errno.EDQUOT}
DISK_ERRORS = {*FULL, errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EEXIST}
WARN_AFTER = float(os.environ.get("LITCAM_STORE_WARN_AFTER", "10"))  # seconds
FIRST_DELAY, LONGEST_DELAY = 0.5, 15.0
OLD = 600.0  # seconds without a byte: nobody writes there any more
_numbers = itertools.count()


class StoreAwayError(OSError):
    """The store did not answer, and may later."""


class Source:
    """A store as one client reaches it.

    Args:
        root: As the user wrote it, for messages.
        url: Its address.
        environment: The client's credentials and endpoints.
    """

    def __init__(self, root: str, url: str, environment: Mapping[str, str]) -> None:
        self.root, self.url, self.environment = root, url, environment
        self._getter: Getter | None = None
        self._making = threading.Lock()

    def getter(self) -> Getter:
        """Reads its files, in any thread."""
        with self._making:
            if self._getter is None:
                self._getter = make_getter(self.url, self.environment)
            return self._getter

    def patience(self) -> float:
        """How many seconds to go on where the store does not answer."""
        return patience_of(self.environment)


def patience_of(environment: Mapping[str, str]) -> float:
    """LITCAM_STORE_TIMEOUT, 300 seconds if not set.

    Raises:
        ValueError: If it is no number.
    """
    text = environment.get("LITCAM_STORE_TIMEOUT", "300")
    try:
        return float(text)
    except ValueError:
        raise ValueError(f"LITCAM_STORE_TIMEOUT must be seconds, got {text!r}") from None


def fetch(
    source: Source,
    folder: Path,
    name: str,
    num_bytes: int | None,
    xxh64: str | None,
    *,
    patience: float,
    warn: Callable[[str], None],
) -> None:
    """Fetches a file into a folder; it has its name there only once it is whole and right.

    Raises:
        StoreAwayError: If the store does not answer for ``patience`` seconds.
        OSError: If the file is damaged in the store, or the disk full.
    """
    part = folder / f"{name}.{node()}-{os.getpid()}-{next(_numbers)}.part"
    started, problem = time.monotonic(), ""
    try:
        part.parent.mkdir(parents=True, exist_ok=True)
        for _ in range(2):  # the first may have been spoiled on its way
            found = _get(source, part, name, num_bytes, started, patience, warn)
            problem = damage(*found, num_bytes, xxh64)
            if not problem:
                now = time.time_ns()
                os.utime(part, ns=(now, now))
                part.replace(folder / name)
                return
    except OSError as error:
        raise (no_room(folder, error) if error.errno in DISK_ERRORS else error) from None
    finally:
        with suppress(OSError):
            part.unlink(missing_ok=True)
    raise OSError(
        f"{source.url}/{name} {problem}; copy it there again, "
        "`litcam convert --check` tells whether the original is sound"
    )


def _get(
    source: Source,
    part: Path,
    name: str,
    num_bytes: int | None,
    started: float,
    patience: float,
    warn: Callable[[str], None],
) -> tuple[int, str]:
    delay, warned = FIRST_DELAY, False
    while True:
        try:
            return _write(source.getter(), name, part, num_bytes)
        except Exception as error:
            if isinstance(error, ValueError) or (
                isinstance(error, OSError) and error.errno in DISK_ERRORS
            ):
                raise
            if refusal := explain(error, source.root, source.url, name):
                raise refusal from None
            waited, why = time.monotonic() - started, reason(error)
            if waited >= patience:
                raise StoreAwayError(
                    f"{source.url}/{name}: the store did not answer for {waited:.0f} s "
                    f"({why}); when it is back, start the run again with "
                    "--ckpt_path last: it goes on there"
                ) from None
            if waited >= WARN_AFTER and not warned:
                warned = True
                left = patience - waited
                warn(
                    f"{source.url}/{name}: the store does not answer ({why}); "
                    f"trying for {left:.0f} s more"
                )
            time.sleep(min(delay, patience - waited))
            delay = min(2 * delay, LONGEST_DELAY)


def _write(get: Getter, name: str, part: Path, num_bytes: int | None) -> tuple[int, str]:
    """Writes a file and tells its size and hash; ends early where it is too long."""
    size, found = 0, xxhash.xxh64()
    at_most = LARGEST if num_bytes is None else num_bytes
    with part.open("wb") as file:
        for block in get(name):
            file.write(block)
            found.update(block)
            size += len(block)
            if size > at_most:
                break
    return size, found.hexdigest()


def check(path: Path, num_bytes: int | None, xxh64: str | None) -> str:
    """What is wrong with a file in words, or nothing."""
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        wrong_size = num_bytes is not None and size != num_bytes
        hashed = xxh64 is not None and not wrong_size
        found = hashlib.file_digest(file, xxhash.xxh64).hexdigest() if hashed else ""
    return damage(size, found, num_bytes, xxh64)


def damage(size: int, found: str, num_bytes: int | None, xxh64: str | None) -> str:
    """What differs from the size and hash a file should have, in words, or nothing."""
    if num_bytes is not None and size != num_bytes:
        return f"has {size if size < num_bytes else f'{size} or more'} bytes instead of {num_bytes}"
    if xxh64 is not None and found != xxh64:
        return f"is damaged: its xxh64 is {found} instead of {xxh64}"
    return ""


def no_room(folder: Path, error: OSError) -> OSError:
    """The error of a cache folder that cannot be written."""
    free = disk_free(folder) / 1e9
    return OSError(
        f"the cache folder {folder} takes no more files ({error.strerror}; {free:.1f} GB "
        "free); make room there, set cache_gb to less than that, or another cache_dir"
    )


def disk_free(folder: Path) -> int:
    """Bytes that are free where a folder is or will be."""
    return shutil.disk_usage(next(at for at in (folder, *folder.parents) if at.exists())).free


def node() -> str:
    """Eight letters that processes share exactly where they see each other's ids."""
    words = [socket.gethostname()]
    for file in ("/proc/sys/kernel/random/boot_id", "/proc/self/ns/pid"):
        with suppress(OSError):
            words.append(str(Path(file).stat().st_ino) if "ns" in file else Path(file).read_text())
    return xxhash.xxh64(" ".join(words).encode()).hexdigest()[:8]


def is_leftover(path: Path, modified: float) -> bool:
    """Whether a partial file's writer is gone: a process of this node, or silent for long."""
    match = re.fullmatch(r".*\.([0-9a-f]{8})-(\d+)-\d+\.part", path.name)
    here = match is not None and match[1] == node() and Path("/proc/self").exists()
    if match is not None and here and not _runs(match[2]):
        return True
    return time.time() - modified > OLD


def _runs(pid: str) -> bool:
    try:
        # A process that nobody asks for its end stays listed.
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
