"""What every dataset of image files is, wherever its bytes come from."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from litcam.datamodules.pixels.decode import decode
from litcam.datamodules.sources.follow import Follower
from litcam.datamodules.sources.keys import Keys
from litcam.datamodules.sources.table import Chunks, ImageTable

__all__ = ["Broken", "Draw", "ImageDataset"]


class Draw(NamedTuple):
    """One image of one epoch, as a sampler asks for it.

    Attributes:
        image: Its place in ``keys``.
        seed: Of the random transform; a function of the run's seed, the epoch and the index, so
            that the same draw gives the same pixels in any worker of any process.
    """

    image: int
    seed: int


class Broken(NamedTuple):
    """An image that could not be read.

    Attributes:
        image: Its place in ``keys``.
        reason: Place and reason, in one line.
    """

    image: int
    reason: str


class ImageDataset(Dataset[dict[str, Tensor]], ABC):
    """Images as dicts of ``image`` ``(3, height, width)`` uint8, ``label`` and ``index``.

    Args:
        folder: Where the split is.
        classes: Names of the classes; a label is a place in this list.
        table: What is known of its images.
        transform: From uint8 ``(3, height, width)`` to what a sample holds.

    Attributes:
        keys: Names of the images, in the order of ``index``.
        labels: int32 ``(num_images,)``.
        chunks: How images lie in files that many share; None where each is a file of its own.
        skip_broken: Whether an unreadable image is handed on as `Broken`, not raised.
    """

    def __init__(
        self,
        folder: str,
        classes: list[str],
        table: ImageTable,
        transform: Callable[[Tensor], Tensor],
    ) -> None:
        self.folder, self.classes = folder, classes
        self.table, self.transform = table, transform
        self.skip_broken = False

    @property
    def keys(self) -> Keys:
        """Names of the images."""
        return self.table.keys

    @property
    def labels(self) -> NDArray[np.int32]:
        """Their classes, int32 ``(num_images,)``."""
        return self.table.labels

    @property
    def chunks(self) -> Chunks | None:
        """How they lie in files that many share."""
        return self.table.chunks

    @abstractmethod
    def read(self, index: int) -> bytes:
        """The image file as it was stored.

        Raises:
            ValueError: If this one image is gone or damaged.
            OSError: If where it lies cannot be read.
        """

    @abstractmethod
    def place(self, index: int) -> str:
        """Where the image is, for messages."""

    @property
    def fingerprint(self) -> str:
        """A hash of names and classes, the same wherever the same images lie."""
        return self.table.fingerprint

    def follow(self, images: NDArray[np.int64]) -> Follower:
        """Gets ready for images to be read in an order.

        Args:
            images: int64 ``(num_reads,)``.

        Returns:
            To be told how far reading has come.
        """
        return Follower()

    def __len__(self) -> int:
        return len(self.table)

    def __getitem__(self, draw: "int | Draw") -> Any:
        """Reads, decodes and transforms an image; a `Draw` fixes the transform's randomness."""
        index, seed = draw if isinstance(draw, Draw) else (draw, None)
        try:
            image = decode(self.read(index), self.place(index))
        except ValueError as error:
            # Not an OSError: a disk or a store that is away is no broken image.
            if not self.skip_broken:
                raise
            return Broken(index, str(error))
        if seed is None:
            image = self.transform(image)
        else:
            state = torch.get_rng_state()
            torch.default_generator.manual_seed(seed)
            try:
                image = self.transform(image)
            finally:
                torch.set_rng_state(state)
        label = torch.tensor(int(self.labels[index]))
        return {"image": image, "label": label, "index": torch.tensor(index)}
