"""What of a network's output is explained: one score a class, or one that the user names."""

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from litcam.explain.networks import find_logits

Target = Callable[[Any], Tensor]


NO_GRAPH = (
    "the logits of {} have no graph: its forward runs the layer under no_grad or detaches; freeze "
    "with requires_grad_(False) instead"
)


class RefusalError(ValueError):
    """Why a network cannot be explained, in a line."""


def find_scores(output: Any, network: nn.Module, batch: int, target: Target | None) -> Tensor:
    """Scores `(batch, num_scores)` in a network's output, in its graph.

    Args:
        output: as the network returned it.
        network: for the messages.
        batch: how many images it was given.
        target: from the output to one number an image `(batch,)`, or several `(batch, k)`; by
            default the logits are looked for.

    Raises:
        RefusalError: there are none.
    """
    name = type(network).__name__
    if target is None:
        logits = find_logits(output)
        if logits is None:
            shape = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
            raise RefusalError(f"{name} returns {shape}, not logits (batch, num_classes)")
        return logits
    scores = target(output)
    if not isinstance(scores, Tensor) or scores.ndim not in (1, 2) or len(scores) != batch:
        got = tuple(scores.shape) if isinstance(scores, Tensor) else type(scores).__name__
        raise RefusalError(f"target must give one number an image, ({batch},), got {got}")
    if not scores.is_floating_point():
        raise RefusalError(f"target gives {scores.dtype}: whole numbers have no gradient")
    return scores[:, None] if scores.ndim == 1 else scores
