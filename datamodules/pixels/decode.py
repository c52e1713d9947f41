"""From the bytes of a file to pixels: any format, one meaning, and a clear line where it fails."""

import io
import re
import struct

import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor
from torchvision.io import ImageReadMode
from torchvision.transforms import v2

from litcam.datamodules.pixels.png import SIGNATURE, decode_png

__all__ = ["MAX_PIXELS", "decode"]

# Where PIL refuses too: what ImageFolder reads is read here, and takes half a gigabyte at most, a
# PNG several times that while it is decoded.
MAX_PIXELS = 2 * 89_478_485
# Of a file that may move: the canvas of all its frames is painted, whatever the first one holds.
MAX_MOVING_PIXELS = 1 << 25

_JPEG_MARKER = re.compile(rb"\xff+([^\x00\xff])")
_JPEG_FRAMES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}  # start of frame, 0 to 15
_JPEG_WITHOUT_LENGTH = {0x01, *range(0xD0, 0xD8)}


def decode(data: bytes, place: str) -> Tensor:
    """Decodes an image file as RGB uint8 ``(3, height, width)``, the pixels that PIL gives.

    EXIF rotation is ignored and transparency dropped. 16 bits a channel become their upper 8.

    Args:
        data: The file, whatever it is called: JPEG, PNG, WebP or GIF (its first frame).
        place: Path or address of the file, for the message.

    Returns:
        The pixels in the order in which the decoder wrote them, ``channels_last``, which is the one
        that torchvision resizes fastest.

    Raises:
        ValueError: If it cannot be decoded or has more than `MAX_PIXELS` pixels, in one line with
            its place and the reason.
    """
    try:
        width, height, animated = _header(data)
        most = MAX_MOVING_PIXELS if animated else MAX_PIXELS
        if width * height > most:
            raise ValueError(
                f"{width} × {height} pixels in {len(data)} bytes are more than the "
                f"{most} that are taken for a photo"
            )
        if data.startswith(SIGNATURE):
            image = decode_png(data)
        else:
            image = _first_frame(data) if animated else _still(data)
        if not animated and image.shape[1:] != (height, width):
            raise ValueError(f"its header tells another size, {width} × {height}")
    except (RuntimeError, ValueError) as error:
        # torchvision puts the place in its own C++ source before the reason
        reason = re.sub(r"^\S+, \S+:\d+, ", "", " ".join(str(error).split()))
        raise ValueError(
            f"cannot read image {place}: {reason.rstrip('.')}; "
            "replace it with a readable JPEG, PNG, WebP or GIF, or delete it"
        ) from None
    if image.dtype != torch.uint8:
        image = v2.functional.to_dtype(image, torch.uint8, scale=True)
    return image


def _still(data: bytes) -> Tensor:
    # The op under torchvision.io.decode_image, which since 0.29 warns at every call, pointing to
    # torchcodec, which needs a newer torch than litcam does; to silence a warning for the length of
    # a call is not safe between threads. The copy is there because torch warns of bytes, which it
    # cannot keep anybody from writing to; it takes under 1 % of the time of the decoding.
    buffer = torch.frombuffer(bytearray(data), dtype=torch.uint8)
    image: Tensor = torch.ops.image.decode_image(buffer, ImageReadMode.RGB.value, False)
    return image


def _first_frame(data: bytes) -> Tensor:
    # torchvision decodes all frames of a GIF at once, whatever memory they take, paints transparent
    # pixels in the colour of the background, and knows no moving WebP.
    try:
        with Image.open(io.BytesIO(data), formats=("GIF", "WEBP")) as image:
            pixels = bytearray(image.convert("RGB").tobytes())
    except UnidentifiedImageError:  # its message is an address in memory
        raise ValueError("the first frame is incomplete or corrupted") from None
    except Exception as error:  # damage comes as anything from EOFError to IndexError
        raise ValueError(str(error) or type(error).__name__) from None
    flat = torch.frombuffer(pixels, dtype=torch.uint8)
    return flat.view(image.height, image.width, 3).permute(2, 0, 1)


def _header(data: bytes) -> tuple[int, int, bool]:
    """Width and height as the decoder will find them, and whether to take only the first frame.

    The decoder allocates what the header asks for before it misses the pixels, so that no file is
    too small to be a bomb: every header is read, and here, because PIL takes eight times as long.
    """
    try:
        if data.startswith(b"\xff\xd8\xff"):
            return *_jpeg_size(data), False
        if data.startswith(SIGNATURE):
            return *struct.unpack_from(">II", data, 16), False
        if data.startswith((b"GIF87a", b"GIF89a")):
            return *struct.unpack_from("<HH", data, 6), True
        if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
            return _webp_header(data)
    except struct.error:
        raise ValueError("the file ends within its header") from None
    raise ValueError("the file is empty" if not data else "it is of no format that is known here")


def _jpeg_size(data: bytes) -> tuple[int, int]:
    # Walks from marker to marker as libjpeg does, over bytes that belong to none: the thumbnail in
    # the EXIF segment has a size as well, which is not the image's.
    at = 2
    while match := _JPEG_MARKER.search(data, at):
        marker, at = match[1][0], match.end()
        if marker in _JPEG_FRAMES:
            height, width = struct.unpack_from(">HH", data, at + 3)
            return width, height
        if marker not in _JPEG_WITHOUT_LENGTH:
            at += max(2, *struct.unpack_from(">H", data, at))
    raise ValueError("the file ends within its header")


def _webp_header(data: bytes) -> tuple[int, int, bool]:
    # https://developers.google.com/speed/webp/docs/riff_container
    kind = data[12:16]
    if kind == b"VP8X":  # flags, then two numbers of three bytes, each one less than it means
        flags, *size = struct.unpack_from("<B3xHBHB", data, 20)
        return 1 + size[0] + (size[1] << 16), 1 + size[2] + (size[3] << 16), bool(flags & 2)
    if kind == b"VP8L":  # two numbers of 14 bits after a byte of signature
        (bits,) = struct.unpack_from("<I", data, 21)
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF), False
    width, height = struct.unpack_from("<HH", data, 26)
    return width & 0x3FFF, height & 0x3FFF, False
