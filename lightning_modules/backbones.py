"""timm models: made by name, frozen in part, and suited to the data and the machine."""

import difflib
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import lightning.pytorch as pl
import timm
import torch
from lightning.pytorch.utilities import rank_zero_warn
from timm.data import ImageNetInfo, infer_imagenet_subset
from timm.models import is_model, parse_model_name, split_model_name_tag
from torch import nn

from litcam.lightning_modules.hub import no_waiting_for_the_hub

__all__ = [
    "classifier_names",
    "create_backbone",
    "freeze_modules",
    "has_pretrained_head",
    "prefer_plain_attention",
    "quiet_resampling",
    "start_near_zero",
    "to_channels_last",
    "warn_of_class_order",
    "warn_of_layer_decay",
]


def create_backbone(
    name: str, num_classes: int | None, *, pretrained: bool = False, **options: Any
) -> nn.Module:
    """Make a timm model; arguments that are None are left at the model's own default.

    One that is 0 is left out where the model does not have it.

    Raises:
        ValueError: if timm does not know the name, the model does not take an option, or the
            pretrained weights cannot be had.
    """
    _check_name(name)
    given = {key: value for key, value in options.items() if value is not None}
    head = {} if num_classes is None else {"num_classes": num_classes}
    try:
        hub = no_waiting_for_the_hub() if pretrained else nullcontext()
        with quiet_resampling(), hub:
            return timm.create_model(name, pretrained=pretrained, **head, **given)
    except TypeError as error:
        refused = re.search(r"unexpected keyword argument '(\w+)'", str(error))
        # What a network has not is off: VGG and DenseNet know no stochastic depth.
        if refused and given.get(refused[1]) == 0:
            options = {key: value for key, value in given.items() if key != refused[1]}
            return create_backbone(name, num_classes, pretrained=pretrained, **options)
        raise ValueError(f"backbone {name} cannot be made with {given}: {error}") from None
    except Exception as error:
        if not pretrained:
            raise
        reason = f"{type(error).__name__}: {str(error).partition('. ')[0].splitlines()[0]}"
        raise ValueError(
            f"backbone {name}: no pretrained weights ({reason}); connect to the internet once, "
            "or pass weights=FILE with weights you have, or pretrained=False"
        ) from None


@contextmanager
def quiet_resampling() -> Iterator[None]:
    """Silence what torch grumbles about in timm's resampling of Swin's tables."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Using a non-tuple sequence|torch.searchsorted")
        yield


def _check_name(backbone: str) -> None:
    source, name = parse_model_name(backbone)
    if source:  # hf-hub:… and local-dir:… are timm's to look up
        return
    architecture, tag = split_model_name_tag(name)
    if not is_model(architecture):
        known = timm.list_models()
        close = difflib.get_close_matches(architecture, known, 5) or [
            each for each in known if each.startswith(architecture[:4])
        ]
        hint = f"close: {', '.join(close[:5])}" if close else "see timm.list_models()"
        raise ValueError(f"timm has no backbone {backbone!r}; {hint}")
    tags = timm.list_pretrained(f"{architecture}.*") if tag else []
    if tag and name not in tags:
        has = ", ".join(tags) or "none"
        raise ValueError(f"backbone {architecture} has no weights {tag!r}; it has: {has}")


def freeze_modules(backbone: nn.Module, names: list[str]) -> list[nn.Module]:
    """Take gradients from the modules (or parameters) named; return the modules among them.

    The caller keeps those in eval mode. timm's ``freeze`` is not used: it swaps BatchNorm layers
    for another class, and the backbone is to stay unmodified.

    Raises:
        ValueError: if the backbone has no such module; the message has close matches.
    """
    modules = {name: module for name, module in backbone.named_modules() if name}
    parameters = dict(backbone.named_parameters())
    for name in names:
        if name in modules:
            modules[name].requires_grad_(False)
        elif name in parameters:
            parameters[name].requires_grad_(False)
        else:
            close = difflib.get_close_matches(name, [*modules, *parameters])
            hint = ", ".join(close or [child for child, _ in backbone.named_children()])
            raise ValueError(f"freeze: {name!r} is not in the backbone; close: {hint}")
    return [modules[name] for name in names if name in modules]


def classifier_names(backbone: nn.Module) -> tuple[str, ...]:
    """Return the names of its last linear layers, as timm tells them."""
    names = (getattr(backbone, "pretrained_cfg", None) or {}).get("classifier") or ()
    return (names,) if isinstance(names, str) else tuple(names)


def has_pretrained_head(backbone: Any) -> bool:
    """Tell whether timm's weights of this network are for as many classes as it has."""
    return bool(backbone.num_classes == backbone.pretrained_cfg.get("num_classes"))


@torch.no_grad()
def start_near_zero(backbone: nn.Module) -> None:
    """Have a fresh head on trained features answer next to nothing.

    Then the first loss is the logarithm of the classes. timm's heads of EfficientNet and
    MobileNetV3 begin with weights that spread by 0.41 for two classes, and their large wrong
    answers spoil the features in the first steps.
    """
    for name in classifier_names(backbone):
        head = backbone.get_submodule(name)
        for key, parameter in head.named_parameters():
            parameter.zero_() if key.endswith("bias") else nn.init.normal_(parameter, std=0.01)


def to_channels_last(backbone: nn.Module) -> None:
    """Lay the weights of 2D convolutions out with channels last, in place.

    What a convolution puts out follows its weights, whatever came in.
    """
    for module in backbone.modules():
        if isinstance(module, nn.Conv2d):
            module.to(memory_format=torch.channels_last)


def prefer_plain_attention(module: pl.LightningModule) -> None:
    """Have timm's attention written out on a CPU in bfloat16, where torch's backward of it is slow.

    A training step of ViT-S takes 0.87 of the time
    (``python benchmarks/speed/mae.py --precision bf16``).
    """
    if module.device.type != "cpu" or not str(module.trainer.precision).startswith("bf16"):
        return
    for layer in module.modules():
        if getattr(layer, "fused_attn", False):
            layer.fused_attn = False  # type: ignore[assignment]


def warn_of_class_order(backbone: nn.Module, classes: list[str]) -> None:
    """Warn if the pretrained head counts ImageNet's classes in another order than the data.

    Args:
        backbone: a pretrained timm model that kept its head.
        classes: the data's classes in order, as synsets (``n01440764``) or words (``tench``).
    """
    config: Any = backbone.pretrained_cfg
    subset = infer_imagenet_subset(config)
    if subset is None or config["num_classes"] != len(classes):
        return
    info = ImageNetInfo(subset)
    for index, (given, synset) in enumerate(zip(classes, info.label_names(), strict=True)):
        words = info.label_name_to_description(synset).lower()
        if given != synset and given.lower() not in (words, *words.split(", ")):
            rank_zero_warn(
                f"the pretrained head of {config['architecture']} takes class "
                f"{index} for {synset!r} ({words}), the data for {given!r}; sort the class folders "
                "by synset, or the head has to learn the classes anew"
            )
            return


def warn_of_layer_decay(layer_decay: float) -> None:
    """Warn that rates which keep trained layers as they are would also keep random ones."""
    rank_zero_warn(
        f"layer_decay={layer_decay:g} nearly stops the first layers, and their weights are random: "
        "pass pretrained=True or weights=FILE, or layer_decay=1 to train from scratch"
    )
