"""Files of weights that would fill the memory: refused before they are read."""

import zipfile
from pathlib import Path

__all__ = ["check_size"]


def check_size(file: Path, place: str = "weights") -> None:
    """Refuse a file of torch's that unpacks into more bytes than it has: torch compresses none.

    Args:
        file: that may not be there, and may be anything.
        place: where it was named, for the message.

    Raises:
        ValueError: if so.
    """
    try:
        if not file.is_file() or not zipfile.is_zipfile(file):
            return
        with zipfile.ZipFile(file) as parts:
            size = sum(part.file_size for part in parts.infolist())
    except (zipfile.BadZipFile, NotImplementedError, OSError, ValueError):
        return  # what is damaged, who reads it says
    if size > file.stat().st_size:
        raise ValueError(
            f"{place} {file} unpacks into {size:,} bytes, which torch.save never does; "
            "give a file that you trust"
        )
