"""Which module of a LightningModule is the network: only a validation step tells."""

from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from litcam.explain import CAM
from litcam.explain.forward.stand_in import StandIn
from litcam.explain.networks import find_images, map_tensors, run_eagerly


class Finder:
    """Records every outermost module that takes images in one step, and tells which to explain.

    A LightningModule may call itself or a child, and may hold a teacher besides. What is explained
    has to give the final scores: where another module works on with them, there is no single
    forward.

    Args:
        root: the LightningModule.
        make: a `CAM` of a module; a ValueError says that it cannot be.
        batch: of the step.
        images: of the batch, where they are known.
    """

    def __init__(
        self, root: nn.Module, make: Callable[[nn.Module], CAM], batch: Any, images: Tensor | None
    ) -> None:
        self._make, self._images = make, images
        self._given = _find_storages(batch)
        self._cams: dict[str, CAM] = {}
        self._outputs: set[int] = set()
        self._apart = self._trouble = self._volume = ""
        self._inside = False
        self._open = ExitStack()
        self._open.enter_context(run_eagerly())
        for name, module in root.named_modules():
            # Losses, metrics and augmentations have no parameters.
            if next(module.parameters(), None) is not None:
                self._open.callback(StandIn.enter(module, partial(self._around, name, module)))

    def close(self) -> None:
        """Lets the modules alone again."""
        self._open.close()

    def choose(self) -> tuple[CAM | None, str]:
        """The network that was recorded, or why there is none."""
        if self._trouble:
            return None, f"cannot explain this: {self._trouble}"
        if not self._cams:
            return None, self._volume or (
                "saw no module of the LightningModule take images (batch, channels, h, w)"
            )
        if self._apart:
            first = next(iter(self._cams))
            return None, (
                f"found no single forward: `{first}` and `{self._apart}` are called apart; define "
                "forward(images) in the LightningModule to return logits and call self(images)"
            )
        names = list(self._cams)
        if len(names) > 1:
            # Of a teacher and its student the student is trained.
            trained = [name for name in names if _is_trained(self._cams[name].network)]
            if len(trained) != 1:
                several = " and ".join(f"`{name}`" for name in names)
                return None, (
                    f"found several networks: {several} take images, and it is not clear which is "
                    f"meant; pass one of them, as network={names[-1]!r}"
                )
            names = trained
        return self._cams[names[0]], ""

    def _around(
        self, name: str, module: nn.Module, forward: Callable[..., Any], args: Any, kwargs: Any
    ) -> Any:
        if self._inside:
            return forward(*args, **kwargs)
        images = find_images(args, kwargs)
        if name not in self._cams and self._is_derived(args, kwargs, images):
            self._apart = self._apart or name
            return forward(*args, **kwargs)
        if images is None:
            if any(isinstance(v, Tensor) and v.ndim == 5 for v in (*args, *kwargs.values())):
                self._volume = self._volume or (
                    f"explains images (batch, channels, h, w), and `{name}` takes volumes or "
                    "videos with one axis more, of which no picture can be drawn"
                )
            return forward(*args, **kwargs)
        self._inside = True
        try:
            output = self._record(name, module, forward, args, kwargs)
        finally:
            self._inside = False
        self._outputs |= _find_storages(output)
        return output

    def _record(
        self, name: str, module: nn.Module, forward: Callable[..., Any], args: Any, kwargs: Any
    ) -> Any:
        if name not in self._cams:
            try:
                cam = self._make(module)
            except ValueError as error:  # the layer is a part of something else
                self._trouble = str(error)
                return forward(*args, **kwargs)
            cam.expect(self._images)
            self._cams[name] = cam
        return self._cams[name].around(forward, args, kwargs)

    def _is_derived(self, args: Any, kwargs: Any, images: Tensor | None) -> bool:
        """Whether these are features that a network before made, or something made of them."""
        if not self._outputs:
            return False
        for value in (*args, *kwargs.values()):
            if not isinstance(value, Tensor):
                continue
            storage = _storage(value)
            if storage in self._outputs:
                return True
            made = value.is_floating_point() and value.ndim > 1 and storage not in self._given
            if made and images is None:
                return True
        return False


def _is_trained(network: nn.Module) -> bool:
    return any(parameter.requires_grad for parameter in network.parameters())


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def _find_storages(value: Any) -> set[int]:
    found: set[int] = set()

    def note(tensor: Tensor) -> Tensor:
        if tensor.layout == torch.strided:
            found.add(_storage(tensor))
        return tensor

    map_tensors(note, value)
    return found
