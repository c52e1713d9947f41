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
    forward, unless the user's target does that work.

    Args:
        root: the LightningModule.
        make: a `CAM` of a module; a ValueError says that it cannot be.
        batch: of the step.
        images: of the batch, where they are known.
        work_on: whether others may work on with what is explained.

    Attributes:
        found_apart: whether a network and what works on with its output are two.
    """

    def __init__(
        self,
        root: nn.Module,
        make: Callable[[nn.Module], CAM],
        batch: Any,
        images: Tensor | None,
        *,
        work_on: bool,
    ) -> None:
        self._root, self._make, self._images, self._work_on = root, make, images, work_on
        self._given = _find_storages(batch)
        self._cams: dict[str, CAM] = {}
        self._outputs: dict[int, str] = {}
        self._apart: list[tuple[str, str]] = []
        self._trouble = self._volume = ""
        self.found_apart = False
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
        apart = self._find_apart()
        if self._volume and (apart or len(self._cams) != 1):
            return None, self._volume
        if not self._cams:
            return None, (
                "saw no module of the LightningModule take images (batch, channels, h, w): "
                "GradCAM(network=…) names one"
            )
        if apart is not None:
            self.found_apart = True
            source, name = apart
            return None, (
                f"found no single forward: {self._name(source)} and `{name}` are called apart; "
                f"GradCAM(target=lambda output: module.{name}(output)), of your LightningModule "
                "`module`, explains both, or else define forward(images) in it to return logits "
                "and call self(images)"
            )
        names = list(self._cams)
        if len(names) > 1:
            # Of a teacher and its student the student is trained.
            trained = [name for name in names if _is_trained(self._cams[name].network)]
            if len(trained) != 1:
                several = " and ".join(map(self._name, names))
                return None, (
                    f"found several networks: {several} take images, and it is not clear which is "
                    f"meant; pass one of them, as network={names[-1]!r}"
                )
            names = trained
        return self._cams[names[0]], ""

    def _find_apart(self) -> tuple[str, str] | None:
        """A network and the module that works on with its output; not a teacher's of a student."""
        if self._work_on:
            return None
        parts = dict(self._root.named_modules())
        trained = [pair for pair in self._apart if any(_is_trained(parts[n]) for n in pair)]
        others = any(
            _is_trained(cam.network)
            for name, cam in self._cams.items()
            if name not in {source for source, _ in self._apart}
        )
        found = trained if others else self._apart
        return found[0] if found else None

    def _name(self, name: str) -> str:
        return f"`{name}`" if name else f"the forward of {type(self._root).__name__}"

    def _around(
        self, name: str, module: nn.Module, forward: Callable[..., Any], args: Any, kwargs: Any
    ) -> Any:
        if self._inside:
            return forward(*args, **kwargs)
        images = find_images(args, kwargs, self._images)
        source = self._find_source(args, kwargs, images)
        if source is not None and name not in self._cams:
            output = self._without_parts(partial(forward, *args, **kwargs))
            # A loss may have a weight of its own, and gives one number for all images.
            if not (isinstance(output, Tensor) and output.ndim == 0):
                self._apart.append((source, name))
            return output
        if images is None:
            if any(isinstance(v, Tensor) and v.ndim == 5 for v in (*args, *kwargs.values())):
                self._volume = self._volume or (
                    f"explains images (batch, channels, h, w), and {self._name(name)} takes "
                    "volumes or videos with one axis more, of which no picture can be drawn"
                )
            return forward(*args, **kwargs)
        output = self._without_parts(partial(self._record, name, module, forward, args, kwargs))
        self._outputs |= dict.fromkeys(_find_storages(output), name)
        return output

    def _without_parts(self, call: Callable[[], Any]) -> Any:
        self._inside = True
        try:
            return call()
        finally:
            self._inside = False

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

    def _find_source(self, args: Any, kwargs: Any, images: Tensor | None) -> str | None:
        """The network before that made these features, or something that these are made of."""
        if not self._outputs:
            return None
        for value in (*args, *kwargs.values()):
            if not isinstance(value, Tensor):
                continue
            storage = _storage(value)
            if storage in self._outputs:
                return self._outputs[storage]
            made = value.is_floating_point() and value.ndim > 1 and storage not in self._given
            if made and images is None:
                return next(reversed(self._outputs.values()))
        return None


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
