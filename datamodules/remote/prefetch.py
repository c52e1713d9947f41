"""Fetches the files of a remote data set before they are wanted."""

import threading
from collections.abc import Sequence

from litcam.datamodules.remote.remote_stores import RemoteStore
from litcam.datamodules.remote.stores import Store


class Prefetcher:
    """Fetches the files a consumer will want next, in daemon threads of the process that asks.

    An error is swallowed: whoever needs the file raises it. The threads start with the first
    ``advance``; where workers are forked, call it once they run.

    Args:
        store: Where from; out of a local one there is nothing to fetch.
        files: Name, size and hash of each, in the order they will be wanted.
        ahead: How many files beyond the consumer's; fewer where they would fill half the cache.
        threads: How many fetch at once.
    """

    def __init__(
        self,
        store: Store,
        files: Sequence[tuple[str, int, str]],
        ahead: int = 16,
        threads: int = 4,
    ) -> None:
        self._store = store if isinstance(store, RemoteStore) else None
        self._files, self._ahead, self._num_threads = files, ahead, threads
        self._position, self._taken, self._closed = 0, set[int](), False
        self._threads: list[threading.Thread] = []
        self._change = threading.Condition()
        if self._store and files:
            # What is fetched too early pushes out what is about to be used.
            if self._store.cache_bytes is not None:
                room = self._store.cache_bytes // (2 * max(size for _, size, _ in files) or 1)
                self._ahead = min(ahead, max(1, room))
            else:
                self._store.warn_of_small_disk(files)

    def advance(self, position: int) -> None:
        """Says which file, by its place in ``files``, the consumer is at."""
        with self._change:
            self._position = position
            self._change.notify_all()
        if self._store and not self._threads and not self._closed:
            for _ in range(self._num_threads):
                self._threads.append(threading.Thread(target=self._work, daemon=True))
                self._threads[-1].start()

    def close(self) -> None:
        """Lets the threads end after the file each is at."""
        with self._change:
            self._closed = True
            self._change.notify_all()

    def _work(self) -> None:
        assert self._store
        while (place := self._next()) is not None:
            name, num_bytes, xxh64 = self._files[place]
            try:
                self._store.fetch(name, num_bytes, xxh64, patience=0)
            except Exception:
                with self._change:
                    self._change.wait_for(lambda: self._closed, timeout=1)
                    self._taken.discard(place)

    def _next(self) -> int | None:
        with self._change:
            while not self._closed:
                end = min(self._position + self._ahead + 1, len(self._files))
                for place in range(self._position, end):
                    if place not in self._taken:
                        self._taken.add(place)
                        return place
                self._change.wait()
        return None
