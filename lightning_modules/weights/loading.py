"""State dicts into a timm network: by name where names fit, by order where only shapes do.

A file goes into any number of classes and any image size: a head of another size is left fresh,
and timm's own checkpoint filter resamples position embeddings and bias tables. What does not fit
is refused by name, never skipped.
"""

import copy
import sys
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import torch
from lightning.pytorch.utilities import rank_zero_info
from timm.models import clean_state_dict
from torch import Tensor, nn

from litcam.lightning_modules.backbones import classifier_names, quiet_resampling
from litcam.lightning_modules.weights.guessing import guess_architecture
from litcam.lightning_modules.weights.reading import StateDict, read_state_dicts
from litcam.lightning_modules.weights.torchvision_names import (
    compare_answers,
    find_torchvision,
    rename_torchvision,
)

__all__ = ["load_weights"]

# What pretraining of others leaves beside the encoder, and this network does not have.
BESIDE = ("decoder_", "mask_token")
# The order of what says nothing but how it was made.
NO_WEIGHTS = ("num_batches_tracked", "relative_position_index", "attn_mask")


@dataclass
class Fit:
    """How a state dict fits a network.

    Attributes:
        tensors: By the network's own names.
        fresh: Names of the network's that keep their own values.
        problems: What is missing, unexpected and misshapen, by kind.
        told: Where the tensors were, for the user.
        left: How many tensors of the file belong to something else.
        given: The file's tensors, before they were made to fit.
    """

    tensors: dict[str, Tensor]
    fresh: list[str] = field(default_factory=list)
    problems: dict[str, list[str]] = field(default_factory=dict)
    told: str = ""
    left: int = 0
    given: dict[str, Tensor] = field(default_factory=dict)

    @property
    def fits(self) -> bool:
        """Whether nothing is missing, unexpected or misshapen."""
        return not any(self.problems.values())

    @property
    def badness(self) -> int:
        """How many tensors are."""
        return sum(map(len, self.problems.values()))


def load_weights(model: nn.Module, source: str | Path, *, head_of_file: bool = False) -> str:
    """Load weights of any origin into a timm model in place, and say in a line what was loaded.

    A plain state dict of timm's or torchvision's, a checkpoint of timm's `train.py` (its averaged
    weights, where it has them), of DeiT, MAE, DINO or SimMIM, of any LightningModule that holds the
    network under some name, `model.safetensors`, or a folder with one of them. A head of another
    number of classes keeps the model's fresh weights. So does a pooling norm (``fc_norm``) where
    the file was made with the other kind of pooling.

    Args:
        model: a timm model.
        source: file or folder.
        head_of_file: give the model as many classes as the file has, or none if it has no head.

    Returns:
        That line.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it cannot be read, or any other tensor is missing, unknown or of another
            shape; the message names them.
    """
    candidates = read_state_dicts(source)
    if head_of_file:
        _take_number_of_classes(model, candidates[0])
    fits = [_fit_by_name(model, each) for each in candidates]
    best = min(fits, key=lambda fit: fit.badness)  # of equals the first
    if not best.fits:
        ordered = (_fit_by_order(model, each, source) for each in candidates)
        best = next((fit for fit in ordered if fit), best)
    if not best.fits:
        raise ValueError(_refuse(source, model, best))
    # PyTorch fills in counters that are not there, and older files have none.
    own = [key for key in model.state_dict() if key in best.tensors or not _is_counter(key)]
    model.load_state_dict(best.tensors, strict=False)
    loaded = f"{len(best.tensors)} of {len(own)} tensors loaded from {source}"
    told = [best.told] if best.told else []
    if best.fresh:
        told.append(f"fresh: {', '.join(best.fresh)}")
    if best.left:
        told.append(f"{best.left} of the file left out")
    line = "; ".join([loaded, *told])
    rank_zero_info(line)
    return line


def _take_number_of_classes(model: Any, given: StateDict) -> None:
    own = model.state_dict()
    tensors, prefix = _in_timms_names(own, given)
    weights = [f"{prefix}{name}.weight" for name in classifier_names(model)]
    found = next((tensors[key] for key in weights if key in tensors), None)
    if found is None and not prefix and not own.keys() & tensors.keys():  # names of its own
        found = next(reversed(tensors.values()))
    num_classes = 0 if found is None else len(found)
    if num_classes != model.num_classes:
        model.reset_classifier(num_classes)


def _fit_by_name(model: nn.Module, given: StateDict) -> Fit:
    own = model.state_dict()
    cleaned, prefix = _in_timms_names(own, given)
    tensors = {k[len(prefix) :]: v for k, v in cleaned.items() if k.startswith(prefix)}
    left = len(cleaned) - len(tensors)
    beside = {key for key in tensors if key.startswith(BESIDE) and key not in own}
    tensors = {key: value for key, value in tensors.items() if key not in beside}
    given_by_name, problems = tensors, dict[str, list[str]]()
    try:
        tensors = _resample(tensors, model)
    except Exception as error:  # timm's filters are written for its own files
        problems["unreadable by timm"] = [f"{type(error).__name__}: {_first_line(error)}"]
    heads = tuple(f"{name}." for name in classifier_names(model))
    # A head of another size, or of none.
    other = {
        key
        for key in own.keys() | tensors.keys()
        if key.startswith(heads)
        and (key not in own or key not in tensors or own[key].shape != tensors[key].shape)
    }
    if other:
        other = {key for key in own.keys() | tensors.keys() if key.startswith(heads)}
    fresh = (other & own.keys()) | _pooling_norm(own, tensors)
    foreign = (other & tensors.keys()) | _pooling_norm(tensors, own)
    wanted, found = own.keys() - fresh, tensors.keys() - foreign
    wanted -= {key for key in wanted - found if _is_counter(key)}
    problems |= {
        "missing": sorted(wanted - found),
        "unexpected": sorted(found - wanted),
        "misshapen": [
            f"{key} {tuple(tensors[key].shape)} for {tuple(own[key].shape)}"
            for key in sorted(wanted & found)
            if tensors[key].shape != own[key].shape
        ],
    }
    fitting = {key: tensors[key] for key in wanted & found}
    where = [f"`{given.place}`"] if given.place else []
    where += [f"names after `{prefix}`"] if prefix else []
    told = ", ".join(where)
    left += len(beside) + len(foreign)
    return Fit(fitting, sorted(fresh), problems, told, left, given_by_name)


def _is_counter(key: str) -> bool:
    return key.endswith("num_batches_tracked")


def _in_timms_names(own: dict[str, Tensor], given: StateDict) -> tuple[dict[str, Tensor], str]:
    """The tensors, and what still stands before their names."""
    tensors = rename_torchvision(clean_state_dict(given.tensors))
    return tensors, _find_prefix(own, tensors)


def _find_prefix(own: dict[str, Tensor], tensors: dict[str, Tensor]) -> str:
    """What stands before most of the network's names: another module's name for it."""
    found: Counter[str] = Counter()
    for key in tensors:
        parts = key.split(".")
        for at in range(len(parts)):
            if ".".join(parts[at:]) in own:
                found["".join(f"{part}." for part in parts[:at])] += 1
                break
    if not found:
        return ""
    most = max(found.values())
    return min((prefix for prefix, times in found.items() if times == most), key=len)


def _fit_by_order(model: nn.Module, given: StateDict, source: str | Path) -> Fit | None:
    """Where a file's names are its own and its tensors are the network's, one after the other.

    Raises:
        ValueError: if it is a file of torchvision's whose network computes otherwise.
    """
    ours = [item for item in model.state_dict().items() if not item[0].endswith(NO_WEIGHTS)]
    theirs = [item for item in given.tensors.items() if not item[0].endswith(NO_WEIGHTS)]
    if len(ours) != len(theirs):
        return None
    heads = tuple(f"{name}." for name in classifier_names(model))
    tensors, fresh = {}, []
    for (name, mine), (their_name, value) in zip(ours, theirs, strict=True):
        if not _same_kind(name, their_name):
            return None
        if mine.numel() == value.numel():
            tensors[name] = value.reshape(mine.shape)
        elif name.startswith(heads):
            fresh.append(name)
        else:
            return None
    told = "by the order of its tensors, whose names are unknown: look at some of its answers"
    if network := find_torchvision(given.tensors, _name(model)):
        if problem := compare_answers(network, given.tensors, _whole(model, tensors, theirs)):
            raise ValueError(f"weights {source} are of torchvision's {network}: {problem}")
        told = f"of torchvision's {network}, by the order of its tensors; answers are the same"
    return Fit(tensors, fresh, told=told)


def _same_kind(ours: str, theirs: str) -> bool:
    kinds = ("weight", "bias", "running_mean", "running_var")
    mine, other = ours.rpartition(".")[2], theirs.rpartition(".")[2]
    return mine == other or (mine not in kinds and other not in kinds)


def _whole(
    model: nn.Module, tensors: dict[str, Tensor], theirs: list[tuple[str, Tensor]]
) -> nn.Module:
    """A copy of the model with all weights of the file, its head as well."""
    made: Any = copy.deepcopy(model)
    made.reset_classifier(len(theirs[-1][1]))
    names = [name for name in made.state_dict() if not name.endswith(NO_WEIGHTS)]
    head = {name: value for name, (_, value) in zip(names, theirs, strict=True)}
    made.load_state_dict({**head, **tensors}, strict=False)
    return cast(nn.Module, made)


def _resample(tensors: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Let timm resample what depends on the image size, by the filter beside the model's class."""
    resample = getattr(sys.modules[type(model).__module__], "checkpoint_filter_fn", None)
    if resample is None:
        return tensors
    # Some filters take a state dict without a classifier for a foreign, older layout and rename
    # its keys (Swin's in timm up to 1.0.26 or so), so that a headless encoder needs a stand-in.
    stand_ins = {f"{name}.weight": torch.zeros(0) for name in classifier_names(model)}
    with quiet_resampling():
        resampled = dict(resample({**stand_ins, **tensors}, model))
    return {key: value for key, value in resampled.items() if value.numel() or key in tensors}


def _pooling_norm(of: dict[str, Tensor], against: dict[str, Tensor]) -> set[str]:
    """Return the final norm's keys where one side pools by class token and the other by mean."""
    mine = {key for key in of if key.startswith(("norm.", "fc_norm."))}
    theirs = {key for key in against if key.startswith(("norm.", "fc_norm."))}
    return mine - theirs if mine and theirs and not mine & theirs else set()


def _name(model: nn.Module) -> str:
    return (getattr(model, "pretrained_cfg", None) or {}).get("architecture", type(model).__name__)


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]


def _refuse(source: str | Path, model: nn.Module, fit: Fit) -> str:
    """Lists of tensor names are cut to their first three."""
    told = [
        f"{len(names)} {kind}: {', '.join(names[:3])}{', …' if len(names) > 3 else ''}"
        for kind, names in fit.problems.items()
        if names
    ]
    heads = tuple(f"{name}." for name in ("head", "fc", "classifier", "head_dist"))
    network = guess_architecture(fit.given, heads, _name(model))
    remedy = "use the backbone and backbone_args they were made with"
    if network:
        remedy = f"they fit {network}"
    return f"weights {source} do not fit {_name(model)} ({'; '.join(told)}); {remedy}"
