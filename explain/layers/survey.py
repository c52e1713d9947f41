"""Seeing, on two images, which layers make feature maps, and choosing one of them."""

from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from litcam.explain.forward.untouched import find_trained, frozen, ours, trying
from litcam.explain.layers.choosing import Candidate, Chooser
from litcam.explain.layers.layout import Layout, TargetLayer, find_layout
from litcam.explain.layers.order import find_orders, is_believed
from litcam.explain.networks import find_images, map_tensors
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


def find_layer(network: nn.Module, call: Call, target: Target | None = None) -> TargetLayer:
    """The layer whose map is worth looking at, checked on two of the images.

    Costs three forwards of two images, or seven where features are tokens, of which nothing is
    noticed; only the last of them keeps a graph, and that of the last `NUM_CANDIDATES` layers.

    Args:
        network: whose forward it is.
        call: the forward that is about to happen.
        target: as for `find_scores`.

    Raises:
        RefusalError: no layer can be explained; the message lists the candidates.
    """
    # All of them where a network takes no other number.
    few, every = [0, min(1, len(call.images) - 1)], list(range(len(call.images)))
    for rows in (few[: len(call.images)], every):
        try:
            return _Survey(network, call.take(rows), target).run()
        except RefusalError:
            raise
        except Exception as error:
            problem = f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')}"
    raise RefusalError(
        f"no layer of {type(network).__name__} was found ({problem}); pass target_layer"
    )


class _Survey:
    """One look at a network; see `find_layer`."""

    def __init__(self, network: nn.Module, call: Call, target: Target | None) -> None:
        self.network, self.call, self.target = network, call, target
        self.calls: Counter[nn.Module] = Counter()

    def run(self) -> TargetLayer:
        seen = self._look()
        kept = {each.place: each for each in seen[-NUM_CANDIDATES:]}
        if any(each.layout.kind == "tokens" for each in kept.values()):
            self._find_orders(kept)
        # Also while it chooses: gradient checkpointing runs part of it again and compares.
        with torch.no_grad(), frozen(find_trained(self.network)):
            candidates, logits = self._record(kept)
            return Chooser(candidates, logits, self.network).choose()

    def _look(self) -> list[Seen]:
        """The feature maps in the order in which they are completed."""
        seen: list[Seen] = []

        def note(place: int, name: str, module: nn.Module, output: Tensor, layout: Layout) -> None:
            seen.append(Seen(place, name, module, layout))

        with torch.no_grad():
            output = self._forward(note)
        find_scores(output, self.network, len(self.call.images), self.target)
        return seen

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
        for place, (layout, problem) in orders.items():
            kept[place].layout, kept[place].problem = layout, problem

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
            layout, problem = kept[place].layout, kept[place].problem
            candidates.append(Candidate(name, module, output, layout, problem))
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

        def watch(name: str) -> Callable[[nn.Module, Any, Any], Tensor | None]:
            @ours
            def after(module: nn.Module, args: Any, output: Any) -> Tensor | None:
                self.calls[module] += 1
                if next(module.children(), None) is None and not isinstance(module, nn.Identity):
                    # Not the norms and paths of Hugging Face's PoolFormer.
                    state["after_pool"] = "Pool" in type(module).__name__.replace("PoolFormer", "")
                if state["after_pool"] or not _makes_features(module):
                    return None
                if not isinstance(output, Tensor) or not output.is_floating_point():
                    return None
                layout = find_layout(output.shape, shape, self.network, module)
                if layout is None:
                    return None
                state["place"] += 1
                return note(state["place"], name, module, output, layout)

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
    kind = type(module).__name__
    return isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d) or "Norm" in kind
