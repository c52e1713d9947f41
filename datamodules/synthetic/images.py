"""One split of the synthetic images: drawn once, held in memory, indexed a batch at a time."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_info, rank_zero_only
from rich.console import Console
from rich.progress import Progress
from torch import Tensor
from torch.utils.data import Dataset

from litcam.datamodules.synthetic.backgrounds import (
    load_photos,
    photo_levels,
    random_crops,
    textures,
)
from litcam.datamodules.synthetic.patterns import SHORTCUT_COLOURS, draw_images

__all__ = ["SyntheticImages"]

_CHUNK = 250  # images drawn at once: large enough to be quick, small enough for the cache
_SPLITS = ("train", "val", "test")


class SyntheticImages(Dataset[dict[str, Tensor]]):
    """One split, drawn when constructed and held in memory.

    Image `index` is of class `index % num_classes` and is the same however many others there are.

    Attributes:
        images: `(num_images, 3, image_size, image_size)` uint8.
        labels: `(num_images,)` int64.
        masks: `(num_images, image_size, image_size)` bool, the object's pixels.
        boxes: `(num_images, 4)` int64, x1 y1 x2 y2 in pixels, so that
            `mask[y1:y2, x1:x2]` is the smallest window that holds the object.
        keys: the images' names, such as "val/000017".
    """

    def __init__(
        self,
        split: str,
        num_images: int,
        *,
        num_classes: int = 8,
        image_size: int = 64,
        shortcut: float = 0.0,
        seed: int = 0,
    ) -> None:
        self.keys = [f"{split}/{index:06d}" for index in range(num_images)]
        self.labels = torch.arange(num_images) % num_classes
        self.images = torch.empty(num_images, 3, image_size, image_size, dtype=torch.uint8)
        self.masks = torch.empty(num_images, image_size, image_size, dtype=torch.bool)
        with _one_thread():
            self._draw(split, num_classes, shortcut, seed)
        self.boxes = _boxes(self.masks)

    def _draw(self, split: str, num_classes: int, shortcut: float, seed: int) -> None:
        """Fills `images` and `masks`, a chunk at a time."""
        num_images, image_size = len(self.images), self.images.shape[-1]
        photos = load_photos()
        if photos is None:
            rank_zero_info("scikit-learn is not installed: procedural textures replace its photos.")
            photos = textures(torch.Generator().manual_seed(seed))
        levels = photo_levels(photos, image_size)
        for start in _track(range(0, num_images, _CHUNK), f"Drawing the {split} images"):
            numbers = np.random.SeedSequence([seed, _SPLITS.index(split), start // _CHUNK])
            generator = torch.Generator().manual_seed(int(numbers.generate_state(1)[0]))
            # Whole chunks always: an image must not depend on how many come after it.
            labels = torch.arange(start, start + _CHUNK) % num_classes
            backgrounds = random_crops(levels, _CHUNK, image_size, generator)
            patches = _patch_colours(labels, num_classes, shortcut, generator)
            images, masks = draw_images(backgrounds, labels, patches, generator)
            rows = slice(start, min(start + _CHUNK, num_images))
            self.images[rows] = images[: num_images - start]
            self.masks[rows] = masks[: num_images - start]

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        """One sample: the entries of a batch without their first axis."""
        return {name: value[0] for name, value in self.__getitems__([index]).items()}

    def __getitems__(self, indices: list[int]) -> dict[str, Tensor]:
        """A whole batch by one indexing for each tensor; the loader asks for it by this name."""
        rows = torch.tensor(indices, dtype=torch.int64)
        return {
            "image": self.images[rows],
            "label": self.labels[rows],
            "index": rows,
            "mask": self.masks[rows],
            "box": self.boxes[rows],
        }


@contextmanager
def _one_thread() -> Iterator[None]:
    """Draws in one thread: a second one gains little, and costs tens of seconds on busy cores.

    Each operation is short, and threads of OpenMP wait for each other at the end of every one.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _track(starts: range, description: str) -> Iterator[int]:
    """Goes through `starts`, with a progress bar if that takes more than a second."""
    console = Console()
    # Only where somebody watches: into a file it would write an empty line.
    silent = not console.is_terminal or getattr(rank_zero_only, "rank", 0) != 0
    with Progress(console=console, transient=True, disable=silent) as progress:
        began = time.monotonic()
        task = progress.add_task(description, total=len(starts), visible=False)
        for start in starts:
            yield start
            progress.update(task, advance=1, visible=time.monotonic() - began > 1)


def _patch_colours(
    labels: Tensor, num_classes: int, shortcut: float, generator: torch.Generator
) -> Tensor | None:
    """Colours `(n, 3)` of the corner patches: the class's with probability `shortcut`."""
    if not shortcut:
        return None
    honest = torch.rand(len(labels), generator=generator) < shortcut
    anything = torch.randint(num_classes, (len(labels),), generator=generator)
    return SHORTCUT_COLOURS[torch.where(honest, labels, anything)]


def _boxes(masks: Tensor) -> Tensor:
    """The smallest boxes `(n, 4)` x1 y1 x2 y2 that hold `masks` `(n, h, w)`; x2, y2 excluded."""
    columns, rows = masks.any(1).to(torch.uint8), masks.any(2).to(torch.uint8)
    # argmax gives the first of several equal maxima.
    x1, y1 = columns.argmax(1), rows.argmax(1)
    x2 = masks.shape[2] - columns.flip(1).argmax(1)
    y2 = masks.shape[1] - rows.flip(1).argmax(1)
    return torch.stack([x1, y1, x2, y2], dim=1)
