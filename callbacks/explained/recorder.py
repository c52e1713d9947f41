"""Recording the network's forward inside somebody else's validation step."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from torch import Tensor, nn

from litcam.callbacks.explained.answer import Answer
from litcam.callbacks.explained.finder import Finder
from litcam.callbacks.validation.batch import Batch
from litcam.explain import CAM, TargetLayer
from litcam.explain.cam import make_watch
from litcam.explain.forward.compiled import find_backend
from litcam.explain.layers.layout import find_module, resolve_indices
from litcam.explain.networks import unwrap

# So many batches of a loader in a row that cannot be explained are enough for one validation.
TRIES = 2


@dataclass(frozen=True)
class Recorded:
    """A batch's forward, and what belongs to it.

    Attributes:
        cam: holds it, with logits, images and layer.
        labels: class numbers `(batch,)`, -1 for none; or None.
        answer: what of the network's output is explained.
        loader: which of several the batch came from.
        layer: dotted name of the layer in the LightningModule.
        method: a name in `litcam.explain.METHODS` or `VIT_METHODS`.
    """

    cam: CAM
    labels: Tensor | None
    answer: Answer
    loader: int
    layer: str
    method: str

    @property
    def logits(self) -> Tensor:
        """`(batch, num_scores)`, without their graph."""
        assert self.cam.logits is not None
        return self.cam.logits.detach()

    @cached_property
    def own_classes(self) -> Tensor:
        """The true class of each image, or the predicted one where there is none, `(batch,)`."""
        logits, labels = self.logits, self.labels
        predicted = logits.nan_to_num().argmax(1)
        if labels is None:
            return predicted
        known = (labels >= 0) & (labels < logits.shape[1])
        return labels.to(predicted).where(known.to(predicted.device), predicted)

    @cached_property
    def own_maps(self) -> Tensor:
        """Their maps `(batch, height, width)`, made once for what is shown and what is measured."""
        return self.cam.maps(self.own_classes[:, None])[:, 0]


class Recorder:
    """Puts a `CAM` around whatever module of a LightningModule takes the images.

    The first time, the network is found in the step itself; from then on it is known.

    Args:
        root: the LightningModule.
        method: a name in `litcam.explain.METHODS` or `VIT_METHODS`.
        network: dotted name of the network in `root`, or empty to find it.
        target_layer: dotted name of the layer in the network or in `root`, or empty to find it;
            several as for `CAM`.
        answer: what of the network's output is explained.
        compiles: whether to explain inside `torch.compile`, where the run does so.

    Attributes:
        refusal: why nothing can be explained in this run, or an empty line.
        missed: whether a batch of the first loader was not recorded in this validation.

    Raises:
        ValueError: a name does not exist, with close matches in the message; or the method is not
            made for this network or these layers.
    """

    def __init__(
        self,
        root: nn.Module,
        method: str,
        network: str,
        target_layer: str | Sequence[str],
        *,
        answer: Answer,
        compiles: bool = False,
    ) -> None:
        self._root, self._method, self._answer = root, method, answer
        self._compiles = compiles
        self._layer: nn.Module | list[str | nn.Module] | None = None
        # One for each loader: a step may do something else with another loader's batches.
        self._cams: dict[int, CAM] = {}
        self._known: dict[nn.Module, TargetLayer] = {}
        self._names: dict[nn.Module, str] = {}
        self._cam: CAM | None = None
        self._finder: Finder | None = None
        self._given = find_module(root, network, "network")[1] if network else None
        self.refusal = ""
        self.begin()
        inside = self._given or root
        if isinstance(target_layer, str):
            self._layer = self._find_layer(inside, target_layer) if target_layer else None
        else:
            self._layer = [self._find_layer(inside, name) for name in target_layer] or None
        # Before the run: at its first validation it would be too late to choose another.
        make_watch(inside, method, self._layer)
        self._named = None if self._given is None else self._make(self._given)

    def begin(self) -> None:
        """Begins a validation."""
        self._tried: dict[int, int] = {}
        self._step: tuple[Batch, int] | None = None
        self.missed = False

    def start(self, batch: Any, read: Batch, loader: int, num_classes: int) -> None:
        """Begins to record, before a validation step.

        Args:
            batch: the step's.
            read: what it holds.
            loader: which of several it comes from.
            num_classes: how many the data names, 0 if it does not.
        """
        if self.refusal or self._tried.get(loader, 0) >= TRIES:
            return
        self._step, images = (read, loader), read.images
        self._answer.num_classes = num_classes
        cam = self._named or self._cams.get(loader)
        if cam is None:
            work_on = self._answer.is_given
            self._finder = Finder(self._root, self._make, batch, images, work_on=work_on)
            return
        cam.__enter__()
        cam.expect(images)
        self._cam = cam

    def stop(self, *, learn: bool) -> tuple[Recorded | None, str]:
        """Ends it, after the step; gives what was recorded, or why nothing was.

        Args:
            learn: whether to look what makes probabilities of these scores, if it is not sure yet.
        """
        if self._step is None:
            return None, ""
        batch, loader = self._step
        cam, problem = self._find_recorded(batch, loader)
        self._tried[loader] = self._tried.get(loader, 0) + 1 if problem else 0
        if cam is None or cam.logits is None or cam.target_layer is None:
            self.missed |= not loader
            return None, problem
        answer, num_scores = self._answer, cam.logits.shape[1]
        num_scores = 1 if answer.is_one_logit else num_scores
        if learn or not answer.activation:
            answer.learn(cam.logits, several=batch.have_several(num_scores))
        labels = batch.labels(num_scores) if cam.logits.shape[1] > 1 else None
        assert cam.made_at is not None
        layer = f"{self._name_of(cam.network)}.{cam.made_at.name}".lstrip(".")
        return Recorded(cam, labels, answer, loader, layer, self._method), ""

    def _find_recorded(self, batch: Batch, loader: int) -> tuple[CAM | None, str]:
        finder, cam = self._finder, self._cam
        self.close()
        if finder is not None:
            cam, problem = finder.choose()
            if problem:
                # What the step does for another loader tells of the same network.
                self.refusal = problem if finder.found_apart else ""
                return None, problem
        if cam is None:
            return None, "has recorded nothing"
        problem = self._find_problem(cam, batch, is_new=loader not in self._cams)
        if problem:
            cam.release()
            return None, problem
        self._cams[loader] = cam
        if cam.target_layer is not None:
            self._known[cam.network] = cam.target_layer
        return cam, ""

    def close(self) -> None:
        """Ends it, whatever happened."""
        if self._cam is not None:
            self._cam.__exit__(None, None, None)
        if self._finder is not None:
            self._finder.close()
        self._finder = self._cam = self._step = None

    def _name_of(self, network: nn.Module) -> str:
        """The dotted name of `network` in the LightningModule, empty for itself."""
        if network not in self._names:
            named = self._root.named_modules()
            self._names[network] = next((name for name, part in named if part is network), "")
        return self._names[network]

    def _make(self, network: nn.Module) -> CAM:
        inner = unwrap(network)
        several = isinstance(self._layer, list)
        layer = self._layer if several else self._known.get(inner, self._layer)
        backend = find_backend(self._root, inner) if self._compiles else None
        return CAM(network, self._method, layer, target=self._answer, backend=backend)

    def _find_problem(self, cam: CAM, batch: Batch, *, is_new: bool) -> str:
        name = self._name_of(cam.network) or type(cam.network).__name__
        if cam.failure:
            return f"cannot explain `{name}`: {cam.failure}"
        if cam.logits is None or cam.images is None:
            return f"was told to explain `{name}`, which the validation step does not call"
        num_images, num_scores = cam.logits.shape
        answer = self._answer
        labels = batch.labels(1 if answer.is_one_logit else num_scores)
        if not num_scores:
            return f"needs a logit for each class, `{name}` returns {tuple(cam.logits.shape)}"
        if answer.is_one_logit and (labels is None or (is_new and not _are_yes_or_no(labels))):
            return (
                f"needs a logit for each class, `{name}` returns one number an image and no labels "
                f"of 0 and 1 tell two classes: GradCAM(target={answer.number}) explains the number"
            )
        if labels is not None and len(labels) != num_images:
            return (
                f"found another number of scores than of labels: {num_images} from `{name}`, "
                f"{len(labels)} labels; GradCAM(labels=…) gives one for each"
            )
        if batch.images is not None and len(batch.images) != len(cam.images):
            return (
                f"found other images in `{name}` than in the batch: {len(cam.images)} and "
                f"{len(batch.images)}; GradCAM(images=…) gives those that it is called with"
            )
        classes = answer.num_classes
        told = self._named is not None or answer.is_given
        if is_new and classes and num_scores != classes and not told:
            named = self._name_of(cam.network)
            remedy = f"If it is right, pass network={named!r}, else the" if named else "Pass the"
            return (
                f"found {num_scores} scores of `{name}` for {classes} classes of the data: "
                f"features before a head? {remedy} network that gives the logits, or "
                "target=lambda output: … with what the rest makes of them"
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


def _are_yes_or_no(labels: Tensor) -> bool:
    return bool(((labels >= -1) & (labels <= 1)).all())
