"""Where a converted data set lies: its files as local paths, out of a folder or a bucket."""

import hashlib
import re
from pathlib import Path
from typing import Any

import xxhash

from litcam.datamodules.remote.transfers import SCHEMES


class Store:
    """A data set in a local folder. Each process checks a file when it first uses it.

    Attributes:
        root: The folder or address as the user gave it.
    """

    def __init__(self, root: str | Path) -> None:
        self.root = str(root)
        self._sound: set[str] = set()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_sound": set()}

    def exists(self, name: str) -> bool:
        """Tells whether the store has a file; a remote one is fetched, so ask for small ones."""
        return (Path(self.root).expanduser() / name).is_file()

    def path(self, name: str, *, num_bytes: int | None = None, xxh64: str | None = None) -> Path:
        """The local path of a file, after its size and hash were checked.

        A file without a hash is fetched anew, once for each opened store, from a remote one.

        Args:
            name: Relative to the root, as ``train/chunk-0-0.bin``.
            num_bytes: The size it should have.
            xxh64: The hexadecimal hash it should have.

        Raises:
            FileNotFoundError: If the store has no such file.
            PermissionError: If a remote store does not let us in.
            ValueError: If the address of a remote store is wrong.
            OSError: If the file is damaged, the disk full, or the store away for too long.
        """
        path = Path(self.root).expanduser() / name
        check = f"`litcam convert --check {self.root}`"
        if not path.is_file():
            raise FileNotFoundError(f"{path} is missing; {check} lists all that is wrong")
        if name not in self._sound:
            if problem := find_damage(path, num_bytes, xxh64):
                raise OSError(f"{path} {problem}; copy it again, {check} lists all that is wrong")
            self._sound.add(name)
        return path


def open_store(
    root: str | Path, cache_dir: str | Path | None = None, cache_gb: float | None = None
) -> Store:
    """Opens the place where a converted data set lies; nothing is read yet.

    Args:
        root: A local folder, ``s3://BUCKET/PREFIX``, ``gs://BUCKET/PREFIX`` or
            ``hf://datasets/OWNER/NAME``. For other S3 stores than Amazon's set AWS_ENDPOINT_URL.
        cache_dir: Remote files are kept in a folder below it; ``~/.cache/litcam`` if not given.
        cache_gb: Of remote files about this much is kept (10^9 bytes); all if not given.

    Raises:
        ValueError: If the address or ``cache_gb`` makes no sense.
    """
    # A Path makes one slash of two.
    address = re.fullmatch(r"([a-z][a-z0-9+]+):/{1,2}(.*)", str(root))
    if address is None:
        return Store(root)
    scheme, rest = address[1], address[2].strip("/")
    if scheme not in SCHEMES:
        known = ", ".join(f"{name}://" for name in SCHEMES)
        raise ValueError(f"root {root} is neither a folder nor one of {known}; copy the data there")
    if not rest:
        raise ValueError(f"root {root} names no bucket; write {scheme}://BUCKET/PREFIX")
    if cache_gb is not None and cache_gb <= 0:
        raise ValueError(f"cache_gb must be > 0, got {cache_gb}; leave it out to keep all files")
    # Only here, so that who reads a folder needs nothing of it.
    from litcam.datamodules.remote.remote_stores import RemoteStore

    return RemoteStore(str(root), f"{scheme}://{rest}", cache_dir, cache_gb)


def find_damage(path: Path, num_bytes: int | None, xxh64: str | None) -> str:
    """What is wrong with a file in words, or nothing."""
    size = path.stat().st_size
    if num_bytes is not None and size != num_bytes:
        return f"has {size} bytes instead of {num_bytes}"
    if xxh64 is not None:
        with path.open("rb") as file:
            found = hashlib.file_digest(file, xxhash.xxh64).hexdigest()
        if found != xxh64:
            return f"is damaged: its xxh64 is {found} instead of {xxh64}"
    return ""
