"""A data set behind an address: fetched into a folder that processes share, as it is wanted."""

import errno
import os
import shutil
import threading
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import xxhash
from filelock import FileLock

from litcam.datamodules.remote.stores import Store, find_damage
from litcam.datamodules.remote.transfers import Getter, explain, make_getter

KEPT = ("litcam.json", "keys.txt", "samples.npz", "index.json")
DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM)
WARN_AFTER = 10.0  # seconds
# A file just handed out may not be open yet, so eviction leaves it alone for some seconds.
GRACE = 2.0


class RemoteStore(Store):
    """A data set behind an address; its files are fetched into a folder that processes share."""

    def __init__(
        self, root: str, url: str, cache_dir: str | Path | None, cache_gb: float | None
    ) -> None:
        super().__init__(root)
        self.url = url
        self.cache_bytes = None if cache_gb is None else int(cache_gb * 1e9)
        # A folder of its own below cache_dir, because eviction takes any file it finds there.
        name = f"{url.rpartition('/')[2]}-{xxhash.xxh64(url.encode()).hexdigest()}"
        self.folder = Path(cache_dir or "~/.cache/litcam").expanduser() / name
        self._opened = time.time_ns()
        self._getters: dict[tuple[int, int], Getter] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_getters": {}}

    def exists(self, name: str) -> bool:
        """Tells whether the store has a file, by fetching it."""
        try:
            self.path(name)
        except FileNotFoundError:
            return False
        return True

    def path(self, name: str, *, num_bytes: int | None = None, xxh64: str | None = None) -> Path:
        """The local path of a file, fetched if it is not here yet; see ``Store.path``."""
        return self.fetch(name, num_bytes, xxh64, patience=_patience())

    def fetch(
        self, name: str, num_bytes: int | None, xxh64: str | None, *, patience: float
    ) -> Path:
        """As ``path``, going on for ``patience`` seconds where the store does not answer."""
        target, started = self.folder / name, time.monotonic()
        if self._has(name, num_bytes, xxh64):
            return target
        with self._locked(target):
            # Another process may have fetched it while this one waited.
            if not self._has(name, num_bytes, xxh64):
                self._download(name, num_bytes, xxh64, deadline=(started, patience))
        if self.cache_bytes is not None:
            _evict(self.folder, self.cache_bytes)
        return target

    def _has(self, name: str, num_bytes: int | None, xxh64: str | None) -> bool:
        path = self.folder / name
        try:
            fetched = path.stat().st_mtime_ns
            with suppress(PermissionError):  # a cache of somebody else
                os.utime(path, ns=(time.time_ns(), fetched))
        except (FileNotFoundError, NotADirectoryError):
            return False
        if name not in self._sound:
            # Without a hash only a fresh copy is known to belong to what lies there today.
            if xxh64 is None and fetched < self._opened:
                return False
            if find_damage(path, num_bytes, xxh64):
                return False
            self._sound.add(name)
        return True

    @contextmanager
    def _locked(self, target: Path) -> Iterator[None]:
        lock = FileLock(f"{target}.lock")
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            lock.acquire()
        except OSError as error:
            raise self._no_room(error) from None
        try:
            yield
        finally:
            lock.release()

    def _download(
        self, name: str, num_bytes: int | None, xxh64: str | None, deadline: tuple[float, float]
    ) -> None:
        part = self.folder / f"{name}.part"
        problem = ""
        try:
            for _ in range(2):  # the first may have been spoiled on its way
                self._get(name, part, *deadline)
                problem = find_damage(part, num_bytes, xxh64)
                if not problem:
                    now = time.time_ns()
                    os.utime(part, ns=(now, now))
                    part.replace(self.folder / name)
                    self._sound.add(name)
                    return
        finally:
            _remove(part)
        raise OSError(
            f"{self.url}/{name} {problem}; copy it there again, "
            "`litcam convert --check` tells whether the original is sound"
        )

    def _get(self, name: str, part: Path, started: float, patience: float) -> None:
        delay, warned = 0.5, False
        while True:
            try:
                _remove(part)
                self._getter()(name, part)
            except Exception as error:
                if isinstance(error, OSError) and error.errno in DISK_ERRORS:
                    raise self._no_room(error) from None
                if refusal := explain(error, self.root, self.url, name):
                    raise refusal from None
                waited, reason = time.monotonic() - started, " ".join(str(error).split())
                if waited >= patience:
                    raise OSError(
                        f"{self.url}/{name}: the store did not answer for {waited:.0f} s "
                        f"({reason}); when it is back, start the run again with "
                        "--ckpt_path last: it goes on there"
                    ) from None
                if waited >= WARN_AFTER and not warned:
                    warned = True
                    warnings.warn(
                        f"{self.url}/{name}: the store does not answer ({reason}); "
                        f"trying for {patience - waited:.0f} s more",
                        stacklevel=2,
                    )
                time.sleep(min(delay, patience - waited))
                delay = min(2 * delay, 15.0)
            else:
                return

    def _getter(self) -> Getter:
        # Clients survive no fork, and to make one is not thread-safe: each has its own.
        mine = (os.getpid(), threading.get_ident())
        if mine not in self._getters:
            self._getters[mine] = make_getter(self.url)
        return self._getters[mine]

    def warn_of_small_disk(self, files: Sequence[tuple[str, int, str]]) -> None:
        """Warns if the files that are not here yet do not fit on the disk."""
        missing = sum(size for name, size, _ in files if not (self.folder / name).exists())
        if missing > self._disk_free():
            warnings.warn(
                f"the cache folder {self.folder} has less room than the {missing / 1e9:.1f} GB of "
                "the data set; set cache_gb, or another cache_dir",
                stacklevel=3,
            )

    def _disk_free(self) -> int:
        at = next(at for at in (self.folder, *self.folder.parents) if at.exists())
        return shutil.disk_usage(at).free

    def _no_room(self, error: OSError) -> OSError:
        free = self._disk_free() / 1e9
        return OSError(
            f"the cache folder {self.folder} takes no more files ({error.strerror}; {free:.1f} GB "
            "free); make room there, set cache_gb to less than that, or another cache_dir"
        )


def _patience() -> float:
    text = os.environ.get("LITCAM_STORE_TIMEOUT", "300")
    try:
        return float(text)
    except ValueError:
        raise ValueError(f"LITCAM_STORE_TIMEOUT must be seconds, got {text!r}") from None


def _remove(part: Path) -> None:
    # LitData puts a lock and a temporary file of its own beside the one it is asked for.
    for path in part.parent.glob(f"{part.name}*"):
        path.unlink(missing_ok=True)


def _evict(folder: Path, limit: int) -> None:
    """Removes what was used least recently; a process that has it open can go on reading."""
    files = []
    for path in folder.rglob("*"):
        with suppress(FileNotFoundError):
            if path.is_file():
                stat = path.stat()
                files.append((stat.st_atime, stat.st_size, path))
    excess = sum(size for _, size, _ in files) - limit
    for used, size, path in sorted(files):
        if excess <= 0 or used > time.time() - GRACE:
            return
        if path.name not in KEPT and path.suffix != ".lock" and ".part" not in path.name:
            path.unlink(missing_ok=True)
            excess -= size
