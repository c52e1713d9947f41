"""What the processes of a run agree on: their data, and how many images of it are broken."""

import logging
import socket
from collections.abc import Iterable
from typing import Any

import torch.distributed as dist
from torch.distributed.distributed_c10d import _get_default_store

from litcam.datamodules.sources.dataset import Broken, ImageDataset

__all__ = ["BrokenImages", "check_alike", "check_same"]

# Not `warnings`: a run under `python -W error` is not to die of what it was allowed to skip.
log = logging.getLogger("lightning.pytorch.litcam")


def _several() -> bool:
    return dist.is_available() and dist.is_initialized()


def check_alike(dataset: ImageDataset) -> None:
    """Holds the images that each process found against each other; to be called by all of them.

    Raises:
        ValueError: On every process, if one of them sees other images or classes than the first.
    """
    if not _several():
        return
    mine = (dataset.fingerprint, len(dataset), socket.gethostname())
    found: list[tuple[str, int, str]] = [mine] * dist.get_world_size()
    dist.all_gather_object(found, mine)
    for rank, (fingerprint, num_images, host) in enumerate(found):
        if fingerprint != found[0][0]:
            counts = f"{num_images} images instead of {found[0][1]}"
            if num_images == found[0][1]:
                counts = f"{num_images} images, of other names or classes"
            raise ValueError(
                f"process {rank} (on {host}) sees other data in {dataset.folder} than process 0 "
                f"(on {found[0][2]}): {counts}; wait until the copy is complete everywhere"
            )


def check_same(dataset: ImageDataset, state: dict[str, Any]) -> None:
    """Holds the training images against those of the run that a checkpoint is of.

    Raises:
        ValueError: If they are others, or it cannot be told.
    """
    if "fingerprint" not in state:
        raise ValueError(
            "the checkpoint is of an earlier litcam, whose order of images was another; start "
            "a new run from its weights"
        )
    if state["fingerprint"] != dataset.fingerprint:
        now = f"there are {len(dataset)}"
        if state["num_images"] == len(dataset):
            now = "as many of other names or classes are there"
        raise ValueError(
            f"the checkpoint is of a run on {state['num_images']} training images, and "
            f"now {now} in {dataset.folder}; give it the same data, or start a new run from "
            "its weights"
        )


class BrokenImages:
    """Counts the training images of a run that could not be read, each once.

    Processes share the count through the store by which they met, so that none waits for another.

    Args:
        allowed: How many there may be.
        name: Of the count, the same on all processes.
        known: Those of the run before it was resumed.
    """

    def __init__(self, allowed: int, *, name: str, known: Iterable[int] = ()) -> None:
        self.allowed = allowed
        store = _get_default_store() if _several() else dist.HashStore()
        self._store = dist.PrefixStore(f"litcam/broken/{name}", store)
        for index in known:
            self._count(index)

    def report(self, broken: Iterable[Broken]) -> None:
        """Names those that are new.

        Raises:
            ValueError: If there are more than allowed.
        """
        for index, reason in broken:
            number = self._count(index)
            if number > self.allowed:
                raise ValueError(
                    f"{reason}. More training images are broken than "
                    f"max_broken={self.allowed} allows"
                )
            if number:
                log.warning(
                    f"broken image {number} of at most {self.allowed}: {reason}. "
                    "Another one takes its place"
                )

    def indices(self) -> list[int]:
        """All that were found, on whichever process."""
        number = self._store.add("number", 0)
        return sorted(int(self._store.get(f"number/{at}")) for at in range(1, number + 1))

    def _count(self, index: int) -> int:
        """The image's number among the broken ones, or 0 if it has been counted."""
        if self._store.add(f"image/{index}", 1) > 1:
            return 0
        number = int(self._store.add("number", 1))
        self._store.set(f"number/{number}", str(index))
        return number
