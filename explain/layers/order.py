"""Whether tokens are those of the image's patches, in reading order: asked of the image.

How many tokens there are tells little: 64 learned queries fill a square as 8 x 8 patches do, and
a class token may stand before the patches or after them. So pixels of each corner are changed,
and the token that answers has to be the one at that corner.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from litcam.explain.forward.untouched import ours, trying
from litcam.explain.layers.layout import Layout, TargetLayer
from litcam.explain.networks import features_of, timm_models

# How much more than on average a token answers to its own corner.
CLEAR = 1.2
CORNERS = ((0, 0), (0, 1), (1, 0), (1, 1))
NOT_PATCHES = "its tokens are not the patches of the image in reading order"


class Order(NamedTuple):
    """The layout of tokens, what is wrong with it, and whether the image itself has told it."""

    layout: Layout
    problem: str
    sure: bool


def find_orders(
    read: Callable[[Any], Mapping[int, Tensor]],
    call: Any,
    guessed: Mapping[int, Layout],
    *,
    believed: bool,
) -> dict[int, Order]:
    """Layouts as the corners of the first image tell them, each with what is wrong with it.

    Args:
        read: runs a forward and gives outputs `(batch, num_tokens, channels)`, by any key.
        call: the forward, of one image or two.
        guessed: the layouts to check, by the same keys.
        believed: whether a guess holds where the corners give no answer.
    """
    rows = [0] * min(2, len(call.images))
    first = call.take(rows)
    before = read(first)
    answers: dict[int, list[Tensor]] = {key: [] for key in guessed}
    for start in range(0, len(CORNERS), len(rows)):
        for grid in {layout.grid for layout in guessed.values()}:
            changed = first.images.clone()
            for row, corner in zip(range(len(rows)), CORNERS[start:], strict=False):
                _change(changed[row], corner, grid)
            after = read(first.with_images(changed))
            for key, layout in guessed.items():
                if layout.grid == grid and key in before and key in after:
                    answers[key] += (after[key] - before[key]).float().norm(dim=2)
    return {key: _judge(layout, answers[key], believed) for key, layout in guessed.items()}


def check_order(network: nn.Module, call: Any, layer: TargetLayer) -> Order:
    """The same for one layer that was asked for: its layout, and what is wrong with it."""

    def read(call: Any) -> dict[int, Tensor]:
        outputs: dict[int, Tensor] = {}

        @ours
        def after(module: nn.Module, args: Any, output: Any) -> None:
            outputs[0] = features_of(output).detach().clone()

        with trying(network, call.images):
            hook = layer.module.register_forward_hook(after)
            try:
                call()
            finally:
                hook.remove()
        return outputs

    guessed = {0: layer.layout}
    return find_orders(read, call, guessed, believed=is_believed(network))[0]


def is_believed(network: nn.Module) -> bool:
    """Whether it is made of a timm model: each family's layout was read in its source."""
    return next(timm_models(network), None) is not None


def _change(image: Tensor, corner: tuple[int, int], grid: tuple[int, int]) -> None:
    """Other pixels at a corner of `image` `(channels, height, width)`, in place."""
    places = []
    for side, cells, last in zip(image.shape[1:], grid, corner, strict=True):
        # A part of it only: where an image is padded, little of its last cell is image.
        cell = max(1, side // cells // 6)
        places.append(slice(side - cell, side) if last else slice(0, cell))
    part = image[:, places[0], places[1]]
    if not image.is_floating_point():
        part.copy_(255 - part)
        return
    # As far from what is there as the image's own pixels are from each other, in no pattern.
    wave = torch.arange(part.numel(), device=part.device).mul(2.4).sin().view(part.shape)
    spread = image.float().std().clamp_min(0.1)
    part.add_((6 * spread * wave).to(part.dtype))


def _judge(layout: Layout, answers: list[Tensor], believed: bool) -> Order:
    """The layout whose corners are the tokens that answered.

    Args:
        layout: as it was guessed.
        answers: how much each token changed with each corner, `(num_tokens,)`.
        believed: whether the guess holds where none answers clearly.
    """
    height, width = layout.grid
    guess = Order(layout, "" if believed else NOT_PATCHES, sure=False)
    if len(answers) < len(CORNERS):
        return guess
    changes = torch.stack(answers[: len(CORNERS)])
    # What answers to one corner only, however large its changes are in general.
    shares = changes / changes.mean(0, keepdim=True).clamp_min(1e-30)
    found: list[tuple[float, int]] = []
    for first in range(changes.shape[1] - height * width + 1):
        last = first + (height - 1) * width
        corners = torch.tensor([first, first + width - 1, last, last + width - 1])
        corners = corners.to(changes.device)
        strongest = bool((changes.argmax(1) == corners).all())
        own = torch.arange(len(CORNERS), device=changes.device)
        nearest = bool((shares[:, corners].argmax(0) == own).all())
        clear = float(shares[own, corners].mean())
        if strongest or (nearest and clear > CLEAR):
            found.append((clear + 10 * strongest, first))
    if not found:
        return guess
    first = max(found)[1]
    others = layout.num_prefix_tokens + layout.num_suffix_tokens
    return Order(Layout("tokens", layout.grid, first, others - first), "", sure=True)
