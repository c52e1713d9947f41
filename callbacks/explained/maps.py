"""What is kept of an explained image, and what its classes are called."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

import lightning.pytorch as pl
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from litcam.callbacks.validation.device import bring
from litcam.callbacks.validation.pixels import Pixels, find_span
from litcam.explain import CAM
from litcam.explain.figures import Picture


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
        rank: its place among those that are shown, where they are not the same every time.
    """

    index: int
    dataloader_idx: int
    photo: Picture
    maps: npt.NDArray[np.float32]
    views: dict[str, int]
    label: int | None
    probabilities: npt.NDArray[np.float32]
    made_by: dict[str, Any]
    rank: int | None = None

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
    one: str = "target"  # what the only score of an image is called

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
    """One class an image for every view, `(batch,)`, -1 for none; what is wrong with the others.

    Of one score an image, the user's target, there is one view.
    """
    views: dict[str, Tensor] = {}
    problems = []
    batch, num_classes = logits.shape
    if num_classes == 1:
        return {"target": logits.new_zeros(batch, dtype=torch.long)}, []
    for view in wanted:
        if view == "predicted":
            views[view] = logits.detach().nan_to_num().argmax(1)
        elif view == "true":
            if labels is None:
                problems.append("has no view of the true class: the batch has no labels")
            else:
                views[view] = labels.where((labels >= 0) & (labels < num_classes), -1)
        else:
            try:
                number = names.find_class(view, num_classes)
                views[str(view)] = torch.full((batch,), number, device=logits.device)
            except ValueError as error:
                problems.append(f"leaves out the view {view}: {error}")
    return views, problems


@dataclass
class KeptMaps:
    """Some images of a batch with their maps, still on the device: nothing has waited for it yet.

    Attributes:
        indices: the images' places in the dataset.
        views: what each map is of, in order.
        tensors: the images as the network got them `(rows, channels, height, width)`, their maps
            `(rows, views, h, w)`, the maps' classes `(rows, views)`, -1 for none, the labels and
            probabilities `(rows,)` and `(rows, num_classes)`, and the batch's span `(2,)`.
        dataloader_idx: which of several validation loaders they came from.
        pixels: how the network's input becomes pixels.
        made_by: layer, grid and method, for the record.
    """

    indices: list[int]
    views: list[str]
    tensors: list[Tensor]
    dataloader_idx: int
    pixels: Pixels
    made_by: dict[str, Any]

    @classmethod
    def make(
        cls,
        cam: CAM,
        rows: Mapping[int, int],
        views: Mapping[str, Tensor],
        labels: Tensor | None,
        probabilities: Tensor,
        **about: Any,
    ) -> "KeptMaps":
        """Makes the maps of some images of a recorded batch.

        Args:
            cam: has recorded the batch's forward.
            rows: places in the batch, with their dataset indices.
            views: one class an image `(batch,)` for every view, -1 where it has none.
            labels: true classes `(batch,)`, -1 where there is none, or None.
            probabilities: of the batch, `(batch, num_classes)`.
            about: the other attributes.
        """
        assert cam.images is not None
        device = cam.images.device
        chosen = torch.tensor(list(rows), device=device)
        table = torch.stack([classes.to(device) for classes in views.values()], 1)
        labels = torch.full_like(table[:, 0], -1) if labels is None else labels.to(device)
        kept = [cam.images, cam.maps(table.clamp(min=0)), table, labels, probabilities]
        tensors = [*(tensor.index_select(0, chosen) for tensor in kept), find_span(cam.images)]
        return cls(list(rows.values()), list(views), tensors, **about)


def bring_maps(kept: Sequence[KeptMaps]) -> tuple[list[Explained], list[str]]:
    """Takes them off the device, in one copy; and what is wrong with some of them."""
    tensors = iter(bring([tensor for part in kept for tensor in part.tensors]) if kept else [])
    explained: list[Explained] = []
    problems: list[str] = []
    for part in kept:
        images, maps, table, labels, probabilities, span = (next(tensors) for _ in part.tensors)
        photos, classes = part.pixels.to_pixels(images, span), table.tolist()
        problems += _find_wrong_labels(part.views, labels.tolist(), probabilities.shape[1])
        for place, index in enumerate(part.indices):
            named = zip(part.views, classes[place], strict=True)
            views = {view: number for view, number in named if number >= 0}
            if not views:
                continue
            label = int(labels[place])
            explained.append(
                Explained(
                    index=index,
                    dataloader_idx=part.dataloader_idx,
                    photo=photos[place],
                    maps=maps[place, table[place] >= 0].numpy(),
                    views=views,
                    label=label if label >= 0 else None,
                    probabilities=probabilities[place].numpy(),
                    made_by=part.made_by,
                )
            )
    return explained, problems


def _find_wrong_labels(views: Sequence[str], labels: Sequence[int], num_classes: int) -> list[str]:
    """Why some images have no view of their true class."""
    if "true" not in views:
        return []
    wrong = next((label for label in labels if not -1 <= label < num_classes), None)
    if wrong is not None:
        return [
            f"has no view of the true class: label {wrong} is not one of the network's "
            f"{num_classes} classes"
        ]
    if -1 in labels:
        return ["has no view of the true class for images without a label, or with several"]
    return []


def merge(parts: Sequence[Sequence[Explained]]) -> list[Explained]:
    """The images of every process, each once.

    Where no index is known, every process counts its images from zero: the first's are kept.
    """
    found = {
        (image.dataloader_idx, image.index): image for part in reversed(parts) for image in part
    }
    return list(found.values())


def describe_problems(explained: Sequence[Explained]) -> list[str]:
    """A line for every kind of image with nothing to see."""
    kinds = dict.fromkeys(image.problem for image in explained if image.problem)
    return [
        f"has images whose {kind}: "
        f"{sorted(image.index for image in explained if image.problem == kind)} "
        f"of {len(explained)}"
        for kind in kinds
    ]
