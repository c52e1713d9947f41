"""What a network's output means: what of it is explained, and how probable that is."""

from typing import Any

import torch
from torch import Tensor, nn

from litcam.explain.networks import find_answers, find_logits
from litcam.explain.scores import (
    RefusalError,
    Scored,
    Target,
    activate,
    ends_in_shares,
    guess_activation,
    what_is,
)


class Answer:
    """Scores of a network's output, given or guessed, and what makes probabilities of them.

    Of one logit an image, as `BCEWithLogitsLoss` takes it, two classes are made: no and yes.

    Args:
        target: as for `CAM`, or None for the logits.
        activation: in `litcam.explain.scores.ACTIVATIONS`, or empty to guess by the first batch.

    Attributes:
        is_one_logit: whether two classes were made of one number.
        num_classes: how many the data names, 0 if it does not.
        number: what to pass as `target` where one number is no logit.
        choice: which of several answers is explained, for the log.
    """

    def __init__(self, target: Target | None, activation: str) -> None:
        self._target, self.activation = target, activation
        self._is_told, self.is_one_logit = bool(activation), False
        self.num_classes, self.choice, self.number = 0, "", "…"

    def __call__(self, output: Any) -> Tensor:
        """The scores, `(batch, num_scores)`.

        Raises:
            RefusalError: there are none.
        """
        if self._target is not None:
            return self._target(output)
        logits = self._pick(output)
        if logits is None and isinstance(output, Tensor) and output.ndim == 1:
            logits = output[:, None]
        if logits is None or not logits.is_floating_point():
            raise RefusalError(
                f"returns {what_is(output)}, not logits (batch, num_classes): GradCAM(target=…) "
                "takes a function from it to one number an image"
                + (", and with maps target_layer=" if _is_map(output) else "")
            )
        self.is_one_logit = logits.shape[1] == 1
        plain = isinstance(output, Tensor)
        self.number = (
            f"lambda output: output{'[:, 0]' if output.ndim == 2 else ''}" if plain else "…"
        )
        if not self.is_one_logit:
            return logits
        if not self._is_told and ends_in_shares(logits):
            self.activation = "identity"
        other = 1 - logits if self.activation == "identity" else -logits
        return torch.cat([other, logits], 1)

    @property
    def is_given(self) -> bool:
        """Whether the user says what is explained."""
        return self._target is not None

    def _pick(self, output: Any) -> Tensor | None:
        """Of several answers the one with as many scores as there are classes, else the first."""
        found = find_answers(output)
        if len(found) < 2:
            return find_logits(output)
        wanted = [at for at, one in enumerate(found) if one.shape[1] == self.num_classes]
        if not wanted and len({one.shape[1] for one in found}) > 1:
            raise RefusalError(
                f"returns several answers, {' and '.join(map(what_is, found))}, and nothing tells "
                "which are the scores: GradCAM(target=lambda output: output[0]), or another, does"
            )
        place = wanted[0] if wanted else 0
        self.choice = f"answer {place + 1} of {len(found)}"
        return found[place]

    def learn(self, scores: Tensor, *, several: bool) -> None:
        """Guesses what makes probabilities of the scores, unless it is known.

        Args:
            scores: of a batch.
            several: whether an image may have several classes.
        """
        # A batch of a few images may have one class each where others have several.
        if self._is_told or (self.activation and not (several and self.activation == "softmax")):
            return
        if self.is_one_logit:
            self.activation = self.activation or "sigmoid"
        elif self.is_given and scores.shape[1] == 1:
            self.activation = "identity"
        else:
            self.activation = guess_activation(scores, several=several)

    def probabilities(self, scores: Tensor) -> Tensor:
        """Of scores `(batch, num_scores)`, in float32."""
        return activate(scores, self.activation)

    def ask(self, network: nn.Module) -> nn.Module:
        """The network for metrics that ask it again."""
        plain = not (self.is_given or self.is_one_logit) and self.activation == "softmax"
        return network if plain else Scored(network, self, self.activation)


def _is_map(output: Any) -> bool:
    return isinstance(output, Tensor) and output.ndim == 4
