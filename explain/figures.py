"""Pictures one looks at: overlays, panels and comparison grids, as uint8 arrays `(h, w, 3)`."""

import base64
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont, ImageOps

Picture = npt.NDArray[np.uint8]
Heat = npt.NDArray[np.float32]

GAP = 4
LINE = 18


def overlay(photo: Picture, heatmap: Heat) -> Picture:
    """`heatmap` `(h, w)` in [0, 1] over `photo` `(h, w, 3)`, in grad-cam's usual colours.

    A heatmap that is 0 everywhere leaves the photo grey, so that "nothing" does not look cold.
    """
    # Imported here: grad-cam brings OpenCV and scikit-learn with it.
    from pytorch_grad_cam.utils.image import show_cam_on_image

    if not heatmap.any():
        return np.repeat(photo.mean(-1, keepdims=True).astype(np.uint8), 3, axis=-1)
    blended: Picture = show_cam_on_image(
        photo.astype(np.float32) / 255, heatmap, use_rgb=True, image_weight=0.5
    )
    return blended


def pack_map(raw: npt.NDArray[np.float32]) -> str:
    """A map `(height, width)`, nothing below 0, in 256 levels of its maximum; zero if not finite.

    >>> pack_map(np.array([[0.0, 1.0], [2.0, 4.0]], np.float32))
    'AECA/w=='
    """
    high = raw.max() if np.isfinite(raw).all() else 0.0
    levels = np.round(255 * (raw / high)) if high > 0 else np.zeros_like(raw)
    return base64.b64encode(levels.astype(np.uint8).tobytes()).decode()


def enlarge(photo: Picture, short_side: int = 224) -> Picture:
    """`photo` with a short side of at least `short_side` pixels, for small training images."""
    factor = short_side / min(photo.shape[:2])
    if factor <= 1:
        return photo
    size = round(photo.shape[1] * factor), round(photo.shape[0] * factor)
    return np.asarray(Image.fromarray(photo).resize(size, Image.Resampling.BICUBIC))


def panel(pictures: Sequence[Picture]) -> Picture:
    """`pictures` of one height side by side, with a white gap."""
    height = pictures[0].shape[0]
    gap = np.full((height, GAP, 3), 255, np.uint8)
    parts = [part for picture in pictures for part in (picture, gap)][:-1]
    return np.concatenate(parts, axis=1)


def sheet(rows: Sequence[Sequence[Picture | None]], titles: Sequence[Sequence[str]]) -> Picture:
    """A comparison grid: `rows` of pictures, each with its title above it.

    Args:
        rows: pictures; each is fitted into a cell of the size of the first one. None leaves its
            cell empty.
        titles: a title for each picture, of one or more lines. A line that is too long loses its
            middle, because most end in what tells them apart: a number, a layer, a suffix.
    """
    first = next(picture for row in rows for picture in row if picture is not None)
    height, width = first.shape[:2]
    columns = max(len(row) for row in rows)
    top = LINE * max(1 + text.count("\n") for texts in titles for text in texts)
    size = (columns * (width + GAP) + GAP, len(rows) * (height + GAP + top) + GAP)
    canvas = Image.new("RGB", size, "white")
    draw, font = ImageDraw.Draw(canvas), ImageFont.load_default(12)
    for y, (row, texts) in enumerate(zip(rows, titles, strict=True)):
        for x, (picture, text) in enumerate(zip(row, texts, strict=True)):
            at = GAP + x * (width + GAP), GAP + y * (height + GAP + top)
            for place, line in enumerate(text.split("\n")):
                shown = shorten(line, width, font)
                draw.text((at[0], at[1] + place * LINE), shown, "black", font)
            if picture is not None:
                image = ImageOps.contain(Image.fromarray(picture), (width, height))
                canvas.paste(image, (at[0], at[1] + top))
    return np.asarray(canvas)


def shorten(line: str, width: int, font: Any) -> str:
    """`line` with as much of its middle left out as does not fit into `width` pixels."""
    shown, kept = line, len(line)
    while kept > 1 and font.getlength(shown) > width:
        kept -= 1
        tail = kept // 3
        shown = f"{line[: kept - tail].rstrip()}…{line[len(line) - tail :]}"
    return shown
