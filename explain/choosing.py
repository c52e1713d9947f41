"""Which of the layers seen in one forward a map is made at."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import Node

from litcam.explain.networks import timm_models
from litcam.explain.target_layers import Layout, TargetLayer


@dataclass
class Candidate:
    """A layer seen in a forward: its output in the graph, and why it cannot be chosen."""

    name: str
    module: nn.Module
    output: Tensor
    layout: Layout
    refusal: str = ""


class Chooser:
    """Picks the last feature map that still decides about more than one position.

    Walks back from the logits. After the last block of a ViT with a class token, for instance,
    the patch tokens have no gradient any more; `blocks[-1].norm1` is the last place where they do.
    A map with another one beside it is left out as well: each would show a part of the evidence.

    Args:
        candidates: in the order in which they were completed, outputs in the graph of `logits`.
        logits: `(batch, num_classes)`.
        network: what `candidates` are parts of.
    """

    def __init__(self, candidates: Sequence[Candidate], logits: Tensor, network: nn.Module) -> None:
        self.candidates, self.logits, self.network = candidates, logits, network
        self._ones = torch.zeros_like(logits).scatter_(1, logits.argmax(1, keepdim=True), 1.0)
        self._nodes: dict[str, set[Node]] = {}
        self._beside: dict[str, list[Candidate]] = {}

    def choose(self) -> TargetLayer:
        """The layer and the reason for it.

        Raises:
            ValueError: no candidate passes; the message lists them with their reasons.
        """
        # From the end, one by one: most of the time the first will do, at the cost of a short tail.
        chosen = next((c for c in reversed(self.candidates) if self._is_right(c)), None)
        if chosen is None:
            raise ValueError(self._explain_refusal())
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
        """Maps of the same kind that decide as well, and neither lead to this one nor follow it."""
        if candidate.name not in self._beside:
            self._beside[candidate.name] = [
                other
                for other in self.candidates
                if other.layout.kind == candidate.layout.kind
                and not self._leads(other, candidate)
                and not self._leads(candidate, other)
                and self._passes(other)
            ]
        return self._beside[candidate.name]

    def _leads(self, first: Candidate, last: Candidate) -> bool:
        """Whether the output of `last` was made of that of `first`, by the graph alone."""
        if last.name not in self._nodes:
            self._nodes[last.name] = _find_nodes(last.output)
        return first is last or _node(first.output) in self._nodes[last.name]

    def _explain_refusal(self) -> str:
        name = type(self.network).__name__
        for candidate in reversed(self.candidates):
            if others := self._beside.get(candidate.name):
                ways = [f"{c.name} {c.layout.grid}" for c in (candidate, *others[::-1])][:4]
                return (
                    f"{name} decides by several feature maps side by side, and none shows it all: "
                    f"{', '.join(ways)}; pass one of them as target_layer"
                )
        last = self.candidates[-6:]
        seen = "; ".join(f"{c.name} {c.layout.grid}: {c.refusal}" for c in last)
        return (
            f"no layer of {name} can be explained, pass target_layer "
            f"(seen: {seen or 'no feature map at all'})"
        )

    def _describe(self, chosen: Candidate) -> str:
        if chosen.layout.kind == "tokens":
            later = self.candidates[self.candidates.index(chosen) + 1 :]
            if not any("class token" in c.refusal for c in later):
                return "the last patch tokens before pooling"
            if chosen.name in _last_stages(self.network):
                return "the last block of patch tokens, which the class token then gathers"
            return "after it only the class token reaches the logits"
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


def _node(output: Tensor) -> Node:
    return torch.autograd.graph.get_gradient_edge(output).node


def _find_nodes(output: Tensor) -> set[Node]:
    """All that autograd would visit on the way back from `output`."""
    start = _node(output)
    seen, todo = {start}, [start]
    while todo:
        for node, _ in todo.pop().next_functions:
            if node is not None and node not in seen:
                seen.add(node)
                todo.append(node)
    return seen


def _last_stages(network: nn.Module) -> set[str]:
    """Names that timm gives the last stage, in `network`'s terms."""
    names = set()
    for name, model in timm_models(network):
        info: Any = getattr(model, "feature_info", None)
        if info:
            names.add(f"{name}.{info[-1]['module']}".lstrip("."))
    return names


def _is_same_map(candidate: Candidate, chosen: Candidate) -> bool:
    """Whether a container only hands on what this part of it has made."""
    inside = candidate is chosen or candidate.name.startswith(f"{chosen.name}.")
    return inside and (
        candidate.output.shape == chosen.output.shape
        and torch.equal(candidate.output, chosen.output)
    )
