"""Files that grow line by line: a line that a kill tore loses only itself."""

import csv
import os
from pathlib import Path

__all__ = ["append_text", "read_rows", "whole_lines"]


def append_text(file: Path, text: str) -> None:
    """Adds whole lines to a file, which may end in a torn one.

    Raises:
        OSError: they cannot be written; the file is as it was before.
    """
    data = text.encode()
    opened = os.open(file, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
    try:
        size = os.fstat(opened).st_size
        if size and os.pread(opened, 1, size - 1) != b"\n":
            data = b"\n" + data
        try:
            while data:
                data = data[os.write(opened, data) :]
        except OSError as error:
            os.ftruncate(opened, size)
            raise OSError(error.errno, f"{error.strerror}; {file} stays as it was") from error
    finally:
        os.close(opened)


def whole_lines(file: Path) -> list[str]:
    """The lines of a text file but those that a kill or a power cut tore; none where it is not."""
    try:
        *whole, _ = file.read_bytes().decode(errors="replace").split("\n")
    except (FileNotFoundError, IsADirectoryError):
        return []
    # A power cut leaves zeros where a file had grown and nothing had been written yet.
    return [line.removesuffix("\r") for line in whole if "\0" not in line]


def read_rows(file: Path) -> list[dict[str, str]]:
    """The rows of a table with a header, but those that were torn; empty cells are left out."""
    header, *rows = [_cells(line) for line in whole_lines(file)] or [[]]
    whole = [row for row in rows if len(row) == len(header)]
    return [{name: cell for name, cell in zip(header, row, strict=True) if cell} for row in whole]


def _cells(line: str) -> list[str]:
    """Of one line, so that a quotation mark in a damaged one does not take the next ones in."""
    try:
        return next(csv.reader([line]), [])
    except csv.Error:
        return []
