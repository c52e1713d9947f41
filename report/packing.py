"""Pictures and colours as short texts, for the page."""

import base64
import io

import numpy as np
from PIL import Image

from litcam.explain.figures import Picture


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
