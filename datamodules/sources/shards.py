"""Reading what `litcam convert` wrote: many images a file, on a disk or in a bucket."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from litcam.datamodules.files import read_whole
from litcam.datamodules.remote.store import Store, StoredFile, open_store
from litcam.datamodules.shard_format import (
    COLUMNS,
    MANIFEST,
    REMEDY,
    column_file,
    find_flaw,
    parse_manifest,
    starts_of,
)
from litcam.datamodules.sources.dataset import ImageDataset
from litcam.datamodules.sources.follow import ChunkFollower, Follower, uses_of_chunks
from litcam.datamodules.sources.table import ImageTable

__all__ = ["ShardDataset", "Shards", "is_sharded"]


def is_sharded(root: str | Path) -> bool:
    """Whether a place is remote, or a folder that `litcam convert` wrote."""
    # A Path makes one slash of two; a letter alone is a drive.
    remote = re.match(r"[a-z][a-z0-9+]+:/", str(root))
    return bool(remote) or (Path(root).expanduser() / MANIFEST).is_file()


class ShardDataset(ImageDataset):
    """Images of one split, read by place and length out of the chunks they were packed into.

    Args:
        store: Where the files are.
        split: Folder of the split in it.
        about: What the manifest says of the split.
        classes: Names of the classes.
        transform: From uint8 ``(3, height, width)`` to what a sample holds.

    Raises:
        ValueError: If the columns of the split contradict each other or the manifest.
        OSError: If a file is missing or damaged.
    """

    def __init__(
        self,
        store: Store,
        split: str,
        about: dict[str, Any],
        classes: list[str],
        *,
        transform: Callable[[Tensor], Tensor],
    ) -> None:
        files = {}
        for name in COLUMNS:
            file = column_file(name)
            sound = about["files"][file]
            files[name] = store.path(
                f"{split}/{file}", num_bytes=sound["num_bytes"], xxh64=sound["xxh64"]
            )
        folder = f"{store.root}/{split}"
        table = ImageTable(files, starts_of(about))
        if flaw := find_flaw(table.columns, about):
            raise ValueError(f"{folder} is damaged: {flaw}; {REMEDY}")
        super().__init__(folder, classes, table, transform)
        self._files = [
            StoredFile(f"{split}/{at['file']}", at["num_bytes"], at["xxh64"])
            for at in about["chunks"]
        ]
        self._reader = store.reader(self._files)

    def read(self, index: int) -> bytes:
        """The image file as it was before it was packed."""
        chunk, offset, length = (int(column[index]) for column in self._places())
        return self._reader.read(chunk, offset, length)

    def place(self, index: int) -> str:
        """Its chunk and its key."""
        chunk = self._files[int(self.table.columns["chunk"][index])]
        return f"{self.folder}/{chunk.name.rpartition('/')[2]}:{self.keys[index]}"

    def follow(self, images: NDArray[np.int64]) -> Follower:
        """Has chunks of a remote store fetched before their images are read."""
        chunk = self.table.columns["chunk"]
        numbers, first, last = uses_of_chunks(images, chunk, len(self._files))
        return ChunkFollower(self._reader.follow(numbers.tolist()), first, last)

    def _places(self) -> tuple[NDArray[Any], ...]:
        return tuple(self.table.columns[name] for name in ("chunk", "offset", "length"))


class Shards:
    """A data set that `litcam convert` wrote.

    Args:
        root: Folder, or address such as ``s3://bucket/imagenet``.
        cache_dir: Where files of a remote one are kept; by default ``~/.cache/litcam``.
        cache_gb: How much of them; by default all.

    Attributes:
        classes: Names of the classes, in the order of their numbers.
        has_test: Whether there is a test split.

    Raises:
        OSError: If a file cannot be read.
        ValueError: If it is of another format.
    """

    def __init__(
        self, root: str | Path, *, cache_dir: str | Path | None, cache_gb: float | None
    ) -> None:
        self.root = root
        self._store = open_store(root, cache_dir, cache_gb)
        text = read_whole(self._store.path(MANIFEST))
        manifest = parse_manifest(text, f"{root}/{MANIFEST}")
        self.classes: list[str] = manifest["classes"]
        self._splits = manifest["splits"]
        self.has_test = "test" in self._splits

    def open(
        self,
        split: str,
        transform: Callable[[Tensor], Tensor],
        *,
        images_per_class: int | None = None,
    ) -> ShardDataset:
        """The images of a split.

        Raises:
            ValueError: If it is not there, or only some images of each class are asked for.
        """
        if split not in self._splits:
            raise ValueError(f"{self.root} has no {split} images, only {', '.join(self._splits)}")
        if images_per_class:
            raise ValueError(
                f"images_per_class={images_per_class} does not work with shards; convert a folder "
                "with so many images of each class"
            )
        return ShardDataset(
            self._store, split, self._splits[split], self.classes, transform=transform
        )
