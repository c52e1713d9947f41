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

    Attributes:
        folder: Where the split is.
        classes: Names of the classes; a label is a place in this list.
        keys: Names of the images, in the order of ``index``.
        labels: int64 ``(num_images,)``.
        chunks: int64 ``(num_images,)``, the file each image lies in if many share one, else None.
        skip_broken: Whether an unreadable image is handed on as `Broken`, not raised.
    """

    folder: str
    classes: list[str]
    keys: list[str]
    labels: Tensor
    transform: Callable[[Tensor], Tensor]
    chunks: NDArray[np.int64] | None = None
    skip_broken: bool = False

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

    def storage_order(self) -> NDArray[np.int64]:
        """Indices, int64 ``(num_images,)``, in the order in which the images lie in storage."""
        return np.arange(len(self))

    def prefetch(self, order: NDArray[np.int64]) -> Callable[[int], None]:
        """Gets ready for images to be read in an order, int64 ``(num_reads,)``.

        Returns:
            To be told how many of them have been taken; -1 at the end.
        """
        return lambda taken: None

    def __len__(self) -> int:
        return len(self.keys)

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
        return {"image": image, "label": self.labels[index], "index": torch.tensor(index)}
