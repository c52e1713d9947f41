"""Files of weights that would fill the memory: refused before they are read."""

import zipfile
from pathlib import Path
from typing import Any

from litcam.commands.errors import OptionError


def check_weights(config: Any) -> None:
    """Holds the files of weights that a command line names against `check_size`.

    Args:
        config: As the parser of `litcam fit` and its like read it.

    Raises:
        OptionError: If one is refused.
    """
    options = config.get(str(config.get("subcommand"))) or {}
    model = options.get("model") or {}
    encoder = (model.get("init_args") or {}).get("encoder")
    for place, file in (("--ckpt_path", options.get("ckpt_path")), ("--model.encoder", encoder)):
        if isinstance(file, str):
            check_size(Path(file), place)


def check_size(file: Path, place: str) -> None:
    """Refuses a file of torch's that unpacks into more bytes than it has: torch compresses none.

    Args:
        file: That may not be there, and may be anything.
        place: Where it was named, for the message.

    Raises:
        OptionError: If so.
    """
    try:
        if not file.is_file() or not zipfile.is_zipfile(file):
            return
        with zipfile.ZipFile(file) as parts:
            size = sum(part.file_size for part in parts.infolist())
    except (zipfile.BadZipFile, NotImplementedError, OSError, ValueError):
        return  # what is damaged, who reads it says
    if size > file.stat().st_size:
        raise OptionError(
            f"{place} {file} unpacks into {size:,} bytes, which torch.save never does; "
            "give a file that you trust"
        )
