"""The cache server of a node: a process of its own that fetches for all who connect to it."""

import json
import os
import selectors
import signal
import socket
import sys
import time
import traceback
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from litcam.datamodules.remote.cache import Cache, Key, Wish
from litcam.datamodules.remote.fetching import Source, disk_free, no_room
from litcam.datamodules.remote.names import check_name, network_folder

LINGER = float(os.environ.get("LITCAM_CACHE_LINGER", "5"))  # seconds without a client
ALIVE = 5.0  # seconds between signs of life for those who wait
HOLD = 10.0  # seconds that a file waits for who asked for it to open it


class Client:
    """One process that is connected: what it said, and what it holds."""

    def __init__(self, line: socket.socket) -> None:
        self.line = line
        self.buffer = bytearray()
        self.folder = ""
        self.budget: int | None = None
        self.source: Source | None = None
        self.plans: set[tuple[int, int]] = set()
        self.held: Counter[Key] = Counter()
        self.held_since = 0.0
        self.waits = False


class Server:
    """Serves a cache folder until nobody is connected for some seconds.

    Args:
        root: The cache folder.
        listener: Where clients come in.
    """

    def __init__(self, root: Path, listener: socket.socket) -> None:
        self.root, self._listener = root, listener
        self._clients: dict[int, Client] = {}
        self._sources: dict[tuple[Any, ...], Source] = {}
        self._warned: set[str] = set()
        self._wakes, self._woken = socket.socketpair()
        for end in (self._wakes, self._woken, listener):
            end.setblocking(False)
        self._cache = Cache(root, self._wake)

    def serve(self) -> None:
        """Serves; returns when nobody needs it."""
        with selectors.DefaultSelector() as self._selector:
            self._selector.register(self._listener, selectors.EVENT_READ, None)
            self._selector.register(self._woken, selectors.EVENT_READ, None)
            last = beat = time.monotonic()
            while self._clients or time.monotonic() - last < LINGER:
                for event, _ in self._selector.select(timeout=0.5):
                    self._on(event)
                self._cache.react()
                if self._clients:
                    last = time.monotonic()
                if time.monotonic() - beat > ALIVE:
                    beat = time.monotonic()
                    self._beat()

    def _wake(self) -> None:
        with suppress(BlockingIOError):  # it is awake
            self._wakes.send(b"x")

    def _on(self, event: selectors.SelectorKey) -> None:
        if event.fileobj is self._listener:
            with suppress(BlockingIOError, ConnectionError):
                line, _ = self._listener.accept()
                line.setblocking(False)
                self._clients[line.fileno()] = Client(line)
                self._selector.register(line, selectors.EVENT_READ, self._clients[line.fileno()])
        elif event.fileobj is self._woken:
            self._woken.recv(4096)
        else:
            self._read(event.data)

    def _read(self, client: Client) -> None:
        try:
            got = client.line.recv(1 << 20)
        except BlockingIOError:
            return None
        except OSError:
            got = b""
        if not got:
            return self._drop(client)
        client.buffer += got
        if b"\n" in got:
            *lines, client.buffer = client.buffer.split(b"\n")
            for line in lines:
                self._hear(client, json.loads(line))
        return None

    def _hear(self, client: Client, message: dict[str, Any]) -> None:
        do = message.pop("do")
        client.waits = do in ("hello", "need", "follow")
        try:
            getattr(self, f"_do_{do}")(client, **message)
        except (OSError, ValueError) as error:
            self._say(client, {"error": type(error).__name__, "text": str(error)})

    def _do_hello(
        self,
        client: Client,
        root: str,
        url: str,
        folder: str,
        cache_gb: float | None,
        environment: dict[str, str],
        kept: list[str],
    ) -> None:
        check_name(folder, url)
        try:
            self._cache.adopt(folder)
        except OSError as error:
            raise no_room(self.root / folder, error) from None
        client.folder = folder
        client.budget = None if cache_gb is None else int(cache_gb * 1e9)
        identity = (root, url, *sorted(environment.items()))
        client.source = self._sources.setdefault(identity, Source(root, url, environment))
        for name in kept:
            self._cache.policy.keep(Key(folder, name))
        self._bound()
        if (kind := network_folder(self.root)) and kind not in self._warned:
            self._warned.add(kind)
            text = (
                f"the cache folder {self.root} is on a network ({kind}), through which every "
                "image is then read; set cache_dir to a local disk"
            )
            self._say(client, {"warn": text})
        self._say(client, {"pid": os.getpid()})

    def _do_need(
        self,
        client: Client,
        name: str,
        num_bytes: int | None,
        xxh64: str | None,
        since: int,
        keep: bool,
    ) -> None:
        assert client.source
        check_name(name, client.source.url, self.root / client.folder)
        key = Key(client.folder, name)

        def answer(words: dict[str, Any]) -> None:
            if "size" in words and not keep:
                self._cache.policy.hold(key)
                client.held[key] += 1
                client.held_since = time.monotonic()
            self._say(client, words)

        self._cache.need(
            key, Wish(client.source, num_bytes, xxh64, since, keep, answer, id(client))
        )

    def _do_opened(self, client: Client) -> None:
        for key in client.held.elements():
            self._cache.policy.release(key)
        client.held.clear()

    def _do_follow(self, client: Client, plan: int, files: list[tuple[str, int, str]]) -> None:
        assert client.source
        for name, _, _ in files:
            check_name(name, client.source.url)
        if client.budget is None:
            missing = self._cache.missing(client.folder, files)
            if missing > disk_free(self.root):
                text = (
                    f"the cache folder {self.root} has less room than the {missing / 1e9:.1f} GB "
                    "of the data set; set cache_gb, or another cache_dir"
                )
                self._say(client, {"warn": text})
        client.plans.add((id(client), plan))
        self._cache.follow((id(client), plan), client.folder, client.source, files)
        self._say(client, {})

    def _do_at(self, client: Client, plan: int, wanted: int, finished: int) -> None:
        if (id(client), plan) in client.plans:
            self._cache.policy.at((id(client), plan), wanted, finished)

    def _do_close(self, client: Client, plan: int) -> None:
        client.plans.discard((id(client), plan))
        self._cache.policy.close((id(client), plan))

    def _bound(self) -> None:
        """The smallest that any client asks for holds for all."""
        budgets = [client.budget for client in self._clients.values()]
        given = [budget for budget in budgets if budget is not None]
        self._cache.set_budget(min(given) if given else None)

    def _say(self, client: Client, words: dict[str, Any]) -> None:
        if not ("warn" in words or "alive" in words):
            client.waits = False
        try:
            client.line.send(json.dumps(words).encode() + b"\n")
        except OSError:  # gone, or stopped while its answers filled the line
            with suppress(OSError):
                client.line.shutdown(socket.SHUT_RDWR)

    def _beat(self) -> None:
        now = time.monotonic()
        for client in self._clients.values():
            if client.waits:
                self._say(client, {"alive": True})
            elif client.held and now - client.held_since > HOLD:
                self._do_opened(client)

    def _drop(self, client: Client) -> None:
        self._selector.unregister(client.line)
        del self._clients[client.line.fileno()]
        client.line.close()
        self._cache.leave(id(client))
        self._do_opened(client)
        for _, plan in list(client.plans):
            self._do_close(client, plan)
        self._bound()


def main() -> int:
    """`python -m litcam.datamodules.remote.server CACHE_DIR SOCKET`: returns once it listens."""
    root, path = map(Path, sys.argv[1:])
    read, write = os.pipe()
    # Nobody waits for a server to end, so it must not stay the child of who started it.
    if os.fork():
        os.close(write)
        with os.fdopen(read) as pipe:
            problem = pipe.read()
        sys.stderr.write(problem)
        sys.stderr.flush()
        # Without cleaning up: locks and sockets are the child's.
        os._exit(1 if problem else 0)
    os.close(read)
    os.chdir("/")
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    _run(root, path, write)
    return 0


def _run(root: Path, path: Path, write: int) -> None:
    lock = FileLock(path.with_suffix(".lock"))
    try:
        lock.acquire(timeout=0)
    except Timeout:
        os.close(write)  # there is one, which is as good
        return
    try:
        path.unlink(missing_ok=True)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        listener.bind(str(path))
        listener.listen(1024)
        server = Server(root, listener)
    except OSError as error:
        os.write(write, str(error).encode())
        return
    quiet = os.open(path.with_suffix(".log"), os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    os.dup2(quiet, 2)
    os.close(write)
    try:
        server.serve()
    except Exception:
        traceback.print_exc()
    finally:
        path.unlink(missing_ok=True)
        listener.close()
        lock.release()
        sys.stderr.flush()
        os._exit(0)  # threads that wait for a store must not keep it


if __name__ == "__main__":
    sys.exit(main())
