"""Checkpoints that are replaced whole or not at all, and what is said of one that is damaged."""

import pickle
import re
import zipfile
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.fabric.utilities.cloud_io import _is_local_file_protocol
from lightning.pytorch import Trainer

from litcam.files import replacing

__all__ = ["AtomicCheckpointIO", "newest_readable", "read_checkpoint", "save_atomically"]

Loaded = dict[str, Any]


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint beside the one it replaces, and puts it in its place once it is whole.

    Lightning (2.6.6) writes to the folder of temporary files and, where that is another file system
    (usual on clusters), copies over the old checkpoint: a kill or a full disk then leaves neither.
    It also holds the whole file in memory first. Checkpoints on remote storage stay Lightning's.

    `litcam fit` uses it with every strategy. Lightning's ``AsyncCheckpointIO`` cannot be put around
    it: it is given Lightning's own again at every use.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> trainer = Trainer(plugins=[AtomicCheckpointIO()], logger=False)
    """

    def save_checkpoint(
        self, checkpoint: Loaded, path: str | Path, storage_options: Any | None = None
    ) -> None:
        """Writes it, whole or not at all.

        Raises:
            OSError: it cannot be written, and what was there before still is.
        """
        local = _local(path)
        if local is None or storage_options is not None:
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        with replacing(local) as partial, partial.open("wb") as file:
            try:
                torch.save(checkpoint, file)
            except RuntimeError as error:
                # Where a disk is full torch speaks of unexpected positions.
                if isinstance(error.__context__, OSError):
                    raise error.__context__ from None
                raise

    def load_checkpoint(
        self,
        path: str | Path,
        map_location: Any = lambda storage, loc: storage,
        weights_only: bool | None = None,
    ) -> Loaded:
        """Reads it.

        Raises:
            ValueError: it is damaged or none; the message names another one of the same run.
        """
        local = _local(path)
        if local is None or not local.is_file():
            return super().load_checkpoint(path, map_location, weights_only)
        return read_checkpoint(local, weights_only=weights_only, map_location=map_location)


def save_atomically(trainer: Trainer) -> None:
    """Has a trainer that would write checkpoints Lightning's way use `AtomicCheckpointIO`."""
    if type(trainer.strategy.checkpoint_io) is TorchCheckpointIO:
        trainer.strategy.checkpoint_io = AtomicCheckpointIO()


def read_checkpoint(
    file: Path, *, weights_only: bool | None = None, whole: bool = True, **options: Any
) -> Loaded:
    """Reads a checkpoint of a run. By default no code in it is run, as is torch's way.

    Args:
        file: a local one.
        weights_only: as in ``torch.load``.
        whole: whether the tensors are held against their checksums, which torch does not do; else
            they stay on the disk until they are used.
        **options: others of ``torch.load``.

    Raises:
        ValueError: it is damaged or none; the message names another one of the same run.
    """
    try:
        if whole:
            _hold_against_checksums(file)
        else:
            options = {"map_location": "cpu", "mmap": zipfile.is_zipfile(file), **options}
        loaded = torch.load(file, weights_only=weights_only, **options)
        if not isinstance(loaded, dict) or "state_dict" not in loaded:
            raise ValueError("it holds no state_dict")
    except Exception as error:
        raise ValueError(f"{_what_is_wrong(file, error)}; {_remedy(file)}") from None
    return loaded


def newest_readable(folder: Path, *, but: Path | None = None) -> Path | None:
    """The newest checkpoint in a folder that can be read, other than one of them."""
    found = [path for path in folder.glob("*.ckpt") if path != but]
    for path in sorted(found, key=lambda path: path.stat().st_mtime, reverse=True):
        try:
            _hold_against_checksums(path)
            torch.load(path, map_location="meta", mmap=True)
        except Exception:
            continue
        return path
    return None


def _hold_against_checksums(file: Path) -> None:
    if zipfile.is_zipfile(file) and torch.serialization.get_crc32_options():
        with zipfile.ZipFile(file) as archive:
            if name := archive.testzip():
                raise RuntimeError(f"the checksum of {name} is another one")


def _what_is_wrong(file: Path, error: Exception) -> str:
    if not file.stat().st_size:
        return f"checkpoint {file} is empty"
    if isinstance(error, pickle.UnpicklingError):
        if found := re.search(r"GLOBAL ([\w.]+)", str(error)):
            return (
                f"checkpoint {file} asks for {found[1]}, which may run code and is not called (if "
                "you trust who wrote it: --weights_only false)"
            )
        return f"{file} is damaged, or no checkpoint"
    said = str(error).strip().splitlines()
    reason = said[0] if said else type(error).__name__
    if isinstance(error, ValueError):
        return f"{file} is no checkpoint of a run: {reason}"
    if zipfile.is_zipfile(file):
        return f"checkpoint {file} is damaged ({reason})"
    return f"{file} is damaged, or no checkpoint"


def _remedy(file: Path) -> str:
    other = newest_readable(file.parent, but=file)
    if other is None:
        return f"there is no other one in {file.parent}: pass another file, or begin a new run"
    return f"the newest other one there can be read: --ckpt_path {other}"


def _local(path: str | Path) -> Path | None:
    """Where it lies on this machine, or None where it is remote."""
    if not _is_local_file_protocol(path):
        return None
    return Path(str(path).removeprefix("file://"))
