"""The part of a ViT that methods made for it need: blocks, then norm and head."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from litcam.explain.forward.untouched import ours
from litcam.explain.layers.layout import TargetLayer
from litcam.explain.networks import timm_models


class Watch(Protocol):
    """What a method keeps of a forward beside the target layer; entered around that forward.

    Attributes:
        answers_alone: whether other methods' gradients cannot be had from the same forward.
    """

    answers_alone: bool

    def watching(self, images: Tensor) -> Any:
        """A context around the forward of these images."""

    def find_problem(self, logits: Tensor, layer: TargetLayer) -> str:
        """Why these `(batch, num_classes)` cannot be explained, or an empty line."""

    def made_at(self, layer: TargetLayer) -> TargetLayer:
        """Where its maps are made, for the record."""

    def explain(self, logits: Tensor, classes: Tensor, layer: TargetLayer) -> Tensor:
        """Maps `(batch, height, width)`, before the ReLU, of one class an image."""

    def release(self) -> None:
        """Lets what was kept go."""


def find_vit(network: nn.Module, method: str) -> tuple[str, Any]:
    """Dotted name and module of the timm ViT in `network`.

    Raises:
        ValueError: there is none whose every block lets all patches attend to all.
    """
    for name, model in timm_models(network):
        blocks = getattr(model, "blocks", None)
        parts = ("norm", "forward_head", "num_prefix_tokens")
        there = isinstance(blocks, nn.Sequential | nn.ModuleList) and len(blocks) > 0
        if there and all(hasattr(model, part) for part in parts):
            return name, model
    raise ValueError(
        f"method {method!r} is made for the blocks of a timm ViT, where all patches attend to all, "
        f"and {type(network).__name__} has none (CNNs have no attention, Swin's stays in windows); "
        "take gradcam or layercam"
    )


@contextmanager
def starting_at(block: nn.Module, started: list[Tensor]) -> Iterator[None]:
    """The graph begins at what this block is given, which is kept in `started`."""

    @ours
    def start(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        torch.set_grad_enabled(True)
        tokens = args[0]
        leaf = tokens if tokens.requires_grad else tokens.detach().requires_grad_()
        started.append(leaf)
        # A clone, because the block may work in place.
        return (leaf.clone(), *args[1:])

    with ExitStack() as stack:
        stack.callback(block.register_forward_pre_hook(start).remove)
        yield
