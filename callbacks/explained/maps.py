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

from litcam.callbacks.explained.answer import Answer
from litcam.callbacks.explained.recorder import Recorded
from litcam.callbacks.validation.device import bring
from litcam.callbacks.validation.pixels import Pixels, find_span
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
        predicted: the class of the highest score: two probabilities may round to 1.
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
    predicted: int
    made_by: dict[str, Any]
    rank: int | None = None

    def find_problem(self, place: int) -> str:
        """Why there is nothing to see in the map of one view, or an empty line."""
        if not np.isfinite(self.probabilities).all():
            return "logits are not finite"
        one = self.maps[place]
        if not np.isfinite(one).all():
            return "map is not finite"
        return "map is flat" if one.max() - one.min() <= 1e-6 * one.max() else ""

    @property
    def problems(self) -> set[str]:
        """Those of all its views."""
        return {self.find_problem(place) for place in range(len(self.views))} - {""}


@dataclass
class Names:
    """What classes and images are called, asked of the data."""

    classes: Sequence[str]
    keys: Sequence[str]
    one: str = "target"  # what the only score of an image is called

    @classmethod
    def find(cls, trainer: pl.Trainer, dataset: Any) -> "Names":
        """The datamodule's `class_names`, else the dataset's `classes`, else numbers."""
        named = _as_names(getattr(getattr(trainer, "datamodule", None), "class_names", None))
        keys = getattr(dataset, "keys", None)
        return cls(
            named or _as_names(getattr(dataset, "classes", None)),
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


def _as_names(given: Any) -> list[str]:
    """Names in a list, tuple or array; none in anything else, such as their number."""
    if given is None or isinstance(given, str) or callable(given):
        return []
    try:
        return [str(name) for name in given]
    except TypeError:
        return []


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
            views[view] = find_predicted(logits)
        elif view == "true":
            if labels is None:
                problems.append(
                    "has no view of the true class: the batch has no labels, or none that were "
                    "found; GradCAM(labels=…) tells where they are"
                )
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
            scores `(rows,)` and `(rows, num_classes)`, and the batch's span `(2,)`.
        answer: what makes probabilities of scores: known for sure when all batches were seen.
        dataloader_idx: which of several validation loaders they came from.
        pixels: how the network's input becomes pixels.
        made_by: layer, grid and method, for the record.
    """

    indices: list[int]
    views: list[str]
    tensors: list[Tensor]
    answer: Answer
    dataloader_idx: int
    pixels: Pixels
    made_by: dict[str, Any]

    @classmethod
    def make(
        cls,
        recorded: Recorded,
        rows: Mapping[int, int],
        views: Mapping[str, Tensor],
        pixels: Pixels,
        made_by: dict[str, Any],
    ) -> "KeptMaps":
        """Makes the maps of some images of a recorded batch.

        Args:
            recorded: the batch's forward.
            rows: places in the batch, with their dataset indices.
            views: one class an image `(batch,)` for every view, -1 where it has none.
            pixels: how the network's input becomes pixels.
            made_by: layer, grid and method, for the record.
        """
        images, labels = recorded.cam.images, recorded.labels
        assert images is not None
        device = images.device
        table = torch.stack([classes.to(device) for classes in views.values()], 1)
        labels = torch.full_like(table[:, 0], -1) if labels is None else labels.to(device)
        made = [
            recorded.own_maps
            if view == "true" or recorded.logits.shape[1] == 1
            else recorded.cam.maps(classes.clamp(min=0)[:, None])[:, 0]
            for view, classes in zip(views, table.unbind(1), strict=True)
        ]
        maps = torch.stack(made, 1)
        chosen = torch.tensor(list(rows), device=device)
        kept = [images, maps, table, labels, recorded.logits]
        tensors = [*(tensor.index_select(0, chosen) for tensor in kept), find_span(images)]
        about = recorded.answer, recorded.loader, pixels, made_by
        return cls(list(rows.values()), list(views), tensors, *about)


def bring_maps(kept: Sequence[KeptMaps]) -> tuple[list[Explained], list[str]]:
    """Takes them off the device, in one copy; and what is wrong with some of them."""
    tensors = iter(bring([tensor for part in kept for tensor in part.tensors]) if kept else [])
    explained: list[Explained] = []
    problems: list[str] = []
    for part in kept:
        images, maps, table, labels, scores, span = (next(tensors) for _ in part.tensors)
        probabilities, predicted = part.answer.probabilities(scores), find_predicted(scores)
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
                    predicted=int(predicted[place]),
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


def find_predicted(scores: Tensor) -> Tensor:
    """The class of the highest of scores `(batch, num_classes)`, `(batch,)`."""
    return scores.detach().nan_to_num().argmax(1)


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
    lines = []
    for kind in dict.fromkeys(kind for image in explained for kind in sorted(image.problems)):
        found = [image.index for image in explained if kind in image.problems]
        lines.append(
            f"has images whose {kind}: {len(found)} of the {len(explained)} that are shown, "
            f"by index {', '.join(map(str, sorted(found)[:8]))}"
        )
    return lines
