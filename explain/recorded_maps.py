"""Maps and pictures as short texts: in the record of a run and in its report."""

import base64
import io

import numpy as np
import numpy.typing as npt
from PIL import Image

from litcam.explain.figures import Picture


def pack_map(raw: npt.NDArray[np.float32]) -> str:
    """A map `(height, width)`, nothing below 0, in 256 levels of its maximum; zero if not finite.

    >>> pack_map(np.array([[0.0, 1.0], [2.0, 4.0]], np.float32))
    'AECA/w=='
    """
    high = raw.max() if np.isfinite(raw).all() else 0.0
    levels = np.round(255 * (raw / high)) if high > 0 else np.zeros_like(raw)
    return base64.b64encode(levels.astype(np.uint8).tobytes()).decode()


def pack_picture(picture: Picture, short_side: int, quality: int = 80) -> str:
    """A picture `(height, width, 3)` as the address of an `<img>`, no larger than `short_side`."""
    image = Image.fromarray(picture)
    factor = short_side / min(image.size)
    if factor < 1:
        image = image.resize((round(image.width * factor), round(image.height * factor)))
    file = io.BytesIO()
    image.save(file, "WEBP", quality=quality, method=6)
    return f"data:image/webp;base64,{base64.b64encode(file.getvalue()).decode()}"


def pack_colours() -> str:
    """Red, green and blue of the 256 levels of an overlay: grad-cam's, OpenCV's `COLORMAP_JET`."""
    # Imported here: OpenCV takes a while.
    import cv2

    levels = np.arange(256, dtype=np.uint8)[:, None]
    table = cv2.applyColorMap(levels, cv2.COLORMAP_JET)[:, 0, ::-1]
    return base64.b64encode(np.ascontiguousarray(table).tobytes()).decode()
