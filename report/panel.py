"""One figure of what a masked autoencoder learned: a row an image, a column an epoch."""

from collections.abc import Iterable, Sequence
from itertools import accumulate
from pathlib import Path, PurePosixPath
from statistics import fmean

from PIL import Image, ImageDraw, ImageFont, ImageOps

from litcam.explain.figures import GAP, Picture, shorten
from litcam.files import replacing
from litcam.report.curves import read_metrics
from litcam.report.pictures import Line, grouped, read_tile

LABEL, SIDE, LINE, FONT = 104, 156, 24, 15  # widths of columns, heights of lines, in pixels
TILE = SIDE - GAP, SIDE - GAP
SEEN, BOTH, ORIGINAL = 0, 2, 3  # tiles of a picture of `Reconstructions`

Cell = str | Picture | None


def write_panel(folder: Path, epochs: Sequence[int], file: Path | None = None) -> Path:
    """Writes the reconstructions of a run after some epochs side by side.

    Columns are the original, what the encoder sees, and the epochs in the order given; under each
    epoch are its `val/loss`, where it was logged, and the mean PSNR of the images shown. Reads
    the run's folder alone, so the run may still go on.

    Args:
        folder: of the run, with the pictures of a `Reconstructions` callback.
        epochs: counted from 0, as in `metrics.csv` and in the names of the pictures' folders.
        file: what to write, a PNG; by default `panel.png` in the folder.

    Returns:
        The file.

    Raises:
        ValueError: there are no pictures, other images at every epoch, or none of an epoch; then
            the message names the nearest epochs.
        OSError: it cannot be written.
    """
    place, lines = _find_lines(folder)
    columns = _find_columns(folder, lines, list(dict.fromkeys(epochs)))
    rows = _read_rows(place, lines, columns)
    if not rows:
        raise ValueError(f"{place} has lost its pictures: nothing to put into a panel")
    heads = ["", "original", "masked", *(f"epoch {epoch}" for epoch in columns)]
    panel = _draw([heads, *rows, *_measure(folder, columns)], _explain(lines[-1]))
    file = file or folder / "panel.png"
    with replacing(file) as partial:
        panel.save(partial, "PNG")
    return file


def _find_lines(folder: Path) -> tuple[Path, list[Line]]:
    """The lines of the run's first `Reconstructions` callback, and the folder of its pictures."""
    groups = grouped(folder, "mask_share")
    found = next(((at, lines) for at, key, lines in groups if key.startswith("val/")), None)
    if found is None:
        raise ValueError(f"{folder} holds no pictures of a Reconstructions callback: no panel")
    if not all(line.get("index_known", True) for line in found[1]):
        raise ValueError(
            f"{folder} shows other images at every epoch, because its validation loader is "
            "shuffled: no panel; train with one that is not, or whose batches tell an `index`"
        )
    return found


def _find_columns(
    folder: Path, lines: Sequence[Line], epochs: Sequence[int]
) -> dict[int, dict[int, Line]]:
    """For each epoch the lines of its last validation, by the index of their image."""
    last: dict[int, int] = {}
    for line in lines:
        last[line["epoch"]] = max(line["step"], last.get(line["epoch"], 0))
    missing = [
        f"epoch {epoch} (nearest: {', '.join(map(str, _nearest(epoch, last)))})"
        for epoch in epochs
        if epoch not in last
    ]
    if missing:
        raise ValueError(f"not drawn in {folder}: {', '.join(missing)}")
    by_step = {(line["step"], line["index"]): line for line in lines}
    return {
        epoch: {index: line for (step, index), line in by_step.items() if step == last[epoch]}
        for epoch in epochs
    }


def _nearest(epoch: int, drawn: Iterable[int]) -> list[int]:
    """The two of `drawn` that are nearest to `epoch`, in order.

    >>> _nearest(67, [0, 60, 70, 80])
    [60, 70]
    """
    return sorted(sorted(drawn, key=lambda other: abs(other - epoch))[:2])


def _read_rows(
    place: Path, lines: Sequence[Line], columns: dict[int, dict[int, Line]]
) -> list[list[Cell]]:
    """A row an image: what it shows, as it is, what the encoder sees, and each epoch's picture."""
    rows: list[list[Cell]] = []
    for index in sorted({index for by_index in columns.values() for index in by_index}):
        own = [by_index.get(index) for by_index in columns.values()]
        made = [None if line is None else read_tile(place, line, BOTH) for line in own]
        any_line = next(line for line in own if line is not None)
        ends = [read_tile(place, any_line, number) for number in (ORIGINAL, SEEN)]
        if any(picture is not None for picture in (*ends, *made)):
            category = _category([line for line in lines if line["index"] == index])
            rows.append([category, *ends, *made])
    return rows


def _category(lines: Sequence[Line]) -> str:
    """What an image shows, else the folder that it lies in, else its name."""
    told = next((line["label_name"] for line in lines if line.get("label_name")), None)
    image = PurePosixPath(lines[-1]["image"])
    return str(told or image.parent.name or image)


def _measure(folder: Path, columns: dict[int, dict[int, Line]]) -> list[list[str]]:
    """A line of loss and one of PSNR, the first cell of each its name."""
    metrics = read_metrics(folder)
    points = next((metrics[name] for name in ("val/loss", "val_loss") if name in metrics), [])
    losses = {step: f"{value:.3g}" for step, _, value in points}
    under: list[list[str]] = [["val/loss", "", ""], ["PSNR, dB", "", ""]]
    for by_index in columns.values():
        lines = list(by_index.values())
        known = [line["psnr"] for line in lines if line["psnr"] is not None]
        under[0].append(losses.get(lines[0]["step"], "–"))
        under[1].append(f"{fmean(known):.1f}" if known else "–")
    return under


def _explain(line: Line) -> list[str]:
    """What the figures under the columns are of."""
    said = [
        f"{line['mask_share']:.0%} of each image is hidden.",
        "val/loss: all validation images.",
        "PSNR: hidden pixels, mean of these images.",
    ]
    if line.get("borrowed"):
        said.append("Each predicted cell has the true one's mean and contrast.")
    return said


def _draw(table: Sequence[Sequence[Cell]], said: Sequence[str]) -> Image.Image:
    """Pictures and texts in rows, each text in the middle of its cell, and lines below them."""
    font = ImageFont.load_default(FONT)
    heights = [LINE if all(isinstance(cell, str) for cell in row) else SIDE for row in table]
    widths = [LABEL] + [SIDE] * (len(table[0]) - 1)
    lefts = [GAP + before for before in accumulate(widths, initial=0)]
    size = lefts[-1], sum(heights) + LINE * len(said) + GAP
    canvas = Image.new("RGB", size, "white")
    draw, top = ImageDraw.Draw(canvas), 0
    for row, height in zip(table, heights, strict=True):
        for left, width, cell in zip(lefts, widths, row, strict=False):
            if isinstance(cell, str):
                middle = left + (width - GAP) / 2, top + height / 2
                draw.text(middle, shorten(cell, width - GAP, font), "black", font, "mm")
            elif cell is not None:
                canvas.paste(ImageOps.pad(Image.fromarray(cell), TILE, color="white"), (left, top))
        top += height
    for number, line in enumerate(said):
        at = GAP, top + LINE * (number + 0.5)
        draw.text(at, shorten(line, size[0] - 2 * GAP, font), "dimgrey", font, "lm")
    return canvas
