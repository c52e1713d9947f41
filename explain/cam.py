"""Class activation maps out of the forward that happens anyway."""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor, nn

from litcam.explain.forward.recording import Recording
from litcam.explain.forward.untouched import evaluating, frozen
from litcam.explain.layers.layout import TargetLayer
from litcam.explain.methods.finer import finer_scores
from litcam.explain.methods.formulas import VIT_METHODS, Method, find_method, scale_maps
from litcam.explain.methods.legrad import LeGrad
from litcam.explain.methods.libra import LibraGrad
from litcam.explain.methods.several import SeveralLayers
from litcam.explain.methods.vit import Watch
from litcam.explain.networks import unwrap
from litcam.explain.scores import Target

Classes = Tensor | Sequence[int] | Sequence[Sequence[int]] | int | None
Layer = str | nn.Module | TargetLayer


class CAM:
    """Makes maps of where a classifier looks, out of your own forward.

    Inside the context the graph from the target layer to the logits is recorded, also under
    `no_grad` and inference mode. The network's forward runs once and hands back the logits of a
    plain forward; modes, hooks and every `.grad` are afterwards as they were.

    Args:
        network: a classifier: any module that takes images `(batch, channels, height, width)` and
            returns logits `(batch, num_classes)`, or an object with `logits`.
        method: a name in `litcam.explain.METHODS`, or in `VIT_METHODS` for a ViT of timm's.
        target_layer: a dotted name or a module; by default found before the first forward, on two
            of its images. Several of them for `"layercam"`, whose maps are then fused at the
            finest grid.
        target: from the network's output to what is explained, one number an image `(batch,)` or
            several `(batch, k)`, which then are the classes; by default its logits.
        backend: as of `torch.compile`, which then compiles the forward before and behind the layer:
            for many batches, because that takes its time. By default also a compiled network runs
            uncompiled here.

    Raises:
        ValueError: no such method or layer, with close matches in the message; or the method is
            not made for this network.

    Example:
        >>> import timm, torch
        >>> network = timm.create_model("resnet18").eval()
        >>> with CAM(network) as cam, torch.no_grad():
        ...     logits = network(torch.randn(2, 3, 64, 64))
        >>> cam.target_layer.name, cam(logits.argmax(1)).shape
        ('layer4', torch.Size([2, 2, 2]))
    """

    def __init__(
        self,
        network: nn.Module,
        method: str = "gradcam",
        target_layer: Layer | Sequence[str | nn.Module] | None = None,
        *,
        target: Target | None = None,
        backend: Any = None,
    ) -> None:
        self.network = unwrap(network)
        self.method = method
        self._watch = make_watch(self.network, method, target_layer)
        if isinstance(target_layer, Sequence) and not isinstance(target_layer, str):
            target_layer = target_layer[-1]
        self._recording = Recording(self.network, target_layer, target, backend, self._watch)

    def __enter__(self) -> Self:
        self._recording.open()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._recording.close()

    @property
    def target_layer(self) -> TargetLayer | None:
        """The layer in use, or None before the first forward."""
        return self._recording.layer

    @property
    def made_at(self) -> TargetLayer | None:
        """Where the maps of its own method are made: that layer, or what the method looks at."""
        layer = self._recording.layer
        return self._watch.made_at(layer) if self._watch and layer else layer

    @property
    def images(self) -> Tensor | None:
        """What the network was last given, `(batch, channels, height, width)`."""
        return self._recording.images

    @property
    def logits(self) -> Tensor | None:
        """What it answered, `(batch, num_classes)`, in the recorded graph."""
        return self._recording.logits

    @property
    def failure(self) -> str:
        """Why the last forward cannot be explained, or an empty line."""
        return self._recording.failure

    def __call__(self, classes: Classes = None, *, method: str = "") -> Tensor:
        """Maps at the layer's grid, after the ReLU and unscaled.

        Args:
            classes: one class an image `(batch,)`, several `(batch, k)`, one for all, or None for
                the predicted ones.
            method: instead of the CAM's own, from the same forward.

        Returns:
            `(batch, height, width)`, or `(batch, k, height, width)`, in float32.

        Raises:
            RuntimeError: no forward was recorded, or none that can be explained.
            IndexError: a class does not exist.
            ValueError: no such method.
        """
        table = as_table(classes, self._logits())
        maps = self.maps(table, method=method)
        several = classes is not None and torch.as_tensor(classes).ndim == 2
        return maps if several else maps[:, 0]

    def maps(self, classes: Tensor, *, method: str = "") -> Tensor:
        """The same of classes `(batch, k)` that are known to exist: nothing waits for a device.

        Args:
            classes: whole numbers on the device of the logits.
            method: as for a call.

        Returns:
            `(batch, k, height, width)`, in float32.

        Raises:
            RuntimeError: as for a call.
            ValueError: no such method.
        """
        method = method or self.method
        watched = self._watch is not None and method == self.method
        formula = None if watched else find_method(method)
        if formula and self._watch is not None and self._watch.answers_alone:
            raise ValueError(
                f"method {method!r} needs plain gradients, and this forward was recorded for "
                f"{self.method!r}: record another, by CAM(network, method={method!r})"
            )
        with ExitStack() as stack:
            stack.enter_context(torch.inference_mode(False))
            stack.enter_context(torch.no_grad())
            # Autocast would turn the float32 sums over channels back into bfloat16.
            stack.enter_context(torch.autocast(self._logits().device.type, enabled=False))
            # As in the forward: gradient checkpointing runs part of it again and compares.
            stack.enter_context(frozen(self._recording.frozen))
            # A copy: classes made under inference mode could not be saved for a gradient.
            columns = classes.clone().unbind(1)
            made = [self._explain(each, method, formula) for each in columns]
            return torch.stack(made, 1)

    def heatmaps(
        self, classes: Classes = None, size: tuple[int, int] | None = None, *, method: str = ""
    ) -> Tensor:
        """The same maps, each stretched to [0, 1], at `size` or the size of the images."""
        maps = self(classes, method=method)
        assert self.images is not None
        height, width = size or self.images.shape[-2:]
        return scale_maps(maps, (height, width))

    def expect(self, images: Tensor | None) -> None:
        """Begins a step: of its forwards the one of these very `images` is kept, else the first."""
        self._recording.expect(images)

    def around(self, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: Any) -> Any:
        """Records a forward of the network without entering; gives what it gives."""
        return self._recording.around(forward, args, kwargs)

    def release(self) -> None:
        """Lets the recorded graph go."""
        self._recording.release()

    def _logits(self) -> Tensor:
        if self._recording.failure:
            raise RuntimeError(self._recording.failure)
        if self._recording.logits is None:
            raise RuntimeError("no forward was recorded: call the network inside `with CAM(...)`")
        return self._recording.logits

    def _explain(self, classes: Tensor, method: str, formula: Method | None) -> Tensor:
        """Maps `(batch, height, width)` for one class an image."""
        recorded = self._recording
        assert recorded.logits is not None and recorded.activations is not None
        assert recorded.layer is not None
        try:
            if formula is None:
                assert self._watch is not None
                return self._watch.explain(recorded.logits, classes, recorded.layer).relu_()
            gradients = self._differentiate(recorded.logits, classes, finer=method == "finercam")
        except RuntimeError as error:
            if "second time" not in str(error):
                raise
            raise RuntimeError(
                "the graph of the forward is gone: the step goes backward through the same forward "
                "(an attack, or an adaptation), and retain_graph=True would keep it"
            ) from error
        if gradients is None:
            raise RuntimeError(f"layer {recorded.layer.name} does not reach the logits")
        to_maps = recorded.layer.layout.to_maps
        activations = to_maps(recorded.activations.detach()).float()
        return formula(activations, to_maps(gradients).float()).relu_()

    def _differentiate(self, logits: Tensor, classes: Tensor, *, finer: bool) -> Tensor | None:
        """The gradient with respect to the layer only: no parameter's .grad is touched."""
        assert self._recording.activations is not None
        weights = torch.zeros_like(logits).scatter_(1, classes[:, None], 1.0)
        if finer:
            with torch.enable_grad():
                leaf = logits.detach().float().requires_grad_()
                (weights,) = torch.autograd.grad(finer_scores(leaf, classes).sum(), leaf)
            weights = weights.to(logits.dtype)
        (gradients,) = torch.autograd.grad(
            logits, self._recording.activations, weights, retain_graph=True, allow_unused=True
        )
        return gradients


def make_watch(
    network: nn.Module, method: str, target_layer: Layer | Sequence[str | nn.Module] | None
) -> Watch | None:
    """What keeps more of a forward than one layer, where the method needs it.

    Raises:
        ValueError: no such method or layer, or they do not go together.
    """
    several = isinstance(target_layer, Sequence) and not isinstance(target_layer, str)
    if method in VIT_METHODS:
        if target_layer is not None and not isinstance(target_layer, TargetLayer):
            raise ValueError(
                f"method {method!r} looks at {VIT_METHODS[method]}: leave target_layer out"
            )
        return LeGrad(network) if method == "legrad" else LibraGrad(network)
    find_method(method)
    if not several:
        return None
    assert isinstance(target_layer, Sequence)
    if method != "layercam" or not target_layer:
        raise ValueError(
            f"target_layer names {len(target_layer)} layers: several are for method 'layercam', "
            f"and {method!r} takes one"
        )
    return SeveralLayers(network, target_layer)


def as_table(classes: Classes, logits: Tensor) -> Tensor:
    """Classes as `(batch, k)` on the device of logits `(batch, num_classes)`.

    Raises:
        ValueError: they are not one or several an image.
        IndexError: a class does not exist.
    """
    batch, num_classes = logits.shape
    if classes is None:
        return logits.argmax(1, keepdim=True)
    table = torch.as_tensor(classes, device=logits.device).long().clone()
    table = table.expand(batch) if table.ndim == 0 else table
    table = table[:, None] if table.ndim == 1 else table
    if table.ndim != 2 or len(table) != batch:
        raise ValueError(f"classes must be (batch,) or (batch, k) for {batch} images")
    if table.numel() and not 0 <= int(table.min()) <= int(table.max()) < num_classes:
        wrong = int(table.max()) if int(table.max()) >= num_classes else int(table.min())
        raise IndexError(f"class {wrong} does not exist: there are 0 to {num_classes - 1}")
    return table


def find_target_layer(network: nn.Module, images: Tensor) -> TargetLayer:
    """The layer whose map is worth looking at, checked on `images` in one forward in eval mode.

    Args:
        network: as for `CAM`.
        images: `(batch, channels, height, width)`; two are enough.

    Raises:
        ValueError: no layer can be explained; the message lists the candidates.
    """
    network = unwrap(network)
    with evaluating(network, images.device), CAM(network) as cam, torch.no_grad():
        network(images)
    if cam.target_layer is None:
        raise ValueError(
            cam.failure or "images must be one tensor (batch, channels, height, width)"
        )
    return cam.target_layer
