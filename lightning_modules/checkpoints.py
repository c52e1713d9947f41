"""Encoders out of and into safetensors files, with a report of what was loaded.

A file goes into any class count and image size: the classifier is left out, and timm's own
checkpoint filter resamples position embeddings and bias tables. What does not fit is refused
by name, never skipped.
"""

import argparse
import json
import pickle
import sys
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import timm
import torch
from lightning.pytorch.utilities import rank_zero_info
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from timm.models import load_state_dict
from torch import Tensor, nn

from litcam.lightning_modules.backbones import quiet_resampling
from litcam.lightning_modules.sharding import whole_state

__all__ = ["load_encoder", "read_facts", "read_tensors", "save_encoder", "save_pretrained"]

# litcam's own checkpoints hold the encoder beside other things, under one of these.
_PREFIXES = ("encoder.", "backbone.")
# The MAE and SimMIM authors' checkpoints hold these beside the encoder's.
_DECODER = ("decoder_", "mask_token")


def save_encoder(
    encoder: nn.Module,
    file: str | Path,
    facts: dict[str, Any] | None = None,
    *,
    write: bool = True,
) -> Path:
    """Write a timm model's state dict to a safetensors file, whole or not at all.

    Under ``fully_shard`` a collective: every process comes here, and one of them writes.

    Args:
        encoder: the model.
        file: where to.
        facts: what it was made with, for `read_facts`; plain values.
        write: whether this process does.
    """
    file, state = Path(file), whole_state(encoder, keep=write)
    if not write:
        return file
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_name(f"{file.name}.partial")
    # Copies: safetensors refuses tensors that share memory.
    tensors = {key: value.detach().cpu().clone() for key, value in state.items()}
    # The format's metadata are strings.
    told = {} if facts is None else {"litcam": json.dumps(facts)}
    save_file(tensors, partial, metadata={"format": "pt", **told})
    partial.replace(file)
    return file


def read_facts(file: str | Path) -> dict[str, Any]:
    """Read what an encoder was made with out of its safetensors file; empty where it tells nothing.

    Raises:
        ValueError: if the file cannot be read.
    """
    try:
        with safe_open(file, "pt") as opened:
            told = (opened.metadata() or {}).get("litcam", "{}")
        return dict(json.loads(told))
    except (SafetensorError, ValueError, TypeError, RecursionError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ValueError(f"{file} is not a readable safetensors file ({reason})") from None


def save_pretrained(module: Any) -> Path | None:
    """Write what a masked autoencoder learned beside its checkpoints, on rank zero.

    Every process comes here: none of them may have the whole weights.

    Three files: ``encoder.safetensors`` (timm's keys, for ``Classifier(encoder=FILE)`` or timm
    itself), ``decoder.safetensors``, and ``encoder.json`` with what they were made with. The
    encoder's file tells the same in its metadata, for when it travels alone.

    Args:
        module: a `MAE` under a trainer.

    Returns:
        The encoder's file, or None where the run keeps no checkpoints or another process writes.
    """
    trainer: pl.Trainer = module.trainer
    folder = getattr(trainer.checkpoint_callback, "dirpath", None)
    if folder is None or getattr(trainer, "fast_dev_run", False):
        return None
    folder, write = Path(folder), trainer.is_global_zero
    save_encoder(module.decoder, folder / "decoder.safetensors", write=write)
    if not write:
        save_encoder(module.encoder, folder / "encoder.safetensors", write=False)
        return None
    data, config = getattr(trainer, "datamodule", None), module.encoder.pretrained_cfg
    names = "backbone backbone_args image_size mask_ratio norm_pix_loss loss"
    facts = {
        **{name: module.hparams[name] for name in names.split()},
        "image_size": module.image_size,
        "cell_size": module.cell_size,
        "mean": list(getattr(data, "mean", None) or config["mean"]),
        "std": list(getattr(data, "std", None) or config["std"]),
        "decoder": {"dim": module.decoder.dim, "depth": module.decoder.depth},
        "epoch": trainer.current_epoch,
        "step": trainer.global_step,
        "timm": timm.__version__,
    }
    (folder / "encoder.json").write_text(json.dumps(facts, indent=2) + "\n")
    return save_encoder(module.encoder, folder / "encoder.safetensors", facts)


def load_encoder(model: nn.Module, file: str | Path) -> None:
    """Load a timm state dict, with or without a classifier, into a timm model in place.

    The model's classifier keeps its fresh weights. So does a pooling norm (``fc_norm``) where
    the file was made with the other kind of pooling. One log line says how much was loaded.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the file is not a state dict, or any other tensor is missing, unknown or
            of another shape; the message names them.
    """
    tensors = _filtered(read_tensors(file), model, file)
    own = model.state_dict()
    heads = tuple(f"{name}." for name in _classifier_names(model))
    fresh = {key for key in own if key.startswith(heads)} | _pooling_norm(own, tensors)
    foreign = {key for key in tensors if key.startswith(heads)} | _pooling_norm(tensors, own)
    wanted, given = own.keys() - fresh, tensors.keys() - foreign
    _refuse(
        file,
        model,
        missing=sorted(wanted - given),
        unexpected=sorted(given - wanted),
        misshapen=[
            f"{key} {tuple(tensors[key].shape)} for {tuple(own[key].shape)}"
            for key in sorted(wanted & given)
            if tensors[key].shape != own[key].shape
        ],
    )
    model.load_state_dict({key: tensors[key] for key in wanted}, strict=False)
    kept = f"; fresh: {', '.join(sorted(fresh))}" if fresh else ""
    rank_zero_info(f"{len(wanted)} of {len(own)} tensors loaded from {file}{kept}")


def read_tensors(file: str | Path) -> dict[str, Tensor]:
    """Read a state dict from a safetensors or torch file, weights only.

    Of a litcam checkpoint this is the encoder alone.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it holds anything but tensors.
    """
    if not Path(file).is_file():
        raise FileNotFoundError(f"encoder file {file} does not exist; check the path of `encoder`")
    try:
        # Plain options, as the MAE authors' files hold them beside the weights, run no code.
        with torch.serialization.safe_globals([argparse.Namespace]):
            loaded = load_state_dict(str(file), weights_only=True)
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError, ValueError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else repr(error)
        raise ValueError(
            f"encoder file {file} is not a readable state dict ({reason}); "
            "write it with `litcam.lightning_modules.checkpoints.save_encoder(model, file)`"
        ) from None
    tensors = {key: value for key, value in loaded.items() if isinstance(value, Tensor)}
    if not tensors:
        raise ValueError(f"encoder file {file} holds no tensors; it must be a timm state dict")
    for prefix in _PREFIXES:
        if any(key.startswith(prefix) for key in tensors):
            tensors = {
                key.removeprefix(prefix): value
                for key, value in tensors.items()
                if key.startswith(prefix)
            }
    return {key: value for key, value in tensors.items() if not key.startswith(_DECODER)}


def _classifier_names(model: nn.Module) -> tuple[str, ...]:
    names = (getattr(model, "pretrained_cfg", None) or {}).get("classifier") or ()
    return (names,) if isinstance(names, str) else tuple(names)


def _filtered(tensors: dict[str, Tensor], model: nn.Module, file: str | Path) -> dict[str, Tensor]:
    """Let timm resample what depends on the image size, by the filter beside the model's class."""
    resample = getattr(sys.modules[type(model).__module__], "checkpoint_filter_fn", None)
    if resample is None:
        return tensors
    # Some filters take a state dict without a classifier for a foreign, older layout and rename
    # its keys (Swin's in timm up to 1.0.26 or so), so that a headless encoder needs a stand-in.
    stand_ins = {f"{name}.weight": torch.zeros(0) for name in _classifier_names(model)}
    try:
        with quiet_resampling():
            return dict(resample({**stand_ins, **tensors}, model))
    except (KeyError, AttributeError, RuntimeError, ValueError, AssertionError) as error:
        raise ValueError(
            f"encoder file {file} does not fit {_name(model)} ({type(error).__name__}: "
            f"{str(error).splitlines()[0]}); use the backbone the file was made with"
        ) from None


def _pooling_norm(of: dict[str, Tensor], against: dict[str, Tensor]) -> set[str]:
    """Return the final norm's keys where one side pools by class token and the other by mean."""
    mine = {key for key in of if key.startswith(("norm.", "fc_norm."))}
    theirs = {key for key in against if key.startswith(("norm.", "fc_norm."))}
    return mine - theirs if mine and theirs and not mine & theirs else set()


def _name(model: nn.Module) -> str:
    return (getattr(model, "pretrained_cfg", None) or {}).get("architecture", type(model).__name__)


def _refuse(file: str | Path, model: nn.Module, **problems: list[str]) -> None:
    """Raise if any list of tensor names is not empty; long lists are cut to their first five."""
    told = [
        f"{len(names)} {kind}: {', '.join(names[:5])}{', …' if len(names) > 5 else ''}"
        for kind, names in problems.items()
        if names
    ]
    if told:
        raise ValueError(
            f"encoder file {file} does not fit {_name(model)} ({'; '.join(told)}); "
            "use the backbone and backbone_args the file was made with"
        )
