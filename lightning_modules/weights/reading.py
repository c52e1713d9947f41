"""State dicts out of files and folders: whatever holds tensors, under whatever name."""

import argparse
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from litcam.lightning_modules.probing import plain_heads
from litcam.lightning_modules.weights.size import check_size

__all__ = ["StateDict", "read_state_dicts"]

# What is loaded of a folder, in this order; an index lists the files of a model in parts.
IN_FOLDERS = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
    "encoder.safetensors",
)
# Of several state dicts the averaged weights are the ones that were validated: timm's `train.py`
# keeps them under the first name, torchvision's recipes under the second, DINO as the teacher.
AVERAGED = ("state_dict_ema", "model_ema", "ema", "teacher")


@dataclass(frozen=True)
class StateDict:
    """Tensors by name.

    Attributes:
        tensors: Of any shape, on the CPU.
        place: Where in its file, such as `state_dict_ema`; empty where it is all of it.
    """

    tensors: dict[str, Tensor]
    place: str = ""


def read_state_dicts(source: str | Path) -> list[StateDict]:
    """Read every state dict of a file or a folder, those of averaged weights first.

    A safetensors file, a file of torch's with tensors, lists, numbers and options in it, or a
    folder with one of them, also in parts, as Hugging Face's hub has them. Nothing in a file is
    run.

    Raises:
        FileNotFoundError: if there is no such file or folder.
        ValueError: if it cannot be read or holds no tensors.
    """
    path = Path(source).expanduser()
    if path.is_dir():
        path = _find_in(path)
    if not path.is_file():
        raise FileNotFoundError(f"weights {source}: there is no such file or folder")
    if path.name.endswith(".index.json"):
        merged: dict[str, Tensor] = {}
        for part in _parts(path):
            merged.update(_flat(_load(part)))
        found = [StateDict(merged)]
    else:
        found = list(_walk(_load(path)))
    found = [each for each in found if each.tensors]
    if not found:
        raise ValueError(f"weights {source} hold no tensors; give a state dict")
    return sorted(found, key=lambda each: each.place.rpartition(".")[2] not in AVERAGED)


def _find_in(folder: Path) -> Path:
    for name in IN_FOLDERS:
        if (folder / name).is_file():
            return folder / name
    raise FileNotFoundError(
        f"weights {folder}: the folder has none of {', '.join(IN_FOLDERS)}; give the file itself"
    )


def _parts(index: Path) -> list[Path]:
    try:
        names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
    except (ValueError, KeyError, AttributeError, TypeError):
        raise ValueError(f"weights {index} are no list of the files of a model") from None
    for name in names:
        if not isinstance(name, str) or Path(name).name != name:
            raise ValueError(f"weights {index} name a file outside their folder: {name!r}")
    return [index.with_name(name) for name in names]


def _load(path: Path) -> Any:
    check_size(path)
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        # Plain options, as timm's and the MAE authors' files hold them, run no code.
        with torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=None)
    except SafetensorError as error:
        reason = str(error).strip().partition("\n")[0]
    except Exception as error:  # damage comes as anything from EOFError to KeyError
        if isinstance(error, OSError) and error.filename:  # it cannot be opened
            raise
        code = re.search(r"GLOBAL (\S+)", str(error))
        reason = "it is damaged, or no file of torch"
        if code:
            reason = f"it holds {code[1]}, which may run code when it is loaded"
    raise ValueError(f"weights {path} are not a readable state dict ({reason})") from None


def _flat(loaded: Any) -> dict[str, Tensor]:
    pairs = loaded.items() if isinstance(loaded, dict) else ()
    return {key: value for key, value in pairs if isinstance(value, Tensor) and type(key) is str}


def _walk(loaded: Any, place: str = "") -> Iterator[StateDict]:
    """State dicts in a checkpoint, but those of optimisers."""
    if not isinstance(loaded, dict):
        return
    yield StateDict(plain_heads(_flat(loaded)), place)
    for key, value in loaded.items():
        if isinstance(key, str) and not key.startswith("optimizer"):
            yield from _walk(value, f"{place}.{key}" if place else key)
