"""A row of the table of strangers' set-ups."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from foreign_batches import IMAGES
from strangers import Stranger
from torch import Tensor

from litcam.callbacks import GradCAM

# Eight of ten images, spread evenly; of a stream the first eight.
SHOWN, FIRST = (0, 1, 3, 4, 5, 6, 8, 9), tuple(range(8))
PREDICTED = {"predicted": SHOWN}
BOTH = {"predicted": SHOWN, "true": SHOWN}
TARGET = {"target": SHOWN}


def maps(features: Tensor, grid: Sequence[int]) -> Tensor:
    """Features as `(batch, channels, height, width)`: they are."""
    return features


def last(features: Tensor, grid: Sequence[int]) -> Tensor:
    """Of features with channels last."""
    return features.movedim(3, 1)


def tokens(features: Tensor, grid: Sequence[int]) -> Tensor:
    """Of tokens, without the class token and registers before the patches."""
    return features[:, -grid[0] * grid[1] :].mT.unflatten(2, tuple(grid))


@dataclass(frozen=True)
class Setup:
    """A row.

    Attributes:
        name: what is brought.
        make: gives the LightningModule.
        layer: what somebody who knows the network would explain, a dotted name in the module.
        refused: or else words of the line that says why nothing is, with ` … ` between them.
        others: layers of further networks.
        cam: the callback.
        views: the pictures: view to the images it has.
        network: dotted name of what the step calls.
        scores: what is explained, in what the network returns.
        step: what calls the network.
        call: which of the network's forwards in it is explained.
        fold: from the layer's output to `(batch, channels, height, width)`.
        label: of an image, by its place.
        photo: what is to be seen of an image, by its place.
        told: words of the line on what is explained.
        said: words of the one line that is said beside the pictures.
        trainer: arguments of the Trainer.
        by_hand: whether the maps can be computed again, which they cannot with dropout on.
        wrong: what litcam does instead: a known fault.
    """

    name: str
    make: Callable[[], Stranger]
    layer: str = ""
    refused: str = ""
    others: Sequence[str] = ()
    cam: Callable[[], GradCAM] = GradCAM
    views: Mapping[str, Sequence[int]] = field(default_factory=lambda: BOTH)
    network: str = "net"
    scores: Callable[[Any], Tensor] = lambda output: output
    step: Callable[[Stranger, Any], Any] = lambda module, batch: module.classify(batch)
    call: int = 0
    fold: Callable[[Tensor, Sequence[int]], Tensor] = maps
    label: Callable[[int], int | None] = lambda place: place % 3
    photo: Callable[[int], Tensor] = lambda place: IMAGES[place]
    said: str = ""
    told: str = ""
    trainer: Mapping[str, Any] = field(default_factory=dict)
    by_hand: bool = True
    wrong: str = ""


def cam(**kwargs):
    return partial(GradCAM, **kwargs)


def no_label(place):
    return None
