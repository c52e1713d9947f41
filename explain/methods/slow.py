"""The methods that run the network once a channel: Score-CAM and Ablation-CAM, from grad-cam."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from importlib import import_module
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from einops import rearrange
from torch import Tensor, nn

from litcam.explain.cam import Classes, as_table
from litcam.explain.forward.recording import Recording
from litcam.explain.forward.untouched import evaluating
from litcam.explain.layers.layout import TargetLayer
from litcam.explain.methods.formulas import METHODS, SLOW_METHODS, find_method
from litcam.explain.networks import copy_inference, find_logits, run_eagerly, unwrap


def slow_map(
    network: nn.Module,
    images: Tensor,
    classes: Classes = None,
    method: str = "scorecam",
    target_layer: str | nn.Module | TargetLayer | None = None,
    batch_size: int = 32,
) -> Tensor:
    """Maps at the layer's grid, after the ReLU and unscaled, as `CAM` gives them.

    Score-CAM: channels weighted by the softmax of the logits of the image times the channel.
    Wang et al., "Score-CAM: Score-Weighted Visual Explanations for Convolutional Neural Networks",
    CVPR 2020 workshops, https://arxiv.org/abs/1910.01279.

    Ablation-CAM: channels weighted by the share of the logit that is lost without them, so that a
    negative logit turns the map's sign. Desai and Ramaswamy, "Ablation-CAM: Visual Explanations
    for Deep Convolutional Network via Gradient-free Localization", WACV 2020. A channel is taken
    away by setting it to 0, as in the paper; grad-cam does so where the layer's least activation
    is 0 (after a ReLU), and elsewhere sets it 1e7 below the least.

    The weights are grad-cam's own code, one image at a time, because its Score-CAM holds
    an image for every channel. Its progress bar for every image is left out.

    Args:
        network: as for `CAM`; it is run in eval mode and left as it was, also after an exception.
        images: `(batch, channels, height, width)`.
        classes: one class an image `(batch,)`, one for all, or None for the predicted ones; several
            an image, `(batch, k)`, share the forwards.
        method: a name in `litcam.explain.SLOW_METHODS`.
        target_layer: as for `CAM`.
        batch_size: how many channels share a forward.

    Returns:
        `(batch, height, width)` in float32, on the images' device; of several classes an image
        `(batch, k, height, width)`.

    Raises:
        ValueError: no such method or layer.
        RuntimeError: the network cannot be explained; the message says why.
        IndexError: a class does not exist.
    """
    _check(method)
    network = unwrap(network)
    with _quietly(network, images):
        images = copy_inference(images)
        recording = _record(network, images, target_layer)
        assert recording.layer is not None and recording.logits is not None
        assert recording.activations is not None
        chosen, layer = as_table(classes, recording.logits).tolist(), recording.layer
        outputs = recording.activations.detach()
        recording.release()
        answers = _Logits(network, images.dtype)
        peer = _make_peer(method, answers, layer, batch_size)
        channels = layer.layout.to_maps(outputs).float()
        maps = []
        for image, labels, output, channel in zip(
            images.split(1), chosen, outputs, channels.split(1), strict=True
        ):
            axis = 1 if layer.layout.kind == "NCHW" else -1
            answers.forget()
            # A logit of exactly 0 loses no share: NaN here, nothing in the map.
            with np.errstate(divide="ignore", invalid="ignore"):
                for label in labels:
                    peer.ablation_layer = _Ablated(output, axis)
                    answers.rewind()
                    maps.append(_explain(peer, image, label, layer.module, channel))
        found = rearrange(torch.cat(maps), "(b k) h w -> b k h w", b=len(images))
        several = classes is not None and torch.as_tensor(classes).ndim == 2
        return (found if several else found[:, 0]).to(images.device).relu_()


def count_forwards(
    network: nn.Module,
    images: Tensor,
    method: str = "scorecam",
    target_layer: str | nn.Module | TargetLayer | None = None,
) -> int:
    """How many images `slow_map` sends through the network for these, found in one forward.

    Args:
        network: as for `slow_map`.
        images: `(batch, channels, height, width)`.
        method: a name in `litcam.explain.SLOW_METHODS`.
        target_layer: as for `slow_map`.

    Raises:
        ValueError: no such method or layer.
        RuntimeError: the network cannot be explained; the message says why.
    """
    _check(method)
    network = unwrap(network)
    with _quietly(network, images):
        recording = _record(network, copy_inference(images), target_layer)
        assert recording.layer is not None and recording.activations is not None
        num_channels = recording.layer.layout.to_maps(recording.activations).shape[1]
    # One is recorded, and Ablation-CAM looks at the whole image once more.
    return len(images) * (num_channels + (2 if method == "ablationcam" else 1))


def _check(method: str) -> None:
    if method in SLOW_METHODS:
        return
    if method in METHODS:
        raise ValueError(
            f"method {method!r} is not slow: use litcam.explain.CAM, or one of "
            f"{', '.join(SLOW_METHODS)}"
        )
    find_method(method)


@contextmanager
def _quietly(network: nn.Module, images: Tensor) -> Iterator[None]:
    """No grad, eval mode, and afterwards every module where it was."""
    before = [(m, dict(m._modules), set(m._forward_hooks)) for m in network.modules()]
    with ExitStack() as stack:
        stack.enter_context(run_eagerly())
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.no_grad())
        stack.enter_context(evaluating(network, images.device))
        stack.enter_context(_without_bars())
        try:
            yield
        finally:
            # grad-cam puts hooks and a layer into the network, and an exception leaves them there.
            for module, children, hooks in before:
                module._modules.update(children)
                for hook in set(module._forward_hooks) - hooks:
                    del module._forward_hooks[hook]


@contextmanager
def _without_bars() -> Iterator[None]:
    """grad-cam's two modules without tqdm, which they give no way to silence."""
    names = ("pytorch_grad_cam.score_cam", "pytorch_grad_cam.ablation_cam")
    modules: list[Any] = [import_module(name) for name in names]
    before = [module.tqdm for module in modules]
    try:
        for module in modules:
            module.tqdm = SimpleNamespace(tqdm=iter)
        yield
    finally:
        for module, bars in zip(modules, before, strict=True):
            module.tqdm = bars


def _record(
    network: nn.Module, images: Tensor, target_layer: str | nn.Module | TargetLayer | None
) -> Recording:
    """The layer, its output and the logits, also where an in-place ReLU follows."""
    recording = Recording(network, target_layer)
    recording.open()
    try:
        network(images)
    finally:
        recording.close()
    if recording.failure or recording.logits is None:
        raise RuntimeError(recording.failure or "images must be (batch, channels, height, width)")
    return recording


def _make_peer(method: str, network: "_Logits", layer: TargetLayer, batch_size: int) -> Any:
    # Imported here: grad-cam brings OpenCV and scikit-learn with it.
    from pytorch_grad_cam import AblationCAM, ScoreCAM

    kind = {"scorecam": ScoreCAM, "ablationcam": AblationCAM}[method]
    peer = kind(network, [layer.module])
    peer.batch_size = batch_size
    # Its hooks would keep the layer's output of every forward that follows.
    peer.activations_and_grads.release()
    return peer


def _explain(peer: Any, image: Tensor, label: int, layer: nn.Module, channels: Tensor) -> Tensor:
    """One map `(1, height, width)` before the ReLU, from `channels` `(1, channels, ...)`."""
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    targets = [ClassifierOutputTarget(label)]
    weighted = peer.get_cam_image(image, layer, targets, channels.cpu().numpy(), None)
    return torch.from_numpy(np.float32(weighted)).nan_to_num(0.0, 0.0, 0.0)


class _Logits(nn.Module):
    """A network as grad-cam wants it: any images in, also in float32, and the logits out.

    For every class of an image grad-cam asks for the same images in the same order: after `rewind`
    the answers are those that it had.
    """

    def __init__(self, network: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self.network, self.dtype = network, dtype
        self.forget()

    def forget(self) -> None:
        self._answers: list[Tensor | None] = []
        self.rewind()

    def rewind(self) -> None:
        self._next = 0

    def forward(self, images: Tensor) -> Tensor | None:
        if self._next == len(self._answers):
            self._answers.append(find_logits(self.network(images.to(self.dtype))))
        self._next += 1
        return self._answers[self._next - 1]


class _Ablated(nn.Module):
    """Stands where the layer was: its output for one image, without another channel in each copy.

    The method names are those that `pytorch_grad_cam.AblationCAM` asks of its `ablation_layer`.
    """

    def __init__(self, output: Tensor, axis: int) -> None:
        super().__init__()
        self.output, self.axis = output[None], axis
        self.indices: npt.NDArray[np.int64] = np.arange(output[None].shape[axis])
        self.num_copies = 0

    def activations_to_be_ablated(self, activations: Any, ratio: float) -> npt.NDArray[np.int64]:
        return self.indices

    def set_next_batch(
        self, input_batch_index: int, activations: Any, num_channels_to_ablate: int
    ) -> None:
        self.num_copies = num_channels_to_ablate

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        copies = self.output.repeat_interleave(self.num_copies, 0)
        rows = torch.arange(self.num_copies)
        copies.movedim(self.axis, 1)[rows, torch.from_numpy(self.indices[: self.num_copies])] = 0
        return copies
