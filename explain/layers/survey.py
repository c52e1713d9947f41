"""Seeing, on two images, which layers make feature maps, and choosing one of them."""

from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from math import prod
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from litcam.explain.forward.untouched import find_trained, frozen, ours, trying
from litcam.explain.layers.choosing import Candidate, Chooser
from litcam.explain.layers.layout import Layout, TargetLayer, find_layout
from litcam.explain.layers.order import find_orders, is_believed
from litcam.explain.networks import features_of, find_images, map_tensors, with_features
from litcam.explain.scores import NO_GRAPH, RefusalError, Target, find_scores

# Enough to walk back over the last block of a transformer, norms and containers included.
NUM_CANDIDATES = 24


@dataclass(frozen=True)
class Call:
    """A forward that is about to happen: what is called, with what, and the images in it."""

    forward: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    images: Tensor

    def __call__(self) -> Any:
        """The network's output."""
        return self.forward(*self.args, **self.kwargs)

    def change(self, change: Callable[[Any], Any]) -> "Call":
        """The same with changed arguments."""
        args, kwargs = change(self.args), change(self.kwargs)
        images = find_images(args, kwargs)
        return Call(self.forward, args, kwargs, self.images if images is None else images)

    def with_images(self, images: Tensor) -> "Call":
        """The same with other images."""
        return self.change(
            lambda value: map_tensors(lambda t: images if t is self.images else t, value)
        )

    def take(self, rows: list[int]) -> "Call":
        """The same of some rows of the batch, without a graph."""
        batch = len(self.images)

        def pick(tensor: Tensor) -> Tensor:
            tensor = tensor.detach()
            return tensor[rows] if tensor.ndim and len(tensor) == batch else tensor

        return self.change(lambda value: map_tensors(pick, value))


@dataclass
class Seen:
    """A module that gave a feature map: its place among all such, its name and layout."""

    place: int
    name: str
    module: nn.Module
    layout: Layout
    problem: str = ""
    sure: bool = True
    so_far: int = 0


def find_layer(
    network: nn.Module, call: Call, target: Target | None = None, *, early: bool = False
) -> TargetLayer:
    """The layer whose map is worth looking at, checked on two of the images.

    Costs three forwards of two images, or seven where features are tokens, of which nothing is
    noticed; only the last of them keeps a graph, and that of the last `NUM_CANDIDATES` layers.

    Args:
        network: whose forward it is.
        call: the forward that is about to happen.
        target: as for `find_scores`.
        early: whether grad is on from the start, where the network turns it off for a part.

    Raises:
        RefusalError: no layer can be explained; the message lists the candidates.
    """
    # All of them where a network takes no other number.
    few, every = [0, min(1, len(call.images) - 1)], list(range(len(call.images)))
    for rows in (few[: len(call.images)], every):
        try:
            return _Survey(network, call.take(rows), target, early=early).run()
        except RefusalError:
            raise
        except Exception as error:
            problem = f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')}"
    raise RefusalError(
        f"no layer of {type(network).__name__} was found ({problem}); pass target_layer"
    )


class Convolutions(TorchDispatchMode):
    """Counts convolutions that give a map of more than one position and are no layer's.

    Args:
        network: its layers are known.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.num, self._inside = 0, 0
        self._layers = [m for m in network.modules() if _convolves(m)]

    def __enter__(self) -> Self:
        self._hooks = [layer.register_forward_pre_hook(self._begin) for layer in self._layers]
        self._hooks += [layer.register_forward_hook(self._end) for layer in self._layers]
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        for hook in self._hooks:
            hook.remove()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        if func is torch.ops.aten.convolution.default and output.ndim == 4 and not self._inside:
            self.num += prod(output.shape[2:]) > 1
        return output

    @ours
    def _begin(self, *given: Any) -> None:
        self._inside += 1

    @ours
    def _end(self, *given: Any) -> None:
        self._inside -= 1


class _Survey:
    """One look at a network; see `find_layer`."""

    def __init__(
        self, network: nn.Module, call: Call, target: Target | None, *, early: bool
    ) -> None:
        self.network, self.call, self.target, self.early = network, call, target, early
        self.calls: Counter[nn.Module] = Counter()
        self._num_convolutions = 0

    def run(self) -> TargetLayer:
        seen = self._look()
        kept = {each.place: each for each in seen[-NUM_CANDIDATES:]}
        if any(each.layout.kind == "tokens" for each in kept.values()):
            self._find_orders(kept)
        # Also while it chooses: gradient checkpointing runs part of it again and compares.
        with torch.set_grad_enabled(self.early), frozen(find_trained(self.network)):
            candidates, logits = self._record(kept)
            layer = Chooser(candidates, logits, self.network, self.call.images).choose()
        self._refuse_early(layer.name, seen)
        return layer

    def _look(self) -> list[Seen]:
        """The feature maps in the order in which they are completed."""
        seen: list[Seen] = []
        convolutions = Convolutions(self.network)

        def note(place: int, name: str, module: nn.Module, output: Tensor, layout: Layout) -> None:
            seen.append(Seen(place, name, module, layout, so_far=convolutions.num))

        with torch.no_grad(), convolutions:
            output = self._forward(note)
        find_scores(output, self.network, len(self.call.images), self.target)
        self._num_convolutions = convolutions.num
        if isinstance(output, Tensor) and output.ndim == 4 and seen:
            coarsest = min(seen, key=lambda each: (prod(each.layout.grid), -each.place))
            raise RefusalError(
                f"{type(self.network).__name__} returns a map {tuple(output.shape)}, and its last "
                "feature maps are that answer in other words; pass target_layer, such as "
                f"{coarsest.name!r} ({coarsest.layout.grid[0]}x{coarsest.layout.grid[1]})"
            )
        return seen

    def _refuse_early(self, name: str, seen: Sequence[Seen]) -> None:
        """A layer that convolutions outside of modules still follow is not the last feature map."""
        so_far = max(each.so_far for each in seen if each.name == name)
        if later := self._num_convolutions - so_far:
            raise RefusalError(
                f"the last feature map of {type(self.network).__name__} is no module's output: "
                f"after {name!r} come {later} convolutions that are no modules; pass target_layer"
            )

    def _find_orders(self, kept: dict[int, Seen]) -> None:
        """Gives each map of tokens the layout that the image's corners tell, or none."""
        tokens = {place: each for place, each in kept.items() if each.layout.kind == "tokens"}

        def read(call: Call) -> dict[int, Tensor]:
            outputs: dict[int, Tensor] = {}

            def note(place: int, *rest: Any) -> None:
                if place in tokens:
                    outputs[place] = rest[2].detach().clone()

            self._forward(note, call)
            return outputs

        with torch.no_grad():
            guessed = {place: each.layout for place, each in tokens.items()}
            orders = find_orders(read, self.call, guessed, believed=is_believed(self.network))
        for place, order in orders.items():
            seen = kept[place]
            seen.layout, seen.problem, seen.sure = order

    def _record(self, kept: dict[int, Seen]) -> tuple[list[Candidate], Tensor]:
        """The maps with their graph, which begins at the first of them."""
        candidates: list[Candidate] = []
        # Checkpointing has to see all of it, and keeps memory low by itself.
        everything = _checkpoints(self.network)

        def keep(
            place: int, name: str, module: nn.Module, output: Tensor, layout: Layout
        ) -> Tensor | None:
            if place not in kept and not everything:
                return None
            torch.set_grad_enabled(True)
            if not output.requires_grad:
                output = output.detach().requires_grad_()
            if place not in kept:
                return output
            seen = kept[place]
            candidate = Candidate(name, module, output, seen.layout, seen.problem, seen.sure)
            candidates.append(candidate)
            # A clone, because an in-place ReLU may follow.
            return output.clone()

        output = self._forward(keep)
        logits = find_scores(output, self.network, len(self.call.images), self.target)
        if candidates and not logits.requires_grad:
            raise RefusalError(NO_GRAPH.format(type(self.network).__name__))
        for candidate in candidates:
            if self.calls[candidate.module] > 1:
                candidate.refusal = "is called more than once"
        return candidates, logits

    def _forward(self, note: Callable[..., Tensor | None], call: Call | None = None) -> Any:
        """One forward that nothing notices; `note` gets every feature map with its place."""
        self.calls.clear()
        state = {"place": 0, "after_pool": False}
        call = call or self.call
        shape = call.images.shape

        def watch(name: str) -> Callable[[nn.Module, Any, Any], Any]:
            @ours
            def after(module: nn.Module, args: Any, output: Any) -> Any:
                self.calls[module] += 1
                if next(module.children(), None) is None and not isinstance(module, nn.Identity):
                    # Not the norms and paths of Hugging Face's PoolFormer.
                    state["after_pool"] = "Pool" in type(module).__name__.replace("PoolFormer", "")
                if state["after_pool"] or not _makes_features(module):
                    return None
                found = features_of(output)
                if not isinstance(found, Tensor) or not found.is_floating_point():
                    return None
                layout = find_layout(found.shape, shape, self.network, module)
                if layout is None:
                    return None
                state["place"] += 1
                return with_features(output, note(state["place"], name, module, found, layout))

            return after

        with ExitStack() as stack:
            stack.enter_context(trying(self.network, call.images))
            for name, module in self.network.named_modules():
                if module is not self.network:
                    stack.callback(module.register_forward_hook(watch(name)).remove)
            return call()


def _checkpoints(network: nn.Module) -> bool:
    """Whether timm's or Hugging Face's switch for gradient checkpointing is on."""
    switches = ("grad_checkpointing", "gradient_checkpointing")
    return any(getattr(module, name, False) for module in network.modules() for name in switches)


def _makes_features(module: nn.Module) -> bool:
    """Convolutions, norms and containers do; activations and projections are left out.

    A projection (`attn.qkv`) has the tokens' shape and a gradient everywhere, and is no map.
    """
    if next(module.children(), None) is not None:
        return True
    return _convolves(module) or "Norm" in type(module).__name__


def _convolves(module: nn.Module) -> bool:
    """Whether it is a layer of convolution, PyTorch's or by its name."""
    return isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d) or "Conv" in type(module).__name__
