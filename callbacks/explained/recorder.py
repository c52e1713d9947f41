"""Recording the network's forward inside somebody else's validation step."""

from collections.abc import Callable
from typing import Any

from torch import nn

from litcam.callbacks.explained.answer import Answer
from litcam.callbacks.explained.finder import Finder
from litcam.callbacks.validation.batch import Reading
from litcam.explain import CAM
from litcam.explain.layers.layout import find_module, resolve_indices


class Recorder:
    """Puts a `CAM` around whatever module of a LightningModule takes the images.

    The first time, the network is found in the step itself; from then on it is known.

    Args:
        root: the LightningModule.
        method: a name in `litcam.explain.METHODS`.
        network: dotted name of the network in `root`, or empty to find it.
        target_layer: dotted name of the layer in the network or in `root`, or empty to find it.
        reading: how batches are read.
        answer: what of the network's output is explained.

    Attributes:
        method: as it was given.

    Raises:
        ValueError: a name does not exist; the message offers close matches.
    """

    def __init__(
        self,
        root: nn.Module,
        method: str,
        network: str,
        target_layer: str,
        *,
        reading: Reading,
        answer: Answer,
    ) -> None:
        self._root, self.method = root, method
        self._reading, self._answer = reading, answer
        self._layer: nn.Module | None = None
        self._cam: CAM | None = None
        self._finder: Finder | None = None
        self._entered = False
        found = find_module(root, network)[1] if network else None
        if target_layer:
            self._layer = self._find_layer(found or root, target_layer)
        if found is not None:
            self._cam = self._make(found)

    def start(self, batch: Any) -> None:
        """Begins to record, before a validation step."""
        images = self._reading.images(batch)
        if self._cam is None:
            self._finder = Finder(self._root, self._make, batch, images)
        else:
            self._cam.__enter__()
            self._entered = True
            self._cam.expect(images)

    def stop(self, batch: Any, count_classes: Callable[[], int]) -> tuple[CAM | None, str]:
        """Ends it, after the step; gives what was recorded, or why nothing was.

        Args:
            batch: the step's.
            count_classes: tells how many the data has, 0 if it does not; asked of a new network.
        """
        finder, cam = self._finder, self._cam
        self.close()
        if finder is not None:
            cam, problem = finder.choose()
            if problem:
                return None, problem
        if cam is None:
            return None, "has recorded nothing"
        problem = self._find_problem(cam, batch, count_classes() if finder is not None else 0)
        if problem:
            cam.release()
            return None, problem
        self._cam = cam
        return cam, ""

    def close(self) -> None:
        """Ends it, whatever happened."""
        if self._entered and self._cam is not None:
            self._cam.__exit__(None, None, None)
        if self._finder is not None:
            self._finder.close()
        self._finder, self._entered = None, False

    def name_of(self, network: nn.Module) -> str:
        """The dotted name of `network` in the LightningModule, empty for itself."""
        return next((name for name, part in self._root.named_modules() if part is network), "")

    def _make(self, network: nn.Module) -> CAM:
        return CAM(network, self.method, self._layer, target=self._answer)

    def _find_problem(self, cam: CAM, batch: Any, num_classes: int) -> str:
        name = self.name_of(cam.network) or type(cam.network).__name__
        if cam.failure:
            return f"cannot explain `{name}`: {cam.failure}"
        if cam.logits is None or cam.images is None:
            return f"was told to explain `{name}`, which the validation step does not call"
        scores, num_scores = cam.logits, cam.logits.shape[1]
        labels, images = self._reading.labels(batch), self._reading.images(batch)
        if not num_scores:
            return f"needs a logit for each class, `{name}` returns {tuple(scores.shape)}"
        if self._answer.is_one_logit and labels is None:
            return (
                f"needs a logit for each class, `{name}` returns one number an image and no labels "
                "of 0 and 1 tell two classes: GradCAM(target=lambda output: output[:, 0]) explains "
                "the number"
            )
        if labels is not None and len(labels) != len(scores):
            return f"got {len(scores)} logits from `{name}` for {len(labels)} labels"
        if images is not None and len(images) != len(cam.images):
            return f"got {len(cam.images)} images in `{name}` for {len(images)} in the batch"
        if num_classes and num_scores != num_classes and not self._answer.is_given:
            return (
                f"found {num_scores} scores of `{name}` for {num_classes} classes of the data: "
                f"features before a head? If it is right, pass network={name!r}, else the network "
                "that gives the logits"
            )
        return ""

    @staticmethod
    def _find_layer(inside: nn.Module, name: str) -> nn.Module:
        """The layer by its name in the network, or in the outermost part that has such a layer."""
        try:
            return find_module(inside, name)[1]
        except ValueError:
            depths: dict[nn.Module, int] = {}
            for path, part in inside.named_modules():
                if (layer := _get_layer(part, name)) is not None:
                    depths.setdefault(layer, len(path.split(".")))
            # `norm` of a Swin, and not of its downsamplings.
            nearest = [at for at, depth in depths.items() if depth == min(depths.values())]
            if len(nearest) == 1:
                return nearest[0]
            raise


def _get_layer(part: nn.Module, name: str) -> nn.Module | None:
    try:
        return part.get_submodule(resolve_indices(part, name))
    except AttributeError:
        return None
