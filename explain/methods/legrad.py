"""LeGrad: which patches' attention forms the answer, in every block of a ViT."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from einops import einsum, rearrange, reduce
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from litcam.explain.forward.untouched import ours
from litcam.explain.layers.layout import TargetLayer
from litcam.explain.methods.vit import find_vit, starting_at

SOFTMAX: tuple[Callable[..., Any], ...] = (F.softmax, torch.softmax, Tensor.softmax)
PRODUCTS: tuple[Callable[..., Any], ...] = (torch.matmul, Tensor.matmul, Tensor.__matmul__)
# How far norm and head of the last block may be from the network's own answer, in shares of it.
CLOSE = 1e-2


class LeGrad:
    """The positive gradients of a class with respect to the attention of every block.

    Bousselham et al., "LeGrad: An Explainability Method for Vision Transformers via Feature
    Formation Sensitivity", 2024, https://arxiv.org/abs/2404.03214: after each block its tokens are
    averaged and go through the network's own norm and head; the score of the class there is
    differentiated with respect to that block's attention, cut at 0, and averaged over heads, over
    the tokens that attend, and here over blocks. Where the network itself averages its patches
    before the head, this is done with all its own steps.

    The attention is never made: of its product with the values, `out = attention @ values`, the
    gradient with respect to it is `gradient(out) @ values.T`. So fused attention stays fused and
    the logits are those of the plain forward.

    Args:
        network: holds a timm ViT.

    Raises:
        ValueError: it holds none, or one that pools its tokens by attention.
    """

    answers_alone = False

    def __init__(self, network: nn.Module) -> None:
        self._name, self._vit = find_vit(network, "legrad")
        pool = str(getattr(self._vit, "global_pool", "token"))
        if pool not in ("token", "avg", ""):
            raise ValueError(
                f"method 'legrad' needs a class token or an average over patches: the head of this "
                f"{type(self._vit).__name__} pools them by {pool!r}; take libragrad or gradcam"
            )
        self._by_token = pool == "token"
        self._answers = False
        self.release()

    def release(self) -> None:
        """Lets what was kept go."""
        # Of each block: its output, and the values and outcome of each attention in it.
        self._tokens: dict[int, Tensor] = {}
        self._attended: dict[int, list[tuple[Tensor, Tensor]]] = {}
        self._start: list[Tensor] = []

    @contextmanager
    def watching(self, images: Tensor) -> Iterator[None]:
        """Keeps what each block makes in the forward of these images."""
        self.release()
        attentions = _Attentions()
        with ExitStack() as stack:
            stack.enter_context(starting_at(self._vit.blocks[0], self._start))
            for place, block in enumerate(self._vit.blocks):
                begin = ours(partial(self._begin, attentions, place))
                stack.callback(block.register_forward_pre_hook(begin).remove)
                end = ours(partial(self._end, attentions, place))
                stack.callback(block.register_forward_hook(end).remove)
            stack.enter_context(attentions)
            yield

    def find_problem(self, logits: Tensor, layer: TargetLayer) -> str:
        """Why these logits cannot be explained so, or an empty line."""
        name = type(self._vit).__name__
        for place in range(len(self._vit.blocks)):
            if problem := self._find_problem_of(place):
                return f"method 'legrad' {problem} in block {place} of {name}"
        if not self._answers:
            # Of the first forward alone: the comparison waits for the device.
            with torch.no_grad():
                answer = self._vit.forward_head(self._vit.norm(self._tokens[len(self._tokens) - 1]))
            self._answers = answer.shape == logits.shape and _are_close(answer, logits)
        if not self._answers:
            return (
                f"method 'legrad' explains what norm and head of {name} answer, and that is "
                "not what this network answers: more follows, or target= makes another score of it"
            )
        return ""

    def _find_problem_of(self, place: int) -> str:
        found, tokens = self._attended.get(place, []), self._tokens.get(place)
        if not isinstance(tokens, Tensor) or not found:
            return "saw no attention by softmax"
        attending = {values.shape[-2] for values, _ in found}
        if attending != {tokens.shape[1]} or not all(out.requires_grad for _, out in found):
            return f"needs all {tokens.shape[1]} tokens to attend to all, not to {min(attending)},"
        if len({values.data_ptr() for values, _ in found}) < len(found):
            return "does not explain the difference of two attentions"
        return ""

    def made_at(self, layer: TargetLayer) -> TargetLayer:
        """All blocks."""
        name = f"{self._name}.blocks".lstrip(".")
        return TargetLayer(name, self._vit.blocks, layer.layout, "the attention of every block")

    def explain(self, logits: Tensor, classes: Tensor, layer: TargetLayer) -> Tensor:
        """Maps `(batch, height, width)` of one class an image, nowhere negative."""
        relevance = torch.zeros(())
        for place, tokens in self._tokens.items():
            with torch.enable_grad():
                score = self._score(tokens).gather(1, classes[:, None]).sum()
            for values, outcome in self._attended[place]:
                (gradient,) = torch.autograd.grad(score, outcome, retain_graph=True)
                by_query = einsum(gradient, values.detach(), "b h i d, b h j d -> b h i j")
                part = reduce(by_query.float().relu_(), "b h i j -> b j", "mean")
                relevance = relevance.to(part) + part
        maps = layer.layout.to_maps(rearrange(relevance / len(self._tokens), "b n -> b n 1"))
        return maps[:, 0]

    def _score(self, tokens: Tensor) -> Tensor:
        """Logits `(batch, num_classes)` of a block's tokens."""
        if self._by_token:
            # The head takes one or several of the first tokens: each of them is the average.
            first = max(1, self._vit.num_prefix_tokens)
            tokens = tokens.mean(1, keepdim=True).expand(-1, first, -1)
        logits: Tensor = self._vit.forward_head(self._vit.norm(tokens))
        return logits

    def _begin(self, attentions: "_Attentions", place: int, module: nn.Module, args: Any) -> None:
        attentions.found = self._attended.setdefault(place, [])

    def _end(
        self, attentions: "_Attentions", place: int, module: nn.Module, args: Any, output: Any
    ) -> None:
        attentions.found = None
        self._tokens[place] = output


class _Attentions(TorchFunctionMode):
    """Notes values and outcome `(batch, heads, num_tokens, channels)` of each attention.

    A function mode, because attention is mostly a function and no module, fused or in three steps.
    """

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[Tensor, Tensor]] | None = None
        self._shares: Tensor | None = None

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Calls `func`, and notes what it makes if it is attention."""
        kwargs = kwargs or {}
        output = func(*args, **kwargs)
        if self.found is None:
            return output
        if func is F.scaled_dot_product_attention:
            self.found.append((args[2] if len(args) > 2 else kwargs["value"], output))
        elif func in SOFTMAX or (func is F.dropout and args[0] is self._shares):
            self._shares = output
        elif func in PRODUCTS and args[0] is self._shares:
            self.found.append((args[1], output))
        return output


def _are_close(answer: Tensor, logits: Tensor) -> bool:
    scale = logits.detach().float().abs().amax().clamp_min(1e-6)
    return bool((answer.float() - logits.detach().float()).abs().amax() <= CLOSE * scale)
