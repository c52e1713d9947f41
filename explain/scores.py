"""What of a network's output is explained: one score a class, or one that the user names."""

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn, sigmoid

from litcam.explain.networks import find_logits

Target = Callable[[Any], Tensor]
# What makes probabilities of scores `(batch, num_scores)`.
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "softmax": lambda scores: scores.softmax(1),
    "sigmoid": sigmoid,
    "identity": lambda scores: scores,
}

NO_GRAPH = (
    "the logits of {} have no graph: its forward detaches, or runs the layer under inference mode; "
    "freeze with requires_grad_(False) instead, or explain the part before it as network= with the "
    "rest as target="
)
# What hands on what it was given, but for its shape.
_SHAPES = (
    "Squeeze",
    "Unsqueeze",
    "View",
    "Reshape",
    "Clone",
    "Alias",
    "Expand",
    "Select",
    "ToCopy",
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
            raise RefusalError(f"{name} returns {what_is(output)}, not logits (batch, num_classes)")
        return logits
    try:
        scores = target(output)
    except RefusalError:
        raise
    except Exception as error:
        line = next(iter(str(error).splitlines()), "")
        raise RefusalError(
            f"target fails on the {what_is(output)} that {name} returns "
            f"({type(error).__name__}: {line})"
        ) from error
    if not isinstance(scores, Tensor) or scores.ndim not in (1, 2) or len(scores) != batch:
        raise RefusalError(
            f"target must give one number an image, ({batch},), got {what_is(scores)}"
        )
    if not scores.is_floating_point():
        raise RefusalError(f"target gives {scores.dtype}: whole numbers have no gradient")
    return scores[:, None] if scores.ndim == 1 else scores


def what_is(value: Any) -> str:
    """A tensor's shape, or the type of anything else, for a message."""
    return str(tuple(value.shape)) if isinstance(value, Tensor) else type(value).__name__


def activate(scores: Tensor, activation: str) -> Tensor:
    """Probabilities, in float32, of scores `(batch, num_scores)`."""
    return ACTIVATIONS[activation](scores.detach().float())


def ends_in_shares(scores: Tensor) -> bool:
    """Whether a softmax or sigmoid made them, as their graph tells."""
    node = scores.grad_fn
    while node is not None and node.name().startswith(_SHAPES):
        node = next((before for before, _ in node.next_functions if before is not None), None)
    return node is not None and node.name() in ("SoftmaxBackward0", "SigmoidBackward0")


def guess_activation(scores: Tensor, *, several: bool) -> str:
    """A name in `ACTIVATIONS`: a network may give probabilities already.

    Args:
        scores: `(batch, num_scores)`, in their graph where they have one.
        several: whether an image may have several classes, each with a probability of its own.
    """
    if ends_in_shares(scores):
        return "identity"
    values = scores.detach().float()
    are_shares = bool(((values >= 0) & (values <= 1)).all())
    if are_shares and (several or bool(((values.sum(1) - 1).abs() < 1e-2).all())):
        return "identity"
    return "sigmoid" if several else "softmax"


class Scored(nn.Module):
    """A network that answers with probabilities `(batch, num_scores)`, for metrics that ask it.

    Args:
        network: any module that takes images `(batch, channels, height, width)`.
        target: from its output to scores; by default its logits.
        activation: what makes probabilities of them, in `litcam.explain.scores.ACTIVATIONS`.

    Raises:
        ValueError: there is no such activation.

    Example:
        >>> import timm, torch
        >>> network = timm.create_model("resnet18", num_classes=3)
        >>> Scored(network, activation="sigmoid")(torch.zeros(2, 3, 64, 64)).shape
        torch.Size([2, 3])
    """

    def __init__(
        self, network: nn.Module, target: Target | None = None, activation: str = "softmax"
    ) -> None:
        super().__init__()
        check_activation(activation)
        self.network, self._target, self._activation = network, target, activation

    def forward(self, images: Tensor) -> Tensor:
        """Probabilities `(batch, num_scores)` in float32.

        Raises:
            ValueError: the network gives no scores.
        """
        scores = find_scores(self.network(images), self.network, len(images), self._target)
        return activate(scores, self._activation)


def check_activation(name: str) -> None:
    """Looks it up, unless it is empty.

    Raises:
        ValueError: there is none of this name.
    """
    if name and name not in ACTIVATIONS:
        raise ValueError(f"activation must be one of {', '.join(ACTIVATIONS)}, got {name!r}")
