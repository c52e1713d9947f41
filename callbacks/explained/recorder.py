"""Recording the network's forward inside somebody else's validation step."""

from typing import Any

from torch import Tensor, nn

from litcam.explain import CAM, NetworkFinder, TargetLayer
from litcam.explain.layers.layout import find_module, resolve_indices


class Recorder:
    """Puts a `CAM` around whatever module of a LightningModule takes the images.

    The first time, the network is found while its forward begins; from then on it is known.

    Args:
        root: the LightningModule.
        method: a name in `litcam.explain.METHODS`.
        network: dotted name of the network in `root`, or empty to find it.
        target_layer: dotted name of the layer in the network or in `root`, or empty to find it.

    Attributes:
        method: as it was given.

    Raises:
        ValueError: a name does not exist; the message offers close matches.
    """

    def __init__(self, root: nn.Module, method: str, network: str, target_layer: str) -> None:
        self._root, self.method = root, method
        self._network: nn.Module | None = None
        self._layer: TargetLayer | nn.Module | None = None
        self._cam: CAM | None = None
        self._finder: NetworkFinder | None = None
        self._trouble = ""
        if network:
            self._network = find_module(root, network)[1]
        if target_layer:
            self._layer = self._find_layer(self._network or root, target_layer)

    def start(self) -> None:
        """Puts the hooks on, before a validation step."""
        if self._network is None:
            self._finder = NetworkFinder(self._root, self._start)
        else:
            self._cam = CAM(self._network, self.method, self._layer).__enter__()

    def stop(self, labels: Tensor | None) -> tuple[CAM | None, str]:
        """Takes the hooks off, after it; gives what was recorded, or why nothing was.

        Args:
            labels: the batch's class numbers `(batch,)`, to hold the logits against.
        """
        finder, cam = self._finder, self._cam
        self.close()
        problem = self._find_problem(finder, cam, labels)
        if problem or cam is None:
            return None, problem
        self._network, self._layer = cam.network, cam.target_layer
        return cam, ""

    def close(self) -> None:
        """Takes the hooks off, whatever happened."""
        if self._cam is not None:
            self._cam.__exit__(None, None, None)
        if self._finder is not None:
            self._finder.close()
        self._cam = self._finder = None

    def name_of(self, network: nn.Module) -> str:
        """The dotted name of `network` in the LightningModule, empty for itself."""
        return next((name for name, part in self._root.named_modules() if part is network), "")

    def _start(self, network: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Begins in the middle of the network's first call, when its pre-hooks run."""
        try:
            cam = CAM(network, self.method, self._layer)
        except ValueError as error:  # the layer is a part of something else
            self._trouble = str(error)
            return None
        self._cam = cam.__enter__()
        return cam.start(args, kwargs)

    def _find_problem(
        self, finder: NetworkFinder | None, cam: CAM | None, labels: Tensor | None
    ) -> str:
        if self._trouble:
            return f"cannot explain this: {self._trouble}"
        if cam is None:
            return "saw no module of the LightningModule take images (batch, channels, h, w)"
        name = self.name_of(cam.network) or type(cam.network).__name__
        if finder is not None and finder.apart:
            return (
                f"found no single forward: `{name}` and `{finder.apart}` are called apart; define "
                "forward(images) in the LightningModule to return logits and call self(images)"
            )
        if cam.failure:
            return f"cannot explain `{name}`: {cam.failure}"
        if cam.logits is None:
            return f"was told to explain `{name}`, which the validation step does not call"
        if cam.logits.shape[1] < 2:
            return f"needs a logit for each class, `{name}` returns {tuple(cam.logits.shape)}"
        if labels is not None and len(labels) != len(cam.logits):
            return f"got {len(cam.logits)} logits from `{name}` for {len(labels)} labels"
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
