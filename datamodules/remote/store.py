"""Where a converted data set lies, and what is read of it: a folder, or an address."""

import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from litcam.datamodules.remote.names import unknown_scheme
from litcam.datamodules.remote.transfers import SCHEMES


class StoredFile(NamedTuple):
    """A file of a data set, as its manifest describes it; ``name`` is relative to the root."""

    name: str
    num_bytes: int
    xxh64: str


class Plan:
    """The order in which one process first needs files; out of a folder there is nothing to do."""

    def at(self, wanted: int, finished: int) -> None:
        """Says how far the process is.

        Args:
            wanted: So many files of the plan have been asked for.
            finished: So many of them will not be read again in this epoch.
        """

    def close(self) -> None:
        """Nothing more of this plan is needed."""


class Reader(ABC):
    """Reads parts of a fixed list of files, each checked before its first part is handed out."""

    @abstractmethod
    def read(self, number: int, offset: int, length: int) -> bytes:
        """Some bytes of a file.

        Args:
            number: The file's place in the list.
            offset: Where the bytes begin in it.
            length: How many.

        Raises:
            OSError: If the file is missing or damaged, or its store away for too long.
        """

    @abstractmethod
    def follow(self, numbers: Sequence[int]) -> Plan:
        """Announces the files that this process will need, by their numbers, in order."""


class Store(ABC):
    """A converted data set; can be pickled, and used in forked processes.

    Attributes:
        root: The folder or address as the user gave it.
    """

    root: str

    @abstractmethod
    def exists(self, name: str) -> bool:
        """Tells whether the store has a file; a remote one is fetched, so ask for small ones."""

    @abstractmethod
    def path(self, name: str, *, num_bytes: int | None = None, xxh64: str | None = None) -> Path:
        """The local path of a small file, after its size and hash were checked.

        A file without a hash is fetched anew, once for each opened store, from a remote one.

        Args:
            name: Relative to the root, as ``train/keys.txt``.
            num_bytes: The size it should have.
            xxh64: The hexadecimal hash it should have.

        Raises:
            FileNotFoundError: If the store has no such file.
            PermissionError: If a remote store does not let us in.
            ValueError: If the address of a remote store is wrong, or the name leads out of it.
            OSError: If the file is damaged, the disk full, or the store away for too long.
        """

    @abstractmethod
    def reader(self, files: Sequence[StoredFile]) -> Reader:
        """Reads large files by parts; the workers of a process share it."""


def open_store(
    root: str | Path, cache_dir: str | Path | None = None, cache_gb: float | None = None
) -> Store:
    """Opens the place where a converted data set lies; nothing is read yet.

    Args:
        root: A local folder, ``s3://BUCKET/PREFIX``, ``gs://BUCKET/PREFIX``,
            ``az://CONTAINER/PREFIX``, ``hf://datasets/OWNER/NAME`` or ``https://HOST/FOLDER``.
            For other S3 stores than Amazon's set AWS_ENDPOINT_URL.
        cache_dir: Remote files are kept in a folder below it; ``~/.cache/litcam`` if not given.
        cache_gb: So much of remote files lies there at most (10^9 bytes); all if not given.

    Raises:
        ValueError: If the address or ``cache_gb`` makes no sense, or this machine cannot share
            a cache between processes.
    """
    # A Path makes one slash of two.
    address = re.fullmatch(r"([a-z][a-z0-9+]+):/{1,2}(.*)", str(root))
    if address is None:
        from litcam.datamodules.remote.local import LocalStore

        return LocalStore(root)
    scheme, rest = address[1], address[2].strip("/")
    if scheme not in SCHEMES:
        raise unknown_scheme(str(root), scheme, list(SCHEMES))
    if not rest:
        raise ValueError(f"root {root} names no bucket; write {scheme}://BUCKET/PREFIX")
    if cache_gb is not None and cache_gb <= 0:
        raise ValueError(f"cache_gb must be > 0, got {cache_gb}; leave it out to keep all files")
    from litcam.datamodules.remote.client import RemoteStore

    return RemoteStore(str(root), f"{scheme}://{rest}", cache_dir, cache_gb)


def check_part(file: StoredFile, offset: int, length: int, root: str) -> None:
    """Refuses bytes that a file does not have.

    Raises:
        OSError: If the index and the file do not belong together.
    """
    if offset < 0 or length < 0 or offset + length > file.num_bytes:
        raise OSError(
            f"{root}/{file.name} has {file.num_bytes} bytes, and its index asks for "
            f"{length} at {offset}; convert the data set again, or copy the whole folder again"
        )
