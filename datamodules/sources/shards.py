"""Reading what `litcam convert` wrote: many images a file, on a disk or in a bucket."""

import json
import mmap
import os
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from litcam.datamodules.convert.manifest import FORMAT, MANIFEST
from litcam.datamodules.remote.prefetch import Prefetcher
from litcam.datamodules.remote.stores import Store, open_store
from litcam.datamodules.sources.dataset import ImageDataset

__all__ = ["ShardDataset", "Shards", "is_sharded"]

# Chunks are shuffled eight at a time; the next eight are begun before the last is left.
CHUNKS_KEPT_OPEN = 32


def is_sharded(root: str | Path) -> bool:
    """Whether a place is remote, or a folder that `litcam convert` wrote."""
    return "://" in str(root) or (Path(root).expanduser() / MANIFEST).is_file()


class ShardDataset(ImageDataset):
    """Images of one split, read by place and length out of the chunks they were packed into.

    Args:
        store: Where the files are.
        split: Folder of the split in it.
        about: What the manifest says of the split.
        classes: Names of the classes.
        transform: From uint8 ``(3, height, width)`` to what a sample holds.
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
        self.folder = f"{store.root}/{split}"
        self.classes, self.transform = classes, transform
        self.store, self._split, self.files = store, split, about["chunks"]
        keys, samples_file = (
            store.path(f"{split}/{name}", xxh64=about["files"][name])
            for name in ("keys.txt", "samples.npz")
        )
        self.keys = keys.read_text(encoding="utf-8").splitlines()
        with np.load(samples_file) as samples:
            self.labels = torch.from_numpy(samples["label"].astype(np.int64))
            self.chunks = samples["chunk"].astype(np.int64)
            self._offset, self._length = samples["offset"], samples["length"]
        if not len(self.keys) == len(self.labels) == about["num_images"]:
            raise ValueError(
                f"{self.folder}: litcam.json, keys.txt and samples.npz count {about['num_images']},"
                f" {len(self.keys)} and {len(self.labels)} images; copy the whole folder again"
            )
        self._open: OrderedDict[int, mmap.mmap] = OrderedDict()
        self._opened_by = os.getpid()

    def read(self, index: int) -> bytes:
        """The image file as it was before it was packed."""
        chunk = self._chunk(int(self.chunks[index]))  # type: ignore[index]
        start = int(self._offset[index])
        return chunk[start : start + int(self._length[index])]

    def place(self, index: int) -> str:
        """Its chunk and its key."""
        return f"{self.folder}/{self.files[self.chunks[index]]['file']}:{self.keys[index]}"  # type: ignore[index]

    def storage_order(self) -> NDArray[np.int64]:
        """Indices, int64 ``(num_images,)``, chunk by chunk."""
        return np.lexsort((self._offset, self.chunks))  # type: ignore[arg-type]

    def prefetch(self, order: NDArray[np.int64]) -> Callable[[int], None]:
        """Fetches chunks of a remote store before their images are read."""
        chunks, first = np.unique(self.chunks[order], return_index=True)  # type: ignore[index]
        by_need = np.argsort(first)
        wanted = [self._file(chunk) for chunk in chunks[by_need]]
        prefetcher, first = Prefetcher(self.store, wanted), first[by_need]

        def advance(taken: int) -> None:
            if taken < 0:
                prefetcher.close()
            else:
                prefetcher.advance(int(np.searchsorted(first, taken, side="right")) - 1)

        return advance

    def _file(self, chunk: int) -> tuple[str, int, str]:
        about = self.files[chunk]
        return f"{self._split}/{about['file']}", about["num_bytes"], about["xxh64"]

    def _chunk(self, number: int) -> mmap.mmap:
        if self._opened_by != os.getpid():  # a worker's copy; the maps are its parent's
            self._open, self._opened_by = OrderedDict(), os.getpid()
        if number in self._open:
            self._open.move_to_end(number)
            return self._open[number]
        name, num_bytes, xxh64 = self._file(number)
        with self.store.path(name, num_bytes=num_bytes, xxh64=xxh64).open("rb") as file:
            self._open[number] = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        if len(self._open) > CHUNKS_KEPT_OPEN:
            self._open.popitem(last=False)
        return self._open[number]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open": OrderedDict()}


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
        manifest = json.loads(self._store.path(MANIFEST).read_text())
        if manifest.get("format") != FORMAT:
            raise ValueError(
                f"{root}/{MANIFEST} is of format {manifest.get('format')}, and this litcam reads "
                f"{FORMAT}; convert again, or upgrade litcam"
            )
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
