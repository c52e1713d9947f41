"""One photo, several networks, classes and methods: their heatmaps side by side."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from litcam.explain.cam import CAM

__all__ = ["Cell", "explain_photo"]

Resolve = Callable[[str, Tensor], tuple[int, str]]


@dataclass
class Cell:
    """One heatmap of a comparison.

    Attributes:
        wanted: The class as it was asked for: ``predicted``, a name or a number.
        number: Of the class in this network.
        name: Of the class.
        probability: Of the class, in [0, 1].
        method: Name in `METHODS`.
        layer: Dotted name of the target layer.
        grid: Its height and width.
        reason: Why that layer.
        highest: Largest value of the raw map; a map of noise has a small one.
        heatmap: ``(height, width)`` in [0, 1], at the size of the image given to the network.
    """

    wanted: str
    number: int
    name: str
    probability: float
    method: str
    layer: str
    grid: tuple[int, int]
    reason: str
    highest: float
    heatmap: Tensor


def explain_photo(
    network: nn.Module,
    image: Tensor,
    wanted: Sequence[str],
    methods: Sequence[str],
    *,
    resolve: Resolve,
    target_layer: str = "",
) -> tuple[list[Cell], list[str]]:
    """Explains one photo, with one forward a method.

    Args:
        network: In eval mode.
        image: ``(1, channels, height, width)``, as the network takes it.
        wanted: Classes to explain.
        methods: Names in `METHODS`.
        resolve: From a wanted class and the probabilities ``(num_classes,)`` to its number and
            name; a ValueError says that there is none.
        target_layer: Dotted name; by default found.

    Returns:
        The heatmaps, by class and then by method, and a line for each class that does not exist.

    Raises:
        ValueError: If no layer can be explained.
        RuntimeError: If the network cannot be.
    """
    cells: dict[tuple[int, int], Cell] = {}
    problems: list[str] = []
    for column, method in enumerate(methods):
        with CAM(network, method, target_layer or None) as cam, torch.no_grad():
            network(image)
        if cam.failure or cam.logits is None or cam.target_layer is None:
            raise ValueError(cam.failure or "the network returned no logits (batch, num_classes)")
        probabilities = cam.logits.detach()[0].float().softmax(0)
        found: list[tuple[int, str, int, str]] = []
        for row, name in enumerate(wanted):
            try:
                found.append((row, name, *resolve(name, probabilities)))
            except ValueError as error:
                problems += [str(error)] if column == 0 else []
        if not found:
            break
        numbers = torch.tensor([[number for _, _, number, _ in found]])
        maps, heatmaps = cam(numbers)[0], cam.heatmaps(numbers)[0]
        layer = cam.target_layer
        for place, (row, name, number, readable) in enumerate(found):
            cells[row, column] = Cell(
                wanted=name,
                number=number,
                name=readable,
                probability=float(probabilities[number]),
                method=method,
                layer=layer.name,
                grid=layer.grid,
                reason=layer.reason,
                highest=float(maps[place].max()),
                heatmap=heatmaps[place].cpu(),
            )
        cam.release()
    return [cells[key] for key in sorted(cells)], problems
