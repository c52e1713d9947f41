"""What `litcam explain` leaves behind: each heatmap, one figure, and what made them."""

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, Any

from PIL import Image

from litcam.commands.explaining.models import Model
from litcam.explain.comparison import Cell
from litcam.explain.figures import Picture, overlay, sheet
from litcam.files import replacing

# A figure of a whole folder would be too tall for any viewer, and for the memory.
MAX_ROWS = 100
# Models side by side, as in the figures of papers.
MAX_BESIDE = 8

Column = tuple[str, str]
Tiles = tuple[list[list[Picture | None]], list[list[str]]]


@dataclass
class _Row:
    """A photo as a model saw it, and what was drawn of it, with its title, by column."""

    picture: Picture
    model: str
    photo: str
    note: str
    cells: dict[Column, tuple[Picture, str]]


class Results:
    """The rows of a figure, with the heatmaps written as they come.

    Args:
        out: Folder.
        classes: Wanted ones, in the order of the columns.
        methods: In the order of the columns of a class.

    Attributes:
        record: Facts of each heatmap.
    """

    def __init__(self, out: Path, classes: Sequence[str], methods: Sequence[str]) -> None:
        self.out = out
        self.record: list[dict[str, Any]] = []
        self._columns: list[Column] = [(name, method) for name in classes for method in methods]
        self._rows: list[_Row] = []
        self._num_rows = 0
        self._files: set[str] = set()

    def add(
        self, model: Model, photo: Path, title: str, picture: Picture, cells: Sequence[Cell]
    ) -> None:
        """Takes a row.

        Args:
            model: That was explained.
            photo: Its file.
            title: What to call it, distinct from other photos.
            picture: What the network saw, ``(height, width, 3)``.
            cells: Heatmaps of the size of the picture.

        Raises:
            ValueError: If a file cannot be written.
        """
        row = {}
        for cell in cells:
            drawn = overlay(picture, cell.heatmap.numpy())
            file = self._choose_file(f"{Path(title).with_suffix('')}-{model.name}", cell)
            _write(file, partial(Image.fromarray(drawn).save, format="PNG"))
            facts = {"file": str(file.relative_to(self.out)), "photo": str(photo)}
            self.record.append({**facts, **_facts(model, cell)})
            # What has no class stands under the first one.
            row[cell.wanted or self._columns[0][0], cell.method] = drawn, _title(cell)
        self._num_rows += 1
        if len(self._rows) < MAX_ROWS:
            random = "" if model.trained else ", random weights"
            self._rows.append(_Row(picture, model.name, title, random, row))

    def write(self) -> str:
        """Writes figure and record; returns the line that says where they are.

        Raises:
            ValueError: If a file cannot be written.
        """
        columns = [at for at in self._columns if any(at in row.cells for row in self._rows)]
        models = list(dict.fromkeys(row.model for row in self._rows))
        beside = len(columns) == 1 and 1 < len(models) <= MAX_BESIDE
        rows, titles = self._beside(models, columns[0]) if beside else self._below(columns)
        figure = self.out / "figure.png"
        image = Image.fromarray(sheet(rows, titles))
        text = json.dumps(self.record, indent=1)
        _write(figure, partial(image.save, format="PNG"))
        _write(self.out / "explain.json", lambda to: to.write(text.encode()))
        left = self._num_rows - len(self._rows)
        more = f" (the first {MAX_ROWS} rows; {left} more are only files)" if left else ""
        return f"{len(self.record)} heatmaps: {figure}{more}"

    def _below(self, columns: Sequence[Column]) -> Tiles:
        """A row for each photo and model, a column for each class and method."""
        rows: list[list[Picture | None]] = []
        titles = []
        for row in self._rows:
            found = [row.cells.get(column, (None, "")) for column in columns]
            rows.append([row.picture, *(drawn for drawn, _ in found)])
            titles.append([f"{row.model}\n{row.photo}{row.note}", *(text for _, text in found)])
        return rows, titles

    def _beside(self, models: Sequence[str], column: Column) -> Tiles:
        """A row for each photo, a column for each model: of one class and method."""
        rows: list[list[Picture | None]] = []
        titles = []
        for photo in dict.fromkeys(row.photo for row in self._rows):
            own = {row.model: row for row in self._rows if row.photo == photo}
            rows.append([next(iter(own.values())).picture])
            titles.append([photo])
            for name in models:
                drawn, text = own[name].cells.get(column, (None, "")) if name in own else (None, "")
                rows[-1].append(drawn)
                answer, _, layer = text.partition("\n")
                note = own[name].note if name in own else ""
                titles[-1].append(f"{name}\n{answer}{note}\n{layer}")
        return rows, titles

    def _choose_file(self, start: str, cell: Cell) -> Path:
        """A file of its own, also where the system does not tell capitals apart."""
        parts = [start, *([cell.wanted] if cell.wanted else []), cell.method]
        name = re.sub(r"[^\w.+-]+", "_", "-".join(parts)).strip("_")
        # Most systems take names of up to 255 bytes.
        name = unique = name.encode()[:200].decode(errors="ignore")
        while unique.casefold() in self._files:
            number = int(unique.removeprefix(name).lstrip("-") or 1) + 1
            unique = f"{name}-{number}"
        self._files.add(unique.casefold())
        return self.out / "heatmaps" / f"{unique}.png"


def _title(cell: Cell) -> str:
    probability = "" if cell.probability is None else f" {cell.probability:.2f}"
    asked = f"{cell.wanted}: " if cell.wanted in ("predicted", "true") else ""
    nothing = ": nothing, the map is 0" if not cell.heatmap.any() else ""
    return f"{asked}{cell.name}{probability}\n{cell.method} at {cell.layer}{nothing}"


def _facts(model: Model, cell: Cell) -> dict[str, Any]:
    return {
        "model": model.name,
        "trained": model.trained,
        "device": str(next(model.network.parameters()).device),
        "asked": cell.wanted,
        "class": cell.number,
        "class_name": cell.name,
        "probability": cell.probability,
        "method": cell.method,
        "layer": cell.layer,
        "grid": list(cell.grid),
        "reason": cell.reason,
        "map_max": cell.highest,
    }


def _write(file: Path, write: Callable[[IO[bytes]], Any]) -> None:
    try:
        with replacing(file) as partial, partial.open("wb") as opened:
            write(opened)
    except OSError as error:
        reason = getattr(error.__cause__, "strerror", None) or error.strerror or error
        raise ValueError(f"{file} cannot be written ({reason}); choose another --out") from None
