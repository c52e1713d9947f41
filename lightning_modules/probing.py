"""Linear probes: a fresh head on features that stand still, as they are or standardised."""

from typing import Any

import torch
from torch import Tensor, nn

from litcam.lightning_modules.backbones import classifier_names, start_near_zero

__all__ = ["StandardisedLinear", "freeze_all_but_head", "plain_heads"]

NORM, EPSILON = "probe_norm", 1e-6


class StandardisedLinear(nn.Linear):
    """A linear layer on features that a BatchNorm without parameters has brought to one scale.

    MAE's probe (arXiv:2111.06377, appendix A.1): features of pixels differ in scale from channel
    to channel, and one learning rate has to do for all of them. Once trained it is a linear layer
    like any other, see `plain_heads`.

    Shapes: `(batch, in_features)` to `(batch, out_features)`.
    """

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__(in_features, out_features)
        self.probe_norm = nn.BatchNorm1d(in_features, eps=EPSILON, affine=False)

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - torch's name
        """The classes' scores."""
        return super().forward(self.probe_norm(input))


def freeze_all_but_head(backbone: nn.Module, *, standardised: bool = False) -> list[nn.Module]:
    """Give the backbone a fresh head and freeze the rest; return the modules to keep in eval mode.

    A linear probe on features that stand still: no dropout and no BatchNorm update before the head.

    Args:
        backbone: a timm model.
        standardised: its head becomes a `StandardisedLinear`.

    Raises:
        ValueError: the head to be standardised is no linear layer.
    """
    model: Any = backbone.requires_grad_(False)
    model.reset_classifier(model.num_classes)
    for name in classifier_names(model) if standardised else ():
        head = model.get_submodule(name)
        if type(head) is not nn.Linear:
            raise ValueError(
                f"linear_probe='batchnorm' needs a linear head, and {type(model).__name__}.{name} "
                f"is {type(head).__name__}; take linear_probe=True"
            )
        model.set_submodule(name, StandardisedLinear(head.in_features, head.out_features))
    start_near_zero(model)
    found = model.get_classifier()
    heads = found if isinstance(found, tuple) else (found,)
    kept = {part for head in heads for part in head.requires_grad_(True).modules()}
    # A module around the head keeps training: eval() on it would reach the head inside.
    return [module for module in backbone.modules() if not kept & set(module.modules())]


def plain_heads(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """A state dict in which every `StandardisedLinear` is the linear layer that it amounts to.

    >>> head = StandardisedLinear(2, 1).eval()
    >>> sorted(plain_heads(head.state_dict()))
    ['bias', 'weight']
    """
    plain = dict(tensors)
    for key, mean in tensors.items():
        if not key.endswith(f"{NORM}.running_mean"):
            continue
        head = key.removesuffix(f"{NORM}.running_mean")
        parts = (tensors.get(f"{head}{name}") for name in ("weight", "bias", f"{NORM}.running_var"))
        weight, bias, variance = parts
        # One that is not whole stays as it is, and is refused as what it is.
        if weight is None or bias is None or variance is None:
            continue
        if weight.ndim == 2 and weight.shape[1:] == mean.shape == variance.shape:
            scaled = weight / torch.sqrt(variance + EPSILON)
            plain |= {f"{head}weight": scaled, f"{head}bias": bias - scaled @ mean}
            for name in ("running_mean", "running_var", "num_batches_tracked"):
                plain.pop(f"{head}{NORM}.{name}", None)
    return plain
