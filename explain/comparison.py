"""One photo, several networks, classes and methods: their heatmaps side by side."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from litcam.explain.cam import CAM
from litcam.explain.methods.formulas import CLASS_FREE, SLOW_METHODS, scale_maps
from litcam.explain.methods.slow import slow_map

__all__ = ["Cell", "explain_photo"]

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
        method: Name in `METHODS` or `SLOW_METHODS`.
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


def explain_photo(
    cam: CAM,
    image: Tensor,
    wanted: Sequence[str],
    methods: Sequence[str],
    *,
    resolve: Resolve | None,
    before: Callable[[str], None] = lambda method: None,
) -> tuple[list[Cell], list[str]]:
    """Explains one photo: all classes and methods out of one forward, but for the slow methods.

    Args:
        cam: Of a network in eval mode; it looks for the layer at the first photo, if it has none.
        image: ``(1, channels, height, width)``, as the network takes it.
        wanted: Classes to explain.
        methods: Names in `METHODS` and `SLOW_METHODS`.
        resolve: From a wanted class and the probabilities ``(num_classes,)`` to its number and
            name; a ValueError says that there is none. None for an encoder, which has no classes
            and gives features ``(batch, num_features)``.
        before: Called with each method before it is used.

    Returns:
        The heatmaps, by class and then by method, and a line for each class or method that this
        network does not have.

    Raises:
        ValueError: If no layer can be explained.
        RuntimeError: If the network cannot be.
    """
    with cam, torch.no_grad():
        cam.network(image)
    if cam.failure or cam.logits is None or cam.target_layer is None:
        raise ValueError(cam.failure or "the network returned no logits (batch, num_classes)")
    asked, problems = _find(cam.logits.detach()[0], wanted, resolve)
    if resolve is None and (refused := [name for name in methods if name not in CLASS_FREE]):
        problems.append(
            f"methods {', '.join(refused)} explain a class, and an encoder knows none; use "
            f"{' or '.join(CLASS_FREE)}, or fine-tune it first"
        )
        methods = [name for name in methods if name in CLASS_FREE]
    columns = []
    for method in methods if asked else []:
        before(method)
        maps = _make_maps(cam, image, asked, method)
        columns.append([_cell(cam, method, *pair) for pair in zip(asked, maps, strict=True)])
    cam.release()
    return [cell for row in zip(*columns, strict=True) for cell in row], problems


def _find(
    logits: Tensor, wanted: Sequence[str], resolve: Resolve | None
) -> tuple[list[_Asked], list[str]]:
    if resolve is None:
        return [_Asked("", None, "no class", None)], []
    # On the CPU: to choose among a thousand classes asks for their probabilities one by one.
    asked, problems, probabilities = [], [], logits.float().softmax(0).cpu()
    for word in wanted:
        try:
            number, name = resolve(word, probabilities)
            asked.append(_Asked(word, number, name, float(probabilities[number])))
        except ValueError as error:
            problems.append(str(error))
    return asked, problems


def _make_maps(cam: CAM, image: Tensor, asked: Sequence[_Asked], method: str) -> Tensor:
    """Maps ``(num_asked, height, width)`` at the layer's grid."""
    # Of a map that does not depend on the class, any feature of an encoder will do.
    numbers = [each.number or 0 for each in asked]
    if method in SLOW_METHODS:
        layer = cam.target_layer
        maps = [slow_map(cam.network, image, [n], method, layer) for n in numbers]
        return torch.cat(maps).cpu()
    # These classes exist, and to ask whether they do would wait for the device.
    return cam.maps(torch.tensor([numbers], device=image.device), method=method)[0].cpu()


def _cell(cam: CAM, method: str, asked: _Asked, raw: Tensor) -> Cell:
    assert cam.target_layer is not None
    assert cam.images is not None
    height, width = cam.images.shape[-2:]
    return Cell(
        wanted=asked.wanted,
        number=asked.number,
        name=asked.name,
        probability=asked.probability,
        method=method,
        layer=cam.target_layer.name,
        grid=cam.target_layer.grid,
        reason=cam.target_layer.reason,
        highest=float(raw.max()),
        heatmap=scale_maps(raw[None], (height, width))[0],
    )
