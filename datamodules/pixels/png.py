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
_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # of a type of colour
_PALETTE = 3
# https://www.w3.org/TR/png-3/#8Interlace: first column and row of each pass, and its steps.
_ADAM7 = (
    *((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4)),
    *((0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2)),
)


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
    """A PNG of the same pixels and nothing else, not compressed, after all of it was checked.

    Text, colour profiles and animations change no pixel, and cannot make one unreadable. Pillow
    itself compares no checksum, and takes rows that are missing for black ones; what it would need
    to inflate the pixels is what is needed here.
    """
    chunks = _chunks(data)
    header, palette = chunks[b"IHDR"], chunks[b"PLTE"]
    expected, inflate = _num_bytes(header), zlib.decompressobj()
    if header[9] == _PALETTE and not palette:
        raise ValueError("it has no palette")
    rows = inflate.decompress(chunks[b"IDAT"], expected)
    if len(rows) < expected:
        raise ValueError("it ends before its last pixel")
    inflate.decompress(inflate.unconsumed_tail, 1)  # up to the checksum of all
    parts = [(b"IHDR", header), (b"IDAT", zlib.compress(rows, 0))]
    if palette:
        parts.insert(1, (b"PLTE", palette))
    del rows, chunks
    return SIGNATURE + b"".join(
        part
        for name, body in parts
        for part in (struct.pack(">I", len(body)), name, body, _checksum(name, body))
    )


def _chunks(data: bytes) -> dict[bytes, bytes]:
    """The contents of the chunks that pixels are made of, each compared with its checksum."""
    found: dict[bytes, list[bytes]] = {b"IHDR": [], b"PLTE": [], b"IDAT": []}
    at, first = len(SIGNATURE), b"IHDR"
    while at < len(data):
        length, name = struct.unpack_from(">I4s", data, at)
        body, end = data[at + 8 : at + 8 + length], at + 8 + length
        if name == b"IEND":
            break
        if (name == b"IHDR") != (name == first) or (name == b"PLTE" and found[name]):
            raise ValueError(f"its {name.decode()} is out of place")
        if name in found:
            if struct.unpack_from(">4s", data, end)[0] != _checksum(name, body):
                raise ValueError(f"the checksum of its {name.decode()} differs")
            found[name].append(body)
        at, first = end + 4, b""
    return {name: b"".join(bodies) for name, bodies in found.items()}


def _checksum(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", zlib.crc32(body, zlib.crc32(name)))


def _num_bytes(header: bytes) -> int:
    """How many bytes the rows of an image have, each with its filter's."""
    width, height, depth, colour, *_, interlaced = struct.unpack(">IIBBBBB", header)
    bits, total = depth * _CHANNELS.get(colour, 1), 0
    for left, top, right, down in _ADAM7 if interlaced else ((0, 0, 1, 1),):
        columns, rows = -((left - width) // right), -((top - height) // down)
        if columns > 0 and rows > 0:
            total += rows * (1 + -(-columns * bits // 8))
    return total
