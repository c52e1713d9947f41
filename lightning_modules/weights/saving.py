"""Encoders into safetensors files, with what they were made with."""

import json
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import timm
from lightning.pytorch.callbacks import WeightAveraging
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from litcam.files import replacing, write_whole
from litcam.lightning_modules.parallel.sharding import whole_state

__all__ = ["averaged", "describe_data", "read_facts", "save_encoder", "save_pretrained"]


def averaged(module: pl.LightningModule) -> Any:
    """The copy that holds the moving average of a module, where a callback keeps one, or itself."""
    for callback in getattr(module._trainer, "callbacks", []):
        model = isinstance(callback, WeightAveraging) and callback._average_model
        if model:
            return model.module
    return module


def describe_data(datamodule: Any) -> dict[str, Any]:
    """Tell what images a network gets, in timm's words, as far as their datamodule does.

    Returns:
        Of ``mean`` and ``std`` (a value a channel, of pixels in [0, 1]), ``crop_pct`` and
        ``interpolation`` those that it has, as plain values, which any checkpoint may hold.
    """
    config, found = getattr(datamodule, "config", None), dict[str, Any]()
    for name in ("mean", "std", "crop_pct", "interpolation"):
        value = getattr(datamodule, name, getattr(config, name, None))
        if isinstance(value, list | tuple):
            found[name] = [float(each) for each in value]
        elif isinstance(value, float | str) and name not in ("mean", "std"):
            found[name] = value
    return found


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
    # Copies: safetensors refuses tensors that share memory.
    tensors = {key: value.detach().cpu().clone() for key, value in state.items()}
    # The format's metadata are strings.
    told = {} if facts is None else {"litcam": json.dumps(facts)}
    with replacing(file) as partial:
        try:
            save_file(tensors, partial, metadata={"format": "pt", **told})
        except SafetensorError as error:
            raise OSError(str(error)) from None
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

    Three files: ``encoder.safetensors`` (timm's keys, for ``Classifier(weights=FILE)`` or timm
    itself), ``decoder.safetensors``, and ``encoder.json`` with what they were made with. The
    encoder's file tells the same in its metadata, for when it travels alone.

    Under `EMA` or Lightning's averaging they hold the average: what was validated.

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
    kept = averaged(module)
    save_encoder(kept.decoder, folder / "decoder.safetensors", write=write)
    if not write:
        save_encoder(kept.encoder, folder / "encoder.safetensors", write=False)
        return None
    data, config = getattr(trainer, "datamodule", None), module.encoder.pretrained_cfg
    names = "backbone backbone_args image_size mask_ratio norm_pix_loss loss"
    facts = {
        **{name: module.hparams[name] for name in names.split()},
        "image_size": module.image_size,
        "cell_size": module.cell_size,
        "mean": list(getattr(data, "mean", None) or config["mean"]),
        "std": list(getattr(data, "std", None) or config["std"]),
        "decoder": {name: getattr(module.decoder, name) for name in ("kind", "dim", "depth")},
        "epoch": trainer.current_epoch,
        "step": trainer.global_step,
        "averaged": kept is not module,
        "timm": timm.__version__,
    }
    write_whole(folder / "encoder.json", json.dumps(facts, indent=2) + "\n")
    return save_encoder(kept.encoder, folder / "encoder.safetensors", facts)
