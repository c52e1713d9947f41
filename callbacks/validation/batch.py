"""What a batch holds, whoever made it: its images and their labels."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from litcam.explain.scores import what_is

IMAGES = ("image", "images", "pixel_values", "input", "x")
LABELS = ("label", "labels", "target", "targets", "y")


@dataclass(frozen=True)
class Reading:
    """How batches are read: as the user says, or else by names, places, shapes and types.

    Attributes:
        images_of: from a batch to its images `(batch, channels, height, width)`.
        labels_of: from a batch to its labels, `(batch,)` or `(batch, num_classes)`.
    """

    images_of: Callable[[Any], Tensor] | None = None
    labels_of: Callable[[Any], Tensor] | None = None

    def images(self, batch: Any) -> Tensor | None:
        """The images `(batch, channels, height, width)`, or None.

        Raises:
            ValueError: what the user gave is none.
        """
        if self.images_of is None:
            return find_images(batch)
        images = self.images_of(batch)
        if not _is_images(images):
            raise ValueError(f"images must give (batch, channels, h, w), got {what_is(images)}")
        return images

    def labels(self, batch: Any) -> Tensor | None:
        """Class numbers `(batch,)`, -1 where an image has none or several; or None.

        Raises:
            ValueError: what the user gave is none.
        """
        if self.labels_of is None:
            return find_labels(batch)
        given = self.labels_of(batch)
        labels = _as_classes(given) if isinstance(given, Tensor) else None
        if labels is None:
            raise ValueError(
                f"labels must give class numbers (batch,) or (batch, classes), got {what_is(given)}"
            )
        return labels

    def have_several(self, batch: Any) -> bool:
        """Whether the labels allow several classes an image: 0 or 1 for each class."""
        tensors = _find_tensors(batch) if self.labels_of is None else [self.labels_of(batch)]
        shares = next((t.float() for t in tensors if t.ndim == 2 and t.shape[1] > 1), None)
        if shares is None:
            return False
        return bool((shares == shares.bool()).all()) and not bool((shares.sum(1) == 1).all())


def find_images(batch: Any) -> Tensor | None:
    """The images `(batch, channels, height, width)` of a batch, of a dict the best-named ones."""
    if isinstance(batch, Tensor):
        return batch if batch.ndim == 4 else None
    if isinstance(batch, Mapping):
        named = [batch[name] for name in IMAGES if name in batch]
        return next(filter(_is_images, [*named, *batch.values()]), None)
    return next(filter(_is_images, batch), None) if isinstance(batch, Sequence) else None


def find_labels(batch: Any) -> Tensor | None:
    """Class numbers `(batch,)` in a batch; of soft labels the strongest, -1 where there is no one.

    Of a tuple the first whole numbers after the images are meant, else shares `(batch, classes)`,
    else zeros and ones in floating point, which a loss of one logit wants: of images, boxes and
    labels the labels. Several classes of one image are no single label.
    """
    tensors = _find_tensors(batch)
    whole = [t for t in tensors if t.ndim == 1 and not t.is_floating_point()]
    wide = [t for t in tensors if t.ndim == 2 and t.shape[1] > 1]
    found = map(_as_classes, [*(t for t in whole if t.dtype != torch.bool), *wide, *tensors])
    return next((labels for labels in found if labels is not None), None)


def _find_tensors(batch: Any) -> list[Tensor]:
    if isinstance(batch, Mapping):
        found = [batch[name] for name in LABELS if name in batch][:1]
    else:
        found = list(batch[1:]) if isinstance(batch, Sequence) else []
    return [labels for labels in found if isinstance(labels, Tensor)]


def _as_classes(labels: Tensor) -> Tensor | None:
    if labels.ndim == 2 and labels.shape[1] > 1:
        shares = labels.float()
        single = ((shares.sum(1) - 1).abs() < 0.01) & (shares >= 0).all(1)
        return shares.argmax(1).where(single, -1)
    labels = labels[:, 0] if labels.ndim == 2 and labels.shape[1] else labels
    if labels.ndim != 1:
        return None
    if labels.is_floating_point() or labels.dtype == torch.bool:
        return labels.long() if bool((labels == labels.bool()).all()) else None
    return labels


def _is_images(value: Any) -> bool:
    return isinstance(value, Tensor) and value.ndim == 4
