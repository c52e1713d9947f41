"""A converted data set in a folder: each file is checked once for a process and its workers."""

import mmap
import os
import tempfile
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from multiprocessing import context, reduction
from pathlib import Path
from typing import Any

import xxhash

from litcam.datamodules.remote.fetching import check
from litcam.datamodules.remote.names import check_name
from litcam.datamodules.remote.store import Plan, Reader, Store, StoredFile, check_part

OPEN = 32  # chunks are shuffled four together; the next four are begun before the last is left


class LocalStore(Store):
    """A data set in a local folder; its files may be links, as Hugging Face's downloads are."""

    def __init__(self, root: str | Path) -> None:
        self.root = str(root)
        self.folder = Path(root).expanduser()
        self._sound: dict[str, int] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_sound": {}}

    def exists(self, name: str) -> bool:
        """Tells whether the folder has a file."""
        check_name(name, self.root)
        return (self.folder / name).is_file()

    def path(self, name: str, *, num_bytes: int | None = None, xxh64: str | None = None) -> Path:
        """The path of a file, checked when this process first uses it; see ``Store.path``."""
        check_name(name, self.root)
        path = self.folder / name
        if not path.is_file():
            raise self.missing(path)
        state = state_of(path.stat())
        if self._sound.get(name) != state:
            self.check(path, num_bytes, xxh64)
            self._sound[name] = state
        return path

    def reader(self, files: Sequence[StoredFile]) -> Reader:
        """Reads large files by parts."""
        return LocalReader(self, files)

    def check(self, path: Path, num_bytes: int | None, xxh64: str | None) -> None:
        """Raises OSError if a file is not as it should be."""
        if problem := check(path, num_bytes, xxh64):
            again = f"copy it again, `litcam convert --check {self.root}` lists all that is wrong"
            raise OSError(f"{path} {problem}; {again}")

    def missing(self, path: Path) -> FileNotFoundError:
        """The error of a file that is not there."""
        return FileNotFoundError(
            f"{path} is missing; `litcam convert --check {self.root}` lists all that is wrong"
        )


class LocalReader(Reader):
    """Parts of the files of a folder, a few of which stay open."""

    def __init__(self, store: LocalStore, files: Sequence[StoredFile]) -> None:
        for file in files:
            check_name(file.name, store.root)
        self.store, self.files = store, files
        self._checked = Marks(len(files))
        self._open: OrderedDict[int, int] = OrderedDict()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open": OrderedDict()}

    def __del__(self) -> None:
        # Also in a forked worker: what it inherited are copies of its own.
        for file in self.__dict__.get("_open", {}).values():
            with suppress(OSError):
                os.close(file)

    def read(self, number: int, offset: int, length: int) -> bytes:
        """Some bytes of a file; see ``Reader.read``."""
        check_part(self.files[number], offset, length, self.store.root)
        file = self._file(number)
        state = state_of(os.fstat(file))
        if self._checked[number] != state:
            self._check(number, state)
        data = _part(file, length, offset)
        if len(data) != length:
            raise OSError(f"{self._path(number)} became shorter while it was read; copy it again")
        return data

    def follow(self, numbers: Sequence[int]) -> Plan:
        """Nothing has to be fetched."""
        return Plan()

    def _path(self, number: int) -> Path:
        return self.store.folder / self.files[number].name

    def _file(self, number: int) -> int:
        if number in self._open:
            self._open.move_to_end(number)
            return self._open[number]
        path = self._path(number)
        try:
            self._open[number] = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0))
        except FileNotFoundError:
            raise self.store.missing(path) from None
        if len(self._open) > OPEN:
            os.close(self._open.popitem(last=False)[1])
        return self._open[number]

    def _check(self, number: int, state: int) -> None:
        file = self.files[number]
        with self._checked.alone(number):
            # Another worker may have checked it while this one waited.
            if self._checked[number] != state:
                self.store.check(self._path(number), file.num_bytes, file.xxh64)
                self._checked[number] = state


class Marks:
    """A 64-bit number for each file, which forked and spawned workers share with their parent.

    A copy that is pickled for anything but a worker starts with zeros of its own.

    Args:
        count: How many files.
    """

    def __init__(self, count: int) -> None:
        self._count = count
        try:
            self._make("/dev/shm")
        except OSError:  # none, or full
            self._make(None)

    def _make(self, folder: str | None) -> None:
        # A file without a name: a spawned worker can be given it, and nothing is left of it.
        with tempfile.TemporaryFile(dir=folder) as file:
            # Written to, because a mapped file that finds no room later ends the process.
            file.write(bytes(8 * max(1, self._count)))
            file.flush()
            self._map(os.dup(file.fileno()))

    def _map(self, file: int) -> None:
        self._file, self._bytes = file, mmap.mmap(file, 0)
        self._numbers = memoryview(self._bytes).cast("Q")

    def __getstate__(self) -> dict[str, Any]:
        starts = context.get_spawning_popen() is not None
        shared = reduction.DupFd(self._file) if starts and os.name == "posix" else None
        return {"count": self._count, "shared": shared}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["count"])  # type: ignore[misc]
        if state["shared"] is not None:
            self.__del__()
            self._map(state["shared"].detach())

    def __del__(self) -> None:
        with suppress(OSError, AttributeError):
            self._numbers.release()
            self._bytes.close()
            os.close(self._file)

    def __getitem__(self, number: int) -> int:
        return self._numbers[number]

    def __setitem__(self, number: int, value: int) -> None:
        self._numbers[number] = value

    @contextmanager
    def alone(self, number: int) -> Iterator[None]:
        """Keeps the other processes away from a file; one that is killed lets go of it."""
        try:
            from fcntl import LOCK_EX, LOCK_UN, lockf
        except ModuleNotFoundError:  # no such locks here: some may check it twice
            yield
            return
        lockf(self._file, LOCK_EX, 1, number)
        try:
            yield
        finally:
            lockf(self._file, LOCK_UN, 1, number)


def state_of(stat: os.stat_result) -> int:
    """What changes where a file does, as a number that is not zero."""
    words = f"{stat.st_size} {stat.st_mtime_ns} {stat.st_ino}"
    return xxhash.xxh64_intdigest(words.encode()) or 1


def _part(file: int, length: int, offset: int) -> bytes:
    if hasattr(os, "pread"):
        return os.pread(file, length, offset)
    os.lseek(file, offset, os.SEEK_SET)
    return os.read(file, length)
