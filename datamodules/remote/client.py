"""A data set behind an address, as a training process and its workers see it."""

import builtins
import os
import socket
import threading
import time
import warnings
from collections.abc import Sequence
from itertools import count
from pathlib import Path
from typing import Any

import xxhash

from litcam.datamodules.remote.connection import Connection, GoneError
from litcam.datamodules.remote.names import check_name
from litcam.datamodules.remote.store import Plan, Reader, Store, StoredFile, check_part
from litcam.datamodules.remote.transfers import ENDPOINTS, environment_of

TRIES = 20  # a file may be evicted again and again before it is opened, and a server end
_plans = count()


class RemoteStore(Store):
    """A data set behind an address; the cache server of this node fetches its files.

    Args:
        root: The address as the user gave it.
        url: The same in its full form.
        cache_dir: Where files are kept; ``~/.cache/litcam`` if not given.
        cache_gb: How much of them; all if not given.

    Attributes:
        folder: Where this store's files lie.

    Raises:
        ValueError: If there can be no cache server on this machine.
    """

    def __init__(
        self, root: str, url: str, cache_dir: str | Path | None, cache_gb: float | None
    ) -> None:
        if not hasattr(socket, "AF_UNIX") or not hasattr(os, "fork"):
            raise ValueError(
                f"root {root} is remote, which needs Linux or macOS (a socket that processes "
                "share); copy the data to a folder"
            )
        self.root, self.url, self.cache_gb = root, url, cache_gb
        self.cache_dir = Path(cache_dir or "~/.cache/litcam").expanduser().absolute()
        ends = [os.environ.get(name, "") for name in ENDPOINTS if name in os.environ]
        named = xxhash.xxh64("\n".join([url, *ends]).encode()).hexdigest()
        # A folder of its own, because eviction takes any file it finds there.
        self.folder = self.cache_dir / f"{url.rpartition('/')[2]}-{named}"
        self._opened = time.time_ns()
        self._kept: list[str] = []
        self._reset()

    def _reset(self) -> None:
        self._pid, self._lock = os.getpid(), threading.RLock()
        self._connection: Connection | None = None
        self._following: list[RemotePlan] = []

    def __getstate__(self) -> dict[str, Any]:
        own = ("_pid", "_lock", "_connection", "_following")
        return {name: value for name, value in self.__dict__.items() if name not in own}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._reset()

    def exists(self, name: str) -> bool:
        """Tells whether the store has a file, by fetching it."""
        try:
            self.path(name)
        except FileNotFoundError:
            return False
        return True

    def path(self, name: str, *, num_bytes: int | None = None, xxh64: str | None = None) -> Path:
        """The local path of a small file, which stays there; see ``Store.path``."""
        check_name(name, self.root)
        self.need(name, num_bytes, xxh64, keep=True)
        if name not in self._kept:
            self._kept.append(name)
        return self.folder / name

    def reader(self, files: Sequence[StoredFile]) -> Reader:
        """Reads large files by parts."""
        return RemoteReader(self, files)

    def need(
        self, name: str, num_bytes: int | None, xxh64: str | None, *, keep: bool = False
    ) -> tuple[int, int]:
        """Waits until a file is here and right; its size and its mtime (ns)."""
        words = {"name": name, "num_bytes": num_bytes, "xxh64": xxh64}
        got = self.ask({"do": "need", **words, "since": self._opened, "keep": keep})
        return got["size"], got["mtime"]

    def ask(self, message: dict[str, Any]) -> dict[str, Any]:
        """Asks the server, of which a new one is started where the old one is gone."""
        for _ in range(TRIES):
            with self._mine():
                try:
                    connection = self._connected()
                    connection.send(message)
                    return self._answer(connection)
                except GoneError as error:
                    gone = error
                    self._hang_up()
                except BaseException:
                    # An answer that nobody took would be taken for that to the next question.
                    self._hang_up()
                    raise
            time.sleep(0.05)
        raise OSError(f"the cache server of {self.cache_dir} ended {TRIES} times: {gone}")

    def tell(self, message: dict[str, Any]) -> None:
        """Tells the server something; where it is gone there is nobody to tell."""
        with self._mine():
            try:
                self._connected().send(message)
            except GoneError:
                self._hang_up()

    def start(self, plan: "RemotePlan") -> None:
        """Has the server fetch ahead for a plan."""
        with self._mine():
            self._connected()
            self._following.append(plan)
            self.ask(plan.words())

    def end(self, plan: "RemotePlan") -> None:
        """Takes a plan back."""
        with self._mine():
            if plan in self._following:
                self._following.remove(plan)
                self.tell({"do": "close", "plan": plan.number})

    def _mine(self) -> threading.RLock:
        if self._pid != os.getpid():  # a forked worker: the line is its parent's
            if self._connection:
                self._connection.close()
            self._reset()
        return self._lock

    def _connected(self) -> Connection:
        if self._connection is None:
            hello: dict[str, Any] = {
                "do": "hello",
                "root": self.root,
                "url": self.url,
                "folder": self.folder.name,
            }
            hello |= {"cache_gb": self.cache_gb, "environment": environment_of(os.environ)}
            connection = Connection(self.cache_dir)
            try:
                connection.send({**hello, "kept": self._kept})
                self._answer(connection)
                for plan in self._following:
                    connection.send(plan.words())
                    self._answer(connection)
                    connection.send(plan.place())
            except BaseException:
                connection.close()
                raise
            self._connection = connection
        return self._connection

    def _hang_up(self) -> None:
        if self._connection:
            self._connection.close()
        self._connection = None

    def _answer(self, connection: Connection) -> dict[str, Any]:
        while True:
            got = connection.receive()
            if "warn" in got:
                warnings.warn(got["warn"], stacklevel=4)
            elif "error" in got:
                raise _error(got["error"])(got["text"])
            elif "alive" not in got:
                return got


class RemoteReader(Reader):
    """Parts of files that the cache server fetches; nothing stays open, so any may be evicted."""

    def __init__(self, store: RemoteStore, files: Sequence[StoredFile]) -> None:
        for file in files:
            check_name(file.name, store.root)
        self.store, self.files = store, files
        self._known: dict[int, tuple[int, int]] = {}  # size and mtime of what the server checked

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_known": {}}

    def read(self, number: int, offset: int, length: int) -> bytes:
        """Some bytes of a file; see ``Reader.read``."""
        file = self.files[number]
        check_part(file, offset, length, self.store.root)
        path = f"{self.store.folder}/{file.name}"
        for _ in range(TRIES):
            asked = number not in self._known
            if asked:
                self._known[number] = self.store.need(*file)
            data = self._part(path, number, offset, length)
            if asked:
                self.store.tell({"do": "opened"})
            if data is not None:
                return data
            del self._known[number]
        raise OSError(
            f"{path} was removed or changed {TRIES} times while it was read; what else writes "
            "in cache_dir?"
        )

    def follow(self, numbers: Sequence[int]) -> Plan:
        """Has files fetched before they are needed."""
        plan = RemotePlan(self.store, [self.files[number] for number in numbers])
        self.store.start(plan)
        return plan

    def _part(self, path: str, number: int, offset: int, length: int) -> bytes | None:
        """Bytes of a file, or None where it is not the one that was checked."""
        try:
            file = os.open(path, os.O_RDONLY)
        except OSError:
            return None
        try:
            stat = os.fstat(file)
            if (stat.st_size, stat.st_mtime_ns) != self._known[number]:
                return None
            data = os.pread(file, length, offset)
        except OSError:  # removed by another node, of a folder on a network
            return None
        finally:
            os.close(file)
        return data if len(data) == length else None


class RemotePlan(Plan):
    """A plan that the cache server follows."""

    def __init__(self, store: RemoteStore, files: Sequence[StoredFile]) -> None:
        self._store, self._files = store, files
        self._wanted = self._finished = 0
        self.number = next(_plans)

    def at(self, wanted: int, finished: int) -> None:
        """Says how far the process is; see ``Plan.at``."""
        if (wanted, finished) != (self._wanted, self._finished):
            self._wanted, self._finished = wanted, finished
            self._store.tell(self.place())

    def close(self) -> None:
        """Lets the server forget the plan."""
        self._store.end(self)

    def words(self) -> dict[str, Any]:
        """What the server is told of the plan."""
        return {"do": "follow", "plan": self.number, "files": [list(f) for f in self._files]}

    def place(self) -> dict[str, Any]:
        """What the server is told of the process's place in it."""
        at = {"wanted": self._wanted, "finished": self._finished}
        return {"do": "at", "plan": self.number, **at}


def _error(name: str) -> type[Exception]:
    found = getattr(builtins, name, OSError)
    return found if issubclass(found, OSError | ValueError) else OSError
