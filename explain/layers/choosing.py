"""Which of the layers seen in one forward a map is made at."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import Node, get_gradient_edge

from litcam.explain.layers.layout import Layout, TargetLayer
from litcam.explain.networks import timm_models
from litcam.explain.scores import RefusalError


@dataclass
class Candidate:
    """A layer seen in a forward: its output in the graph, and why it cannot be chosen.

    Of tokens `sure` tells whether the image itself has shown that they are its patches.
    """

    name: str
    module: nn.Module
    output: Tensor
    layout: Layout
    refusal: str = ""
    sure: bool = True


class Chooser:
    """Picks the last feature map that still decides about more than one position.

    Walks back from the logits. After the last block of a ViT with a class token, for instance,
    the patch tokens have no gradient any more; `blocks[-1].norm1` is the last place where they do.
    A map with another one beside it is left out as well: each would show a part of the evidence.

    Args:
        candidates: in the order in which they were completed, outputs in the graph of `logits`.
        logits: `(batch, num_classes)`.
        network: what `candidates` are parts of.
        images: `(batch, 3, height, width)`, that it was asked about.
    """

    def __init__(
        self, candidates: Sequence[Candidate], logits: Tensor, network: nn.Module, images: Tensor
    ) -> None:
        self.candidates, self.logits, self.network = candidates, logits, network
        self._size = images.shape[-2:]
        self._ones = torch.zeros_like(logits).scatter_(1, logits.argmax(1, keepdim=True), 1.0)
        self._nodes: dict[str, set[Node]] = {}
        self._beside: dict[str, list[Candidate]] = {}

    def choose(self) -> TargetLayer:
        """The layer and the reason for it.

        Raises:
            RefusalError: no candidate passes; the message lists them with their reasons.
        """
        # From the end, one by one: most of the time the first will do, at the cost of a short tail.
        chosen = next((c for c in reversed(self.candidates) if self._is_right(c)), None)
        if chosen is None:
            raise RefusalError(self._explain_refusal())
        names = _last_stages(self.network)
        stages = [c for c in self.candidates if c.name in names]
        if chosen.layout.kind == "tokens":
            # With average pooling the last block, not the norm after it; with class attention the
            # last block of patches, which every block of class attention reads.
            chosen = next((c for c in stages if self._is_right(c)), chosen)
        same = (c for c in stages if not c.refusal and _is_same_map(c, chosen))
        chosen = next(same, chosen)
        return TargetLayer(chosen.name, chosen.module, chosen.layout, self._describe(chosen))

    def _is_right(self, candidate: Candidate) -> bool:
        return self._passes(candidate) and not self._find_beside(candidate)

    def _passes(self, candidate: Candidate) -> bool:
        """Refuses a layer whose gradient is missing, not finite, or at one position only."""
        if not candidate.refusal:
            (gradient,) = torch.autograd.grad(
                self.logits, candidate.output, self._ones, retain_graph=True, allow_unused=True
            )
            candidate.refusal = _refuse(gradient, candidate.layout)
        return not candidate.refusal

    def _find_beside(self, candidate: Candidate) -> list[Candidate]:
        """Maps that decide as well, and neither lead to this one nor follow it.

        Of another kind only those that are surely maps of the image.
        """
        if candidate.name not in self._beside:
            place = self.candidates.index(candidate)
            before, after = self.candidates[:place], self.candidates[place + 1 :]
            kind = candidate.layout.kind
            before = [c for c in before if c.sure or c.layout.kind == kind]
            beside = [c for c in self._find_unread(before, candidate) if self._passes(c)]
            for later in after:
                if (later.sure or later.layout.kind == kind) and self._passes(later):
                    beside += [later] if self._find_unread([candidate], later) else []
            self._beside[candidate.name] = beside
        return self._beside[candidate.name]

    def _find_unread(self, sources: list[Candidate], target: Candidate) -> list[Candidate]:
        """Those `sources` whose positions the positions of `target` were not made of."""
        if target.name not in self._nodes:
            self._nodes[target.name] = _find_nodes(target.output)
        reached = self._nodes[target.name]
        unread = [c for c in sources if _find_node(c.output) not in reached]
        # With a class token there is a way around the positions, which the graph does not show.
        prefixed = [c for c in sources if c not in unread and _has_class_token(c, target)]
        return unread + [c for c in prefixed if not _reads_positions(c, target)]

    def _explain_refusal(self) -> str:
        name = type(self.network).__name__
        for candidate in reversed(self.candidates):
            if others := self._beside.get(candidate.name):
                ways = [f"{c.name} {c.layout.grid}" for c in (candidate, *others[::-1])][:4]
                return (
                    f"{name} decides by several feature maps side by side, and none shows it all: "
                    f"{', '.join(ways)}; pass one of them as target_layer"
                )
        if self._ends_as_one:
            height, width = self._size
            return (
                f"{name} makes a single position of images of {height}x{width}, which is no map, "
                "and nothing before it decides by itself at more than one; give larger images "
                f"(--data.image_size {2 * max(height, width)}), or pass target_layer"
            )
        last = self.candidates[-6:]
        seen = "; ".join(f"{c.name} {c.layout.grid}: {c.refusal}" for c in last)
        return (
            f"no layer of {name} can be explained, pass target_layer "
            f"(seen: {seen or 'no feature map at all'})"
        )

    @property
    def _ends_as_one(self) -> bool:
        """Whether the last stage of a timm network is a single position for images like these."""
        strides = (stage.get("reduction", 0) for stage in _last_stages(self.network).values())
        return max(strides, default=0) >= max(self._size)

    def _describe(self, chosen: Candidate) -> str:
        later = self.candidates[self.candidates.index(chosen) + 1 :]
        if chosen.layout.kind == "tokens":
            if not any("class token" in c.refusal for c in later):
                return "the last patch tokens before pooling"
            if chosen.name in _last_stages(self.network):
                return "the last block of patch tokens, which the class token then gathers"
            return "after it only the class token reaches the logits"
        if self._ends_as_one:
            return "the last feature map of more than one position: the images are small"
        if any(self._beside.get(c.name) for c in later):
            return "the last feature map before the ways from it to the logits part"
        if any("more than once" in c.refusal for c in later):
            return "the last feature map of a layer that is called once; those after it come again"
        order = "channels last" if chosen.layout.kind == "NHWC" else "before pooling"
        return f"the last feature map, {order}"


def _refuse(gradient: Tensor | None, layout: Layout) -> str:
    if gradient is None:
        return "does not reach the logits"
    strength = layout.to_maps(gradient).float().abs().sum(1)
    if not strength.isfinite().all():
        return "its gradient is not finite"
    if not gradient.any():
        return "its gradient is zero (are the head's weights all zero?)"
    if not strength.any():
        return "only its class token reaches the logits"
    if int((strength > 0).sum((1, 2)).max()) < 2:
        return "has a gradient at one position only"
    return ""


def _has_class_token(*candidates: Candidate) -> bool:
    layouts = [candidate.layout for candidate in candidates]
    return any(layout.num_prefix_tokens or layout.num_suffix_tokens for layout in layouts)


def _reads_positions(source: Candidate, target: Candidate) -> bool:
    """Whether the positions of `target` have a gradient at those of `source`."""
    maps = target.layout.to_maps(target.output)
    # Any direction will do but a constant one, whose gradient a norm takes away.
    direction = torch.arange(maps.numel(), device=maps.device).sin().to(maps.dtype)
    try:
        (gradient,) = torch.autograd.grad(
            maps, source.output, direction.view(maps.shape), retain_graph=True, allow_unused=True
        )
    except RuntimeError:
        # Checkpointed inside: what the graph says has to do.
        return True
    return gradient is not None and bool(source.layout.to_maps(gradient).any())


def _find_node(output: Tensor) -> Node:
    return get_gradient_edge(output).node


def _find_nodes(output: Tensor) -> set[Node]:
    """All that autograd would visit on the way back from `output`."""
    seen = {_find_node(output)}
    todo = list(seen)
    while todo:
        new = {node for node, _ in todo.pop().next_functions if node is not None} - seen
        seen |= new
        todo += new
    return seen


def _last_stages(network: nn.Module) -> dict[str, dict[str, Any]]:
    """What timm tells of the last stage, by its name in `network`'s terms."""
    stages = {}
    for name, model in timm_models(network):
        info: Any = getattr(model, "feature_info", None)
        if info:
            stages[f"{name}.{info[-1]['module']}".lstrip(".")] = info[-1]
    return stages


def _is_same_map(candidate: Candidate, chosen: Candidate) -> bool:
    """Whether a container only hands on what this part of it has made."""
    inside = candidate is chosen or candidate.name.startswith(f"{chosen.name}.")
    return inside and (
        candidate.output.shape == chosen.output.shape
        and torch.equal(candidate.output, chosen.output)
    )
