"""Parameter groups with real layer-wise decay.

* groups are timm's (no decay on norms, biases and what the model names in ``no_weight_decay``)
* timm only *stores* the layer-wise scale for its own schedulers; here it is multiplied into ``lr``
"""

from typing import Any

from timm.optim import param_groups_layer_decay, param_groups_weight_decay
from torch import nn

from litcam.lightning_modules.backbones import classifier_names

__all__ = ["norm_parameters", "parameter_groups"]


def norm_parameters(model: nn.Module) -> set[nn.Parameter]:
    """Return the scales and shifts of every normalisation layer, timm's own layers included."""
    # By class name: timm has a dozen norms that share no base class (RmsNorm, GRN, EvoNorm, …).
    norms = (module for module in model.modules() if "norm" in type(module).__name__.lower())
    return {p for norm in norms for p in norm.parameters(recurse=False) if p.ndim <= 1}


def parameter_groups(
    model: nn.Module,
    lr: float,
    *,
    weight_decay: float = 0.05,
    layer_decay: float = 1.0,
    norm_lr_scale: float = 1.0,
    head_lr_scale: float = 1.0,
) -> list[dict[str, Any]]:
    """Sort the trainable parameters into named groups that share learning rate and weight decay.

    Args:
        model: a timm model; frozen parameters are left out.
        lr: learning rate of the last layer.
        weight_decay: for matrices and kernels; vectors, biases and ``no_weight_decay()`` get none.
        layer_decay: factor from each layer to the one below it (BEiT, arXiv:2106.08254).
        norm_lr_scale: factor on the learning rate of normalisation layers.
        head_lr_scale: factor on the learning rate of the classifier.

    Returns:
        Groups with ``name``, ``params``, ``lr`` and ``weight_decay``, first layer first: two of
        them (``decay``, ``no_decay``), ``norm``, ``head_decay`` and ``head_no_decay`` where those
        have their own rate, and this once a layer (``layer03_decay``, …) where rates differ by
        layer.
    """
    norms = norm_parameters(model) if norm_lr_scale != 1 else set()
    heads = _head_parameters(model) if head_lr_scale != 1 else set()
    factors = {"norm": norm_lr_scale, "head_decay": head_lr_scale, "head_no_decay": head_lr_scale}
    split: dict[tuple[float, str], dict[str, Any]] = {}
    for group in _timm_groups(model, weight_decay, layer_decay):
        for parameter in group["params"]:
            decay_kind = "decay" if group["weight_decay"] else "no_decay"
            kind = "norm" if parameter in norms else decay_kind
            kind = f"head_{decay_kind}" if parameter in heads else kind
            scale = group.get("lr_scale", 1.0)
            rate = lr * scale * factors.get(kind, 1.0)
            shared = {"params": [], "lr": rate, "weight_decay": group["weight_decay"]}
            split.setdefault((scale, kind), shared)["params"].append(parameter)
    layers = {scale: index for index, scale in enumerate(sorted({scale for scale, _ in split}))}
    return [
        {"name": f"layer{layers[scale]:02d}_{kind}" if len(layers) > 1 else kind, **split[key]}
        for key in sorted(split)
        for scale, kind in [key]
    ]


def _head_parameters(model: nn.Module) -> set[nn.Parameter]:
    heads = (model.get_submodule(name) for name in classifier_names(model))
    return {parameter for head in heads for parameter in head.parameters()}


def _timm_groups(model: nn.Module, weight_decay: float, layer_decay: float) -> list[dict[str, Any]]:
    named = getattr(model, "no_weight_decay", None)
    exempt = named() if callable(named) else ()
    if layer_decay == 1:
        groups = param_groups_weight_decay(model, weight_decay, no_weight_decay_list=exempt)
    else:
        groups = param_groups_layer_decay(
            model, weight_decay, no_weight_decay_list=exempt, layer_decay=layer_decay
        )
    return list(groups)
