"""What a batch holds, whoever made it: its images and their labels."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from litcam.explain.networks import are_images, prefer_photos
from litcam.explain.scores import what_is

IMAGES = ("image", "images", "pixel_values", "input", "x")
WHOLE = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)
LABELS = ("label", "labels", "target", "targets", "y")


@dataclass(frozen=True)
class Batch:
    """What was read from a batch, before its step: a step may take things out.

    Attributes:
        images: `(batch, channels, height, width)`, or None.
        candidates: what may be labels, in the order of the batch.
        index: the images' places in the dataset `(batch,)`, where the batch tells.
        size: how many images there are, 0 if there are none; they may lie deeper.
    """

    images: Tensor | None
    candidates: list[Tensor]
    index: Tensor | None
    size: int = 0

    def labels(self, num_scores: int) -> Tensor | None:
        """Class numbers `(batch,)`, -1 where an image has none or several; or None.

        Whole numbers are meant, else shares `(batch, num_scores)`, else zeros and ones in floating
        point, which a loss of one logit wants: of images, boxes and labels the labels.
        """
        whole = [t for t in self.candidates if t.ndim == 1 and not t.is_floating_point()]
        numbers = [t for t in whole if t.dtype != torch.bool]
        rest = [t for t in self.candidates if not _is_wide(t)]
        found = map(_as_classes, [*numbers, *self._wide(num_scores), *rest])
        return next((labels for labels in found if labels is not None), None)

    def have_several(self, num_scores: int) -> bool:
        """Whether the labels allow several classes an image, each with 0 or 1 of its own."""
        wide = self._wide(num_scores)
        if not wide:
            return False
        # Unknown ones are NaN or below zero; what else does not sum to 1 is no share of classes.
        shares = wide[0].float().nan_to_num(-1.0)
        sums = shares.clamp(min=0).sum(1)
        return bool((((sums - 1).abs() > 0.01) & (shares >= 0).any(1)).any())

    def _wide(self, num_scores: int) -> list[Tensor]:
        return [t for t in self.candidates if _is_wide(t) and t.shape[1] == num_scores]


@dataclass(frozen=True)
class Reading:
    """How batches are read: as the user says, or else by names, places, shapes and types.

    Attributes:
        images_of: from a batch to its images `(batch, channels, height, width)`.
        labels_of: from a batch to its labels, `(batch,)` or `(batch, num_classes)`, or to None.
    """

    images_of: Callable[[Any], Tensor] | None = None
    labels_of: Callable[[Any], Tensor | None] | None = None

    def read(self, batch: Any) -> Batch:
        """What `batch` holds.

        Raises:
            ValueError: what the user gave gives something else.
        """
        images, index = self._images(batch), find_index(batch)
        size = _size_of(batch) if images is None else len(images)
        if index is not None and images is not None and len(index) != size:
            index = None
        return Batch(images, self._candidates(batch), index, size)

    def _images(self, batch: Any) -> Tensor | None:
        if self.images_of is None:
            return find_images(batch)
        images = self.images_of(batch)
        if not are_images(images):
            raise ValueError(f"images must give (batch, channels, h, w), got {what_is(images)}")
        return images

    def _candidates(self, batch: Any) -> list[Tensor]:
        if self.labels_of is None:
            return _find_candidates(batch)
        given = self.labels_of(batch)
        if given is None:
            return []
        if not isinstance(given, Tensor) or (not _is_wide(given) and _as_classes(given) is None):
            raise ValueError(
                "labels must give class numbers (batch,) or (batch, classes), or None, "
                f"got {what_is(given)}"
            )
        return [given]


def find_images(batch: Any) -> Tensor | None:
    """The images `(batch, channels, height, width)` of a batch, of a dict the best-named ones."""
    if isinstance(batch, Tensor):
        return batch if are_images(batch) else None
    if isinstance(batch, Mapping):
        named = prefer_photos(batch[name] for name in IMAGES if name in batch)
        return prefer_photos(batch.values()) if named is None else named
    return prefer_photos(batch) if isinstance(batch, Sequence) else None


def find_index(batch: Any) -> Tensor | None:
    """Places in the dataset `(batch,)` that a batch tells; None where they are no whole numbers."""
    index = batch.get("index") if isinstance(batch, Mapping) else None
    if not isinstance(index, Tensor) or index.ndim != 1 or index.dtype not in WHOLE:
        return None
    return index


def find_labels(batch: Any) -> Tensor | None:
    """Class numbers `(batch,)` in a batch, -1 where there is no one, whatever their number is."""
    found = _find_candidates(batch)
    width = next((t.shape[1] for t in found if _is_wide(t)), 0)
    return Batch(None, found, None).labels(width)


def _find_candidates(batch: Any) -> list[Tensor]:
    if isinstance(batch, Mapping):
        found = [batch[name] for name in LABELS if name in batch]
    else:
        found = list(batch[1:]) if isinstance(batch, Sequence) else []
    return [labels for labels in found if isinstance(labels, Tensor) and _is_plain(labels)]


def _size_of(batch: Any) -> int:
    if isinstance(batch, Tensor):
        return len(batch) if batch.ndim == 4 else 0
    if not isinstance(batch, Mapping | list | tuple):
        return 0
    values = batch.values() if isinstance(batch, Mapping) else batch
    return next(filter(None, map(_size_of, values)), 0)


def _is_plain(labels: Tensor) -> bool:
    return labels.layout == torch.strided and not labels.is_complex()


def _is_wide(labels: Tensor) -> bool:
    return labels.ndim == 2 and labels.shape[1] > 1


def _as_classes(labels: Tensor) -> Tensor | None:
    if _is_wide(labels):
        shares = labels.float()
        single = ((shares.sum(1) - 1).abs() < 0.01) & (shares >= 0).all(1)
        return shares.argmax(1).where(single, -1)
    labels = labels[:, 0] if labels.ndim == 2 and labels.shape[1] else labels
    if labels.ndim != 1:
        return None
    if labels.is_floating_point() or labels.dtype == torch.bool:
        return labels.long() if bool((labels == labels.bool()).all()) else None
    return labels
