"""The way to the cache server of this node: its socket, its start, one line of JSON a message."""

import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import xxhash
from filelock import FileLock

VERSION = 1  # of the messages; servers of another one are left alone
SERVER = "litcam.datamodules.remote.server"
START_PATIENCE = 60.0  # seconds, where the machine is busy
SILENCE = 60.0  # seconds; a server that works says so much more often
LONGEST_PATH = 90  # bytes; a socket's path must be shorter than 104


class GoneError(OSError):
    """The server is not there any more."""


class Connection:
    """One process's connection to the server of a cache folder, started if need be.

    Args:
        cache_dir: The folder below which the server keeps files.

    Raises:
        OSError: If there is no server and none can be started.
    """

    def __init__(self, cache_dir: Path) -> None:
        self._socket = _connect(cache_dir)
        self._lines = self._socket.makefile("rb")

    def send(self, message: dict[str, Any]) -> None:
        """Says something that has no answer."""
        try:
            self._socket.sendall(json.dumps(message).encode() + b"\n")
        except TimeoutError:
            raise _silent() from None
        except OSError as error:
            raise GoneError(str(error)) from None

    def receive(self) -> dict[str, Any]:
        """The next thing that the server says."""
        try:
            line = self._lines.readline()
        except TimeoutError:
            raise _silent() from None
        except OSError as error:
            raise GoneError(str(error)) from None
        if not line.endswith(b"\n"):
            raise GoneError("the cache server ended")
        return json.loads(line)

    def close(self) -> None:
        """Hangs up; in a forked child only the child's copy of the line."""
        self._lines.close()
        self._socket.close()

    def __del__(self) -> None:
        if "_lines" in self.__dict__:
            self.close()


def socket_path(cache_dir: Path) -> Path:
    """Where the server of a cache folder listens: short, and in a folder of this user alone.

    Raises:
        OSError: If that folder belongs to somebody else.
    """
    uid = os.getuid()
    name = xxhash.xxh64(f"{VERSION} {cache_dir.resolve()}".encode()).hexdigest()
    places = [Path(tempfile.gettempdir(), f"litcam-{uid}"), Path("/tmp", f"litcam-{uid}")]
    folder = next((at for at in places if len(os.fsencode(at)) + 22 < LONGEST_PATH), places[-1])
    folder.mkdir(mode=0o700, exist_ok=True)
    stat = folder.lstat()
    if folder.is_symlink() or stat.st_uid != uid or stat.st_mode & 0o077:
        raise OSError(f"{folder} must be a folder of yours alone; remove it, or set TMPDIR")
    return folder / f"{name}.sock"


def _connect(cache_dir: Path) -> socket.socket:
    path, started = socket_path(cache_dir), time.monotonic()
    while time.monotonic() - started < START_PATIENCE:
        if line := _try(path):
            return line
        # Of a hundred workers that find no server one starts it.
        with FileLock(path.with_suffix(".start")):
            if line := _try(path):
                return line
            _start(cache_dir, path)
        time.sleep(0.02)
    raise OSError(
        f"no cache server for {cache_dir} in {START_PATIENCE:.0f} s; "
        f"`{sys.executable} -m {SERVER} {cache_dir} {path}` tells why"
    )


def _try(path: Path) -> socket.socket | None:
    line = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    line.settimeout(SILENCE)
    try:
        line.connect(str(path))
    except (FileNotFoundError, ConnectionError, BlockingIOError):
        line.close()
        return None
    except TimeoutError:
        line.close()
        raise _silent() from None
    return line


def _start(cache_dir: Path, path: Path) -> None:
    """Starts a server, which goes on by itself once it listens."""
    # Not the current folder first: a file of the user's there may be named like a module.
    command = [sys.executable, "-P", "-m", SERVER, str(cache_dir), str(path)]
    done = subprocess.run(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        start_new_session=True,
        text=True,
    )
    if done.returncode:
        said = done.stderr.strip().splitlines() or [f"it exited with {done.returncode}"]
        raise OSError(f"the cache server of {cache_dir} does not start: {said[-1]}")


def _silent() -> OSError:
    return OSError(
        f"the cache server of this node said nothing for {SILENCE:.0f} s; is the disk of cache_dir "
        f"alive? End it (pgrep -f {SERVER}) and start the run again with --ckpt_path last"
    )
