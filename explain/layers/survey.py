"""Seeing, in one forward, which layers make feature maps and in what order."""

from collections import Counter, deque
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from litcam.explain.layers.choosing import Candidate, Chooser
from litcam.explain.layers.layout import TargetLayer, find_layout

# Enough to walk back over the last block of a transformer, norms and containers included.
NUM_CANDIDATES = 24


class Survey:
    """Records the last feature maps of one forward with their graph, for `Chooser`.

    Every module gets a hook for this one call. Only what autograd saves for the last
    `NUM_CANDIDATES` layers is kept, so memory stays near that of inference.

    Args:
        network: the network whose next forward is watched.
        images: the shape of its images, `(batch, channels, height, width)`.
        keep_graph: keep all that autograd saves, because the caller trains through this forward.
    """

    def __init__(self, network: nn.Module, images: torch.Size, keep_graph: bool) -> None:
        self._network, self._images = network, images
        self._candidates: deque[tuple[int, Candidate]] = deque(maxlen=NUM_CANDIDATES)
        self._calls: Counter[nn.Module] = Counter()
        self._after_pool = False
        self._saved = _SavedTensors()
        self._stack = ExitStack()
        for name, module in network.named_modules():
            if module is not network:
                hook = module.register_forward_hook(self._record(name))
                self._stack.callback(hook.remove)
        # Checkpointing saves the inputs of a whole block first, and keeps memory low by itself.
        if not keep_graph and not _checkpoints(network):
            self._stack.enter_context(
                torch.autograd.graph.saved_tensors_hooks(self._saved.pack, self._saved.unpack)
            )

    @property
    def num_candidates(self) -> int:
        """How many feature maps are at hand."""
        return len(self._candidates)

    def close(self) -> None:
        """Takes the hooks off; the graph stays usable."""
        self._stack.close()

    def choose(self, logits: Tensor) -> tuple[TargetLayer, Tensor]:
        """The target layer and its output in the graph of `logits`; errors as in `Chooser`."""
        candidates = [candidate for _, candidate in self._candidates]
        for candidate in candidates:
            if self._calls[candidate.module] > 1:
                candidate.refusal = "is called more than once"
        layer = Chooser(candidates, logits, self._network).choose()
        return layer, next(c.output for c in candidates if c.name == layer.name)

    def _record(self, name: str) -> Callable[[nn.Module, Any, Any], Tensor | None]:
        def after(module: nn.Module, args: Any, output: Any) -> Tensor | None:
            self._calls[module] += 1
            if next(module.children(), None) is None and not isinstance(module, nn.Identity):
                self._after_pool = "Pool" in type(module).__name__
            if self._after_pool or not _makes_features(module):
                return None
            if not isinstance(output, Tensor) or not output.is_floating_point():
                return None
            layout = find_layout(output.shape, self._images, self._network, module)
            if layout is None:
                return None
            if not output.requires_grad:
                output = output.detach().requires_grad_()
            self._candidates.append((self._saved.count, Candidate(name, module, output, layout)))
            self._saved.forget(self._candidates[0][0])
            # A clone, because an in-place ReLU may follow.
            return output.clone()

        return after


class _SavedTensors:
    """What autograd saves, apart from the graph: a tensor here that led to it would keep both."""

    def __init__(self) -> None:
        self.count = 0
        self.kept: dict[int, tuple[Tensor, int]] = {}

    def pack(self, tensor: Tensor) -> int:
        self.count += 1
        self.kept[self.count] = tensor.detach(), tensor._version
        return self.count

    def unpack(self, number: int) -> Tensor:
        if number not in self.kept:
            raise RuntimeError("gradient checkpointing hides the graph: pass target_layer")
        tensor, version = self.kept[number]
        if tensor._version != version:  # autograd cannot check it for tensors it did not keep
            raise RuntimeError("an in-place operation changed a tensor that the gradient needs")
        return tensor

    def forget(self, oldest: int) -> None:
        """Drops what only layers before the oldest candidate need for their backward."""
        while self.kept and (first := next(iter(self.kept))) <= oldest:
            del self.kept[first]


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
