"""PNG by Pillow: at a damaged one torchvision 0.29's `decode_image` ends the process."""

import io
import struct
import zlib

import numpy as np
import torch
from PIL import Image, PngImagePlugin
from torch import Tensor

__all__ = ["SIGNATURE", "decode_png"]

SIGNATURE = b"\x89PNG\r\n\x1a\n"
_PALETTE = 3  # the type of colour that needs a PLTE


def decode_png(data: bytes) -> Tensor:
    """Decodes a PNG as RGB uint8 ``(3, height, width)``; 16 bits a channel become their upper 8.

    Raises:
        ValueError: If it is damaged.
    """
    try:
        # Not Image.open, which also counts pixels, and warns where litcam does not.
        with PngImagePlugin.PngImageFile(io.BytesIO(_essence(data))) as image:
            image.load()
            pixels = bytearray(_in_rgb(image).tobytes())
    except struct.error:
        raise ValueError("the file ends early") from None
    except Exception as error:  # damage comes as anything from OSError to SyntaxError
        raise ValueError(str(error) or type(error).__name__) from None
    flat = torch.frombuffer(pixels, dtype=torch.uint8)
    return flat.view(image.height, image.width, 3).permute(2, 0, 1)


def _in_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "I;16":  # Pillow clips these, and of every other colour takes the upper 8
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    return image if image.mode == "RGB" else image.convert("RGB")


def _essence(data: bytes) -> bytes:
    """The chunks that pixels are made of, each compared with its checksum.

    What else a PNG may hold (text, colour profiles, animations) changes no pixel, and cannot make
    one unreadable.
    """
    kept, names, at = [SIGNATURE], set[bytes](), len(SIGNATURE)
    while at < len(data):
        length, name = struct.unpack_from(">I4s", data, at)
        end = at + 12 + length
        if name == b"IEND":
            break
        if name in (b"IHDR", b"PLTE", b"IDAT"):
            (checksum,) = struct.unpack_from(">I", data, end - 4)
            if checksum != zlib.crc32(data[at + 4 : end - 4]):
                raise ValueError(f"the checksum of its {name.decode()} differs")
            if (name == b"IHDR") != (not names) or (name == b"PLTE" and len(names) > 1):
                raise ValueError(f"its {name.decode()} is out of place")
            names.add(name)
            kept.append(data[at:end])
        at = end
    if data[25] == _PALETTE and b"PLTE" not in names:
        raise ValueError("it has no palette")
    return b"".join(kept)
