"""What lies in the folders of a cache: asks the policy, and fetches, checks, evicts in threads."""

import itertools
import os
import queue
import threading
import time
from collections.abc import Callable, Hashable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from litcam.datamodules.remote.fetching import Source, StoreAwayError, check, fetch, is_leftover
from litcam.datamodules.remote.policy import Policy

PREFETCHES = 16  # at once
REST = 1.0  # seconds without prefetching after a store did not answer
# Says to backup programs what it is, and to the server that the files beside it are its own.
TAG = "CACHEDIR.TAG"
TAG_TEXT = "Signature: 8a477f597d28d172789f06886806bc55\n# Files litcam fetched from a store.\n"


class Key(NamedTuple):
    """A file of the cache: the folder of its store, and its name there."""

    folder: str
    name: str


class Wish(NamedTuple):
    """What somebody who waits for a file expects."""

    source: Source
    num_bytes: int | None
    xxh64: str | None
    since: int  # a file without a hash must have come after this time (ns)
    keep: bool
    answer: Callable[[dict[str, Any]], None]
    client: Hashable


class Cache:
    """The files of all stores below one folder.

    Everything but the transfers runs in the thread that calls; ``events`` of threads that end
    are given back to it by ``wake`` and ``react``.

    Args:
        root: The folder; each store has one in it.
        wake: Called in a thread when ``react`` has something to do.
    """

    def __init__(self, root: Path, wake: Callable[[], None]) -> None:
        self.root, self.policy = root, Policy()
        self._wake = wake
        self._events: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._sound: dict[Key, tuple[int, int, str | None]] = {}  # size, mtime and hash
        self._wishes: dict[Key, list[Wish]] = {}
        self._checking: set[Key] = set()
        self._fetching = 0
        self._planned: dict[Key, tuple[Source, int, str]] = {}
        self._rest_until = 0.0
        self._scan(tag.parent for tag in root.glob(f"*/{TAG}"))

    # What clients want

    def need(self, key: Key, wish: Wish) -> None:
        """Answers as soon as a file is here and right: its size and mtime, or an error."""
        self._wishes.setdefault(key, []).append(wish)
        self._look(key)
        self.advance()

    def follow(
        self, plan: Hashable, folder: str, source: Source, files: Sequence[tuple[str, int, str]]
    ) -> None:
        """Fetches files of a store ahead of their need; see ``Policy.follow``."""
        for name, num_bytes, xxh64 in files:
            self._planned[Key(folder, name)] = source, num_bytes, xxh64
        self.policy.follow(plan, [(Key(folder, name), size) for name, size, _ in files])

    def leave(self, client: Hashable) -> None:
        """Forgets what a client waited for."""
        for key, wishes in list(self._wishes.items()):
            left = [wish for wish in wishes if wish.client != client]
            self._set_wishes(key, left)

    def missing(self, folder: str, files: Sequence[tuple[str, int, str]]) -> int:
        """Bytes of these files that are not here."""
        return sum(size for name, size, _ in files if Key(folder, name) not in self.policy)

    def set_budget(self, budget: int | None) -> None:
        """Bounds what lies here, at once."""
        self.policy.budget = budget
        self._remove(self.policy.excess())

    def advance(self) -> None:
        """Does what the policy says, until it has nothing more."""
        while True:
            rests = time.monotonic() < self._rest_until
            step = self.policy.next(prefetch=not rests and self._fetching < PREFETCHES)
            if step is None:
                return
            self._remove(step.evict)
            if step.file is not None:
                self._fetch(step.file)  # type: ignore[arg-type]

    def react(self) -> None:
        """Takes in what threads have done."""
        with suppress(queue.Empty):
            while True:
                self._events.get_nowait()()
        self.advance()

    # Files that are here

    def adopt(self, name: str) -> None:
        """Makes the folder of a store the cache's own, with all that lies there.

        Raises:
            OSError: If it cannot be made or marked.
        """
        folder = self.root / name
        if not (folder / TAG).exists():
            mark(folder)
            self._scan([folder])

    def _scan(self, folders: Iterable[Path]) -> None:
        """Finds what earlier servers left; it is checked when it is first used."""
        found = []
        for folder in folders:
            for path in folder.rglob("*"):
                with suppress(OSError):
                    stat = path.lstat()
                    if path.name.endswith(".part") and is_leftover(path, stat.st_mtime):
                        path.unlink()
                    elif path.is_file() and path.name != TAG and not path.name.endswith(".part"):
                        key = Key(folder.name, path.relative_to(folder).as_posix())
                        found.append((stat.st_atime, key, stat.st_size))
        for _, key, num_bytes in sorted(found):
            self.policy.found(key, num_bytes)

    def _look(self, key: Key) -> None:
        """Serves those who wait for a file if it is here; else has it checked or fetched."""
        wishes = self._wishes.get(key)
        if not wishes or key in self._checking:
            return None
        wish = wishes[0]
        try:
            stat = self._path(key).stat()
        except OSError:
            return self._want(key, wish)
        if key not in self.policy:
            self.policy.found(key, stat.st_size)  # of a server on another node
        state = stat.st_size, stat.st_mtime_ns, wish.xxh64
        if wish.xxh64 is None:
            if stat.st_mtime_ns < wish.since:
                return self._want(key, wish)
        elif self._sound.get(key) != state:
            self._checking.add(key)
            return self._in_thread(lambda: self._check(key, wish, state))
        self._set_wishes(key, wishes[1:])
        if wish.keep:
            self.policy.keep(key)
        wish.answer({"size": state[0], "mtime": state[1]})
        return self._look(key)

    def _want(self, key: Key, wish: Wish) -> None:
        self.policy.lost(key)
        self._sound.pop(key, None)
        self.policy.request(key, wish.num_bytes or 0)

    def _check(self, key: Key, wish: Wish, state: tuple[int, int, str | None]) -> None:
        try:
            problem = check(self._path(key), wish.num_bytes, wish.xxh64)
        except OSError as error:
            problem = str(error)

        def checked() -> None:
            self._checking.discard(key)
            if problem:
                self._remove([key])
                self.policy.lost(key)
            else:
                self._sound[key] = state
            self._look(key)

        self._tell(checked)

    def _remove(self, keys: Sequence[Any]) -> None:
        for key in keys:
            self._sound.pop(key, None)
            with suppress(OSError):
                self._path(key).unlink()

    def _path(self, key: Key) -> Path:
        return self.root / key.folder / key.name

    # Files that come

    def _fetch(self, key: Key) -> None:
        wishes = self._wishes.get(key)
        if wishes:
            source, num_bytes, xxh64 = wishes[0].source, wishes[0].num_bytes, wishes[0].xxh64
        else:
            source, num_bytes, xxh64 = self._planned[key]
        requested = bool(wishes)
        self._fetching += 1

        def warn(text: str) -> None:
            self._tell(lambda: [w.answer({"warn": text}) for w in self._wishes.get(key, [])[:1]])

        def work() -> None:
            folder, error = self.root / key.folder, None
            try:
                patience = source.patience() if requested else 0.0
                options: Any = {"patience": patience, "warn": warn}
                fetch(source, folder, key.name, num_bytes, xxh64, **options)
            except Exception as found:
                error = found
            self._tell(lambda: self._fetched(key, source, xxh64, requested, error))

        self._in_thread(work)

    def _fetched(
        self,
        key: Key,
        source: Source,
        xxh64: str | None,
        requested: bool,
        error: Exception | None,
    ) -> None:
        self._fetching -= 1
        if error is None:
            try:
                stat = self._path(key).stat()
            except OSError:  # evicted by a server on another node
                self.policy.failed(key, again=True)
            else:
                self._sound[key] = stat.st_size, stat.st_mtime_ns, xxh64
                self.policy.fetched(key, stat.st_size)
            return self._look(key)
        away = isinstance(error, StoreAwayError)
        if away:
            self._rest_until = time.monotonic() + REST
        self.policy.failed(key, again=away)
        left = self._wishes.get(key, [])
        if requested:
            # Others may reach the store another way.
            for wish in [wish for wish in left if wish.source is source]:
                wish.answer({"error": type(error).__name__, "text": str(error)})
            left = [wish for wish in left if wish.source is not source]
        self._set_wishes(key, left)
        return self._look(key)

    def _set_wishes(self, key: Key, wishes: list[Wish]) -> None:
        if wishes:
            self._wishes[key] = wishes
        else:
            self._wishes.pop(key, None)
            self.policy.cancel(key)

    def _in_thread(self, work: Callable[[], None]) -> None:
        threading.Thread(target=work, daemon=True, name=f"cache-{next(_numbers)}").start()

    def _tell(self, event: Callable[[], Any]) -> None:
        self._events.put(event)
        self._wake()


_numbers = itertools.count()


def mark(folder: Path) -> None:
    """Makes the folder of a store and marks it as the cache's own."""
    folder.mkdir(parents=True, exist_ok=True)
    part = folder / f"{TAG}.{os.getpid()}"
    part.write_text(TAG_TEXT)
    part.replace(folder / TAG)
