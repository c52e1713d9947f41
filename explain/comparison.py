"""Photos, several networks, classes and methods: their heatmaps side by side."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from litcam.explain.cam import CAM
from litcam.explain.methods.formulas import (
    CLASS_FREE,
    GUIDED,
    SLOW_METHODS,
    VIT_METHODS,
    scale_maps,
)
from litcam.explain.methods.guided import guided_map
from litcam.explain.methods.slow import slow_map

__all__ = ["Cell", "explain_photos"]

Resolve = Callable[[str, Tensor], tuple[int, str]]


@dataclass
class Cell:
    """One heatmap of a comparison.

    Attributes:
        wanted: The class as it was asked for: ``predicted``, a name or a number; empty where the
            network has no classes.
        number: Of the class in this network, if it has classes.
        name: Of the class.
        probability: Of the class, in [0, 1], if there is one.
        method: Name in `METHODS`, `VIT_METHODS` or `SLOW_METHODS`, or `GUIDED`.
        layer: Dotted name of the target layer.
        grid: Its height and width.
        reason: Why that layer.
        highest: Largest value of the raw map; a map of noise has a small one.
        heatmap: ``(height, width)`` in [0, 1], at the size of the image given to the network.
    """

    wanted: str
    number: int | None
    name: str
    probability: float | None
    method: str
    layer: str
    grid: tuple[int, int]
    reason: str
    highest: float
    heatmap: Tensor


@dataclass
class _Asked:
    """A class that was asked for, as this network knows it."""

    wanted: str
    number: int | None
    name: str
    probability: float | None


def explain_photos(
    cam: CAM,
    images: Tensor,
    wanted: Sequence[str],
    methods: Sequence[str],
    *,
    resolves: Sequence[Resolve] | None,
    before: Callable[[str], None] = lambda method: None,
) -> list[tuple[list[Cell], list[str]]]:
    """Explains photos: all classes and methods out of one forward.

    But for the slow methods, the guided one and those for ViTs, which have forwards of their own.

    Args:
        cam: Of a network in eval mode; it looks for the layer at the first photos, if it has none.
        images: ``(batch, channels, height, width)``, as the network takes them.
        wanted: Classes to explain.
        methods: Names in `METHODS`, `VIT_METHODS` and `SLOW_METHODS`, and `GUIDED`.
        resolves: For each photo, from a wanted class and the probabilities ``(num_classes,)`` to
            its number and name; a ValueError says that there is none. None for an encoder, which
            has no classes and gives features ``(batch, num_features)``.
        before: Called with each method before it is used.

    Returns:
        For each photo the heatmaps, by class and then by method, and a line for each class or
        method that this network does not have.

    Raises:
        ValueError: If no layer can be explained.
        RuntimeError: If the network cannot be.
    """
    with cam, torch.no_grad():
        cam.network(images)
    if cam.failure or cam.logits is None or cam.target_layer is None:
        raise ValueError(cam.failure or "the network returned no logits (batch, num_classes)")
    asked, problems = _find(cam.logits.detach(), wanted, resolves)
    if resolves is None and (refused := [name for name in methods if name not in CLASS_FREE]):
        problems[0].append(
            f"methods {', '.join(refused)} explain a class, and an encoder knows none; use "
            f"{' or '.join(CLASS_FREE)}, or fine-tune it first"
        )
        methods = [name for name in methods if name in CLASS_FREE]
    found: list[dict[tuple[int, str], Cell]] = [{} for _ in asked]
    for method in methods if any(asked) else []:
        before(method)
        try:
            recorded = _record(cam, images, method)
            maps = _make_maps(recorded, images, asked, method)
        except ValueError as error:  # not made for this network
            problems[0].append(str(error))
            continue
        for cells, classes, raw in zip(found, asked, maps, strict=True):
            for place, one in enumerate(classes):
                cells[place, method] = _cell(recorded, method, one, raw[place])
    cam.release()
    order = [[(n, method) for n in range(len(one)) for method in methods] for one in asked]
    each = zip(found, order, problems, strict=True)
    return [([cells[at] for at in places if at in cells], lines) for cells, places, lines in each]


def _find(
    logits: Tensor, wanted: Sequence[str], resolves: Sequence[Resolve] | None
) -> tuple[list[list[_Asked]], list[list[str]]]:
    """Of each photo the classes that there are, and a line for each that there is not."""
    problems: list[list[str]] = [[] for _ in logits]
    if resolves is None:
        return [[_Asked("", None, "no class", None)] for _ in logits], problems
    # On the CPU: to choose among a thousand classes asks for their probabilities one by one.
    rows = logits.float().softmax(1).cpu()
    asked: list[list[_Asked]] = [[] for _ in logits]
    for resolve, probabilities, found, lines in zip(resolves, rows, asked, problems, strict=True):
        for word in wanted:
            try:
                number, name = resolve(word, probabilities)
                found.append(_Asked(word, number, name, float(probabilities[number])))
            except ValueError as error:
                lines.append(str(error))
    return asked, problems


def _record(cam: CAM, images: Tensor, method: str) -> CAM:
    """What answers a method: the same forward, or one that was recorded for this method."""
    if method not in VIT_METHODS:
        return cam
    own = CAM(cam.network, method, cam.target_layer)
    with own, torch.no_grad():
        own.network(images)
    if own.failure:
        raise ValueError(own.failure)
    return own


def _make_maps(cam: CAM, images: Tensor, asked: Sequence[Sequence[_Asked]], method: str) -> Tensor:
    """Maps ``(batch, most_asked, height, width)`` at the layer's grid, those of a photo first."""
    most = max(map(len, asked))
    # Of a map that does not depend on the class, any feature of an encoder will do.
    numbers = [[each.number or 0 for each in one] + [0] * (most - len(one)) for one in asked]
    if method == GUIDED:
        classes = torch.tensor(numbers, device=images.device)
        return guided_map(cam.network, images, classes, cam.target_layer).cpu()
    if method in SLOW_METHODS:
        layer = cam.target_layer
        return slow_map(cam.network, images, torch.tensor(numbers), method, layer).cpu()
    # These classes exist, and to ask whether they do would wait for the device.
    return cam.maps(torch.tensor(numbers, device=images.device), method=method).cpu()


def _cell(cam: CAM, method: str, asked: _Asked, raw: Tensor) -> Cell:
    made_at = cam.made_at if method == cam.method else cam.target_layer
    assert made_at is not None
    assert cam.images is not None
    height, width = cam.images.shape[-2:]
    return Cell(
        wanted=asked.wanted,
        number=asked.number,
        name=asked.name,
        probability=asked.probability,
        method=method,
        layer=made_at.name,
        grid=made_at.grid,
        reason=made_at.reason,
        highest=float(raw.max()),
        heatmap=scale_maps(raw[None], (height, width))[0],
    )
