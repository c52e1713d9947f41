"""From explained images to the pictures of a `GradCAM` callback: one view a class rule."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch

from litcam.callbacks.explained.maps import Explained, Names
from litcam.callbacks.places.pictures import LoggedImage
from litcam.explain.figures import enlarge, overlay, pack_map
from litcam.explain.methods.formulas import scale_maps


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
    for image in sorted(explained, key=lambda i: (i.dataloader_idx, i.rank or 0, i.index)):
        suffix = f"/dataloader_idx_{image.dataloader_idx}" if len(names) > 1 else ""
        for place, view in enumerate(image.views):
            logged = _draw(image, place, names[image.dataloader_idx], when)
            views.setdefault(f"{prefix}/{view}{suffix}", []).append(logged)
    return views


def _draw(image: Explained, place: int, names: Names, when: str) -> LoggedImage:
    number = list(image.views.values())[place]
    is_one = len(image.probabilities) == 1
    names = Names([names.one], names.keys) if is_one else names
    raw = image.maps[place]
    photo = enlarge(image.photo)
    heat = scale_maps(torch.from_numpy(raw), (photo.shape[0], photo.shape[1])).numpy()
    label, predicted = image.label, image.predicted
    true = "" if label is None else names.of_class(label)
    verdict = "" if label is None else ("right" if label == predicted else "wrong")
    probability, highest = float(image.probabilities[number]), float(raw.max())
    answer = f"predicted {names.of_class(predicted)} {image.probabilities[predicted]:.2f}"
    parts = [when, names.of_image(image.index), f"true {true}" if true else ""]
    parts += [] if is_one else [answer]
    problem = image.find_problem(place)
    parts += [verdict, f"map of {names.of_class(number)} {probability:.2f}, max {highest:.2g}"]
    return LoggedImage(
        tiles=[photo, overlay(photo, heat)],
        titles=[
            f"true {true}" if true else names.of_image(image.index),
            f"{names.of_class(number)} {probability:.2f}, max {highest:.2g}",
        ],
        caption=" | ".join(part for part in [*parts, problem] if part),
        name=f"{image.index if image.rank is None else image.rank:06d}",
        facts={
            "index": image.index,
            "image": names.of_image(image.index),
            "class": number,
            "class_name": names.of_class(number),
            "probability": _finite(probability),
            "label": label,
            "label_name": true or None,
            "predicted": predicted,
            "predicted_name": names.of_class(predicted),
            "confidence": _finite(float(image.probabilities[predicted])),
            "correct": None if label is None else label == predicted,
            "map": pack_map(raw),
            "map_max": _finite(highest),
            "problem": problem,
            **image.made_by,
        },
    )


def _finite(number: float) -> float | None:
    """JSON knows no NaN."""
    return number if np.isfinite(number) else None
