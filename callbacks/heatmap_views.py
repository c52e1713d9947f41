"""From explained images to the pictures of a `GradCAM` callback: one view a class rule."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

import lightning.pytorch as pl
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from litcam.callbacks.image_logging import LoggedImage
from litcam.explain.figures import Picture, enlarge, overlay
from litcam.explain.methods import scale_maps


@dataclass
class Explained:
    """One image with its maps, small enough to be gathered from every process.

    Attributes:
        index: its place in the dataset.
        dataloader_idx: which of several validation loaders it came from.
        photo: what the network saw, uint8 `(height, width, 3)`.
        maps: one map a view at the layer's grid, `(views, h, w)`, after the ReLU, unscaled.
        views: view to class number, in the order of `maps`.
        label: the true class, or None where the batch does not tell.
        probabilities: `(num_classes,)`.
        made_by: layer, grid and method, for the record.
    """

    index: int
    dataloader_idx: int
    photo: Picture
    maps: npt.NDArray[np.float32]
    views: dict[str, int]
    label: int | None
    probabilities: npt.NDArray[np.float32]
    made_by: dict[str, Any]

    @property
    def predicted(self) -> int:
        """The class of highest probability."""
        return int(self.probabilities.argmax())

    @property
    def problem(self) -> str:
        """Why there is nothing to see, or an empty line."""
        if not np.isfinite(self.probabilities).all():
            return "logits are not finite"
        if not np.isfinite(self.maps).all():
            return "map is not finite"
        flat = self.maps.max((1, 2)) - self.maps.min((1, 2)) <= 1e-6 * self.maps.max((1, 2))
        return "map is flat" if flat.any() else ""


@dataclass
class Names:
    """What classes and images are called, asked of the data."""

    classes: Sequence[str]
    keys: Sequence[str]

    @classmethod
    def find(cls, trainer: pl.Trainer, dataset: Any) -> "Names":
        """The datamodule's `class_names`, else the dataset's `classes`, else numbers."""
        classes = getattr(getattr(trainer, "datamodule", None), "class_names", None)
        keys = getattr(dataset, "keys", None)
        return cls(
            list(classes or getattr(dataset, "classes", None) or []),
            keys if isinstance(keys, Sequence) else [],
        )

    def of_class(self, number: int) -> str:
        """The name of a class."""
        return self.classes[number] if number < len(self.classes) else f"class {number}"

    def of_image(self, index: int) -> str:
        """The name of an image."""
        return self.keys[index] if index < len(self.keys) else f"image {index}"

    def find_class(self, wanted: str | int, num_classes: int) -> int:
        """The number of a class given by name or number.

        Raises:
            ValueError: there is no such class; the message offers close matches.
        """
        if isinstance(wanted, int) or wanted.isdigit():
            if 0 <= int(wanted) < num_classes:
                return int(wanted)
            raise ValueError(f"class {wanted} does not exist: there are 0 to {num_classes - 1}")
        lower = [name.lower() for name in self.classes]
        if wanted.lower() in lower:
            return lower.index(wanted.lower())
        near = get_close_matches(wanted, self.classes, n=3, cutoff=0.4) or self.classes[:3]
        hint = f"close names: {', '.join(near)}" if near else "the data names no classes"
        raise ValueError(f"class {wanted!r} does not exist; {hint}")


def find_views(
    wanted: Sequence[str | int], names: Names, logits: Tensor, labels: Tensor | None
) -> tuple[dict[str, Tensor], list[str]]:
    """One class an image for every view, `(batch,)`, and what is wrong with the other views."""
    views: dict[str, Tensor] = {}
    problems = []
    batch, num_classes = logits.shape
    for view in wanted:
        if view == "predicted":
            views[view] = logits.detach().nan_to_num().argmax(1)
        elif view == "true":
            if labels is None:
                problems.append("has no view of the true class: the batch has no labels")
            elif wrong := [n for n in labels.tolist() if not 0 <= n < num_classes]:
                problems.append(
                    f"has no view of the true class: label {wrong[0]} is not one of the "
                    f"network's {num_classes} classes"
                )
            else:
                views[view] = labels.to(logits.device)
        else:
            try:
                number = names.find_class(view, num_classes)
                views[str(view)] = torch.full((batch,), number, device=logits.device)
            except ValueError as error:
                problems.append(f"leaves out the view {view}: {error}")
    return views, problems


def draw_views(
    explained: Sequence[Explained], names: Mapping[int, Names], prefix: str, when: str
) -> dict[str, list[LoggedImage]]:
    """Log key to pictures, in the order of the dataset.

    Args:
        explained: images of this validation, from every process.
        names: names of classes and images, for each loader.
        prefix: such as `val/gradcam`.
        when: epoch and step, for the captions.
    """
    views: dict[str, list[LoggedImage]] = {}
    for image in sorted(explained, key=lambda image: (image.dataloader_idx, image.index)):
        suffix = f"/dataloader_idx_{image.dataloader_idx}" if len(names) > 1 else ""
        for place, view in enumerate(image.views):
            logged = _draw(image, place, names[image.dataloader_idx], when)
            views.setdefault(f"{prefix}/{view}{suffix}", []).append(logged)
    return views


def _draw(image: Explained, place: int, names: Names, when: str) -> LoggedImage:
    number = list(image.views.values())[place]
    raw = image.maps[place]
    photo = enlarge(image.photo)
    heat = scale_maps(torch.from_numpy(raw), (photo.shape[0], photo.shape[1])).numpy()
    label, predicted = image.label, image.predicted
    true = "" if label is None else names.of_class(label)
    verdict = "" if label is None else ("right" if label == predicted else "wrong")
    probability, highest = float(image.probabilities[number]), float(raw.max())
    answer = f"predicted {names.of_class(predicted)} {image.probabilities[predicted]:.2f}"
    parts = [when, names.of_image(image.index), f"true {true}" if true else "", answer]
    parts += [verdict, f"map of {names.of_class(number)} {probability:.2f}, max {highest:.2g}"]
    return LoggedImage(
        tiles=[photo, overlay(photo, heat)],
        titles=[
            f"true {true}" if true else names.of_image(image.index),
            f"{names.of_class(number)} {probability:.2f}, max {highest:.2g}",
        ],
        caption=" | ".join(part for part in [*parts, image.problem] if part),
        name=f"{image.index:06d}",
        facts={
            "index": image.index,
            "image": names.of_image(image.index),
            "class": number,
            "class_name": names.of_class(number),
            "label": label,
            "predicted": predicted,
            "probability": _finite(probability),
            "correct": None if label is None else label == predicted,
            "map_max": _finite(highest),
            "problem": image.problem,
            **image.made_by,
        },
    )


def _finite(number: float) -> float | None:
    """JSON knows no NaN."""
    return number if np.isfinite(number) else None
