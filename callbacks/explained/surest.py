"""The surest mistakes of a validation, or the surest answers that changed since the last one."""

from collections.abc import Mapping, Sequence

from torch import Tensor

from litcam.callbacks.explained.maps import Explained, find_predicted

SHOW = ("fixed", "wrong", "changed")


class Surest:
    """Which images of a recorded batch are shown, where that is told by the network's answers.

    Args:
        show: `"wrong"` or `"changed"`.
        num_images: how many of each loader at most.
    """

    def __init__(self, show: str, num_images: int) -> None:
        self._show, self._num_images = show, num_images
        self._before: dict[tuple[int, int], int] = {}
        self._now: dict[tuple[int, int], int] = {}

    def begin(self) -> None:
        """Begins a validation."""
        self._before, self._now = self._now or self._before, {}

    def choose(
        self,
        places: Mapping[int, int],
        probabilities: Tensor,
        scores: Tensor,
        labels: Tensor | None,
        dataloader_idx: int,
        explained: Sequence[Explained],
    ) -> tuple[dict[int, int], str]:
        """Rows of a batch, with their dataset indices, that belong to the surest so far.

        Args:
            places: every row of the batch with its dataset index.
            probabilities: `(batch, num_classes)`.
            scores: what they were made of.
            labels: class numbers `(batch,)`, -1 where there is none, or None.
            dataloader_idx: which loader the batch came from.
            explained: what was shown before in this validation.

        Returns:
            The rows; and why there are none where there cannot be any.
        """
        if probabilities.shape[1] < 2:
            return {}, f"shows no images that are {self._show}: a target has no classes"
        if self._show == "wrong" and labels is None:
            return {}, "shows no wrong images: the batch has no labels"
        highest, classes = probabilities.amax(1).tolist(), find_predicted(scores).tolist()
        true = [-1] * len(classes) if labels is None else labels.tolist()
        enough = [image for image in explained if image.dataloader_idx == dataloader_idx]
        least = min(map(_sureness, enough)) if len(enough) >= self._num_images else -1.0
        chosen: dict[int, int] = {}
        for row, index in places.items():
            key, predicted = (dataloader_idx, index), classes[row]
            if self._show == "wrong":
                is_one = true[row] >= 0 and predicted != true[row]
            else:
                is_one = self._before.get(key, predicted) != predicted
                self._now[key] = predicted
            if is_one and highest[row] > least and index not in chosen.values():
                chosen[row] = index
        return chosen, ""

    def keep(self, explained: Sequence[Explained]) -> list[Explained]:
        """The surest of each loader, the surest first, in that order from now on."""
        kept: list[Explained] = []
        for loader in sorted({image.dataloader_idx for image in explained}):
            own = [image for image in explained if image.dataloader_idx == loader]
            own = sorted(own, key=lambda image: (-_sureness(image), image.index))
            for rank, image in enumerate(own[: self._num_images]):
                image.rank = rank
                kept.append(image)
        return kept


def _sureness(image: Explained) -> float:
    return float(image.probabilities.max())
