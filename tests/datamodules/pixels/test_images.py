import io
import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from litcam.datamodules.pixels.decode import MAX_PIXELS, decode

HEIGHT, WIDTH = 40, 50


def smooth_photo() -> Image.Image:
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    waves = [np.sin(x / 9 + phase) + np.cos(y / 7 - phase) for phase in (0.0, 1.0, 2.0)]
    return Image.fromarray(np.uint8(np.stack(waves, axis=-1) * 60 + 128))


def encode(image: Image.Image, kind: str, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def pil_pixels(data: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(image.convert("RGB"))


def make_png(pixels: np.ndarray, colour: int) -> bytes:
    """PNG of 16 bits a channel, which PIL does not write in colour."""
    raw = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    return png_file(*pixels.shape[1::-1], 16, colour, zlib.compress(raw))


def png_file(width: int, height: int, depth: int, colour: int, compressed: bytes) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    file = b"\x89PNG\r\n\x1a\n"
    for name, body in ((b"IHDR", header), (b"IDAT", compressed), (b"IEND", b"")):
        file += struct.pack(">I", len(body)) + name + body
        file += struct.pack(">I", zlib.crc32(name + body))
    return file


def with_alpha(image: Image.Image) -> Image.Image:
    image = image.copy()
    image.putalpha(image.convert("L"))
    return image


def cmyk(adobe: bytes) -> bytes:
    """CMYK as PIL writes it (inverted, marked by Adobe's APP14), with another marker or none."""
    data = encode(smooth_photo().convert("CMYK"), "JPEG", quality=95)
    start = data.index(b"\xff\xee\x00\x0eAdobe")
    return data[:start] + adobe + data[start + 16 :]


def moving(kind: str) -> bytes:
    photo = smooth_photo()
    frames = [photo.rotate(90), photo.rotate(180)]
    return encode(photo, kind, save_all=True, append_images=frames, lossless=True)


def turned(kind: str) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6  # a viewer turns the photo by 90 degrees
    return encode(smooth_photo(), kind, exif=exif)


ADOBE = b"\xff\xee\x00\x0eAdobe\x00\x64\x00\x00\x00\x00"
FORMATS = {
    "jpeg": lambda: encode(smooth_photo(), "JPEG"),
    "progressive jpeg": lambda: encode(smooth_photo(), "JPEG", progressive=True),
    "grey jpeg": lambda: encode(smooth_photo().convert("L"), "JPEG"),
    "cmyk jpeg": lambda: cmyk(b""),
    "inverted cmyk jpeg": lambda: cmyk(ADOBE + b"\x00"),
    "inverted ycck jpeg": lambda: cmyk(ADOBE + b"\x02"),
    "turned jpeg": lambda: turned("JPEG"),
    "png": lambda: encode(smooth_photo(), "PNG"),
    "grey png": lambda: encode(smooth_photo().convert("L"), "PNG"),
    "1-bit png": lambda: encode(smooth_photo().convert("1"), "PNG"),
    "palette png": lambda: encode(smooth_photo().quantize(16), "PNG"),
    "transparent palette png": lambda: encode(smooth_photo().quantize(16), "PNG", transparency=3),
    "rgba png": lambda: encode(with_alpha(smooth_photo()), "PNG"),
    "turned png": lambda: turned("PNG"),
    "webp": lambda: encode(smooth_photo(), "WEBP"),
    "lossless webp": lambda: encode(smooth_photo(), "WEBP", lossless=True),
    "rgba webp": lambda: encode(with_alpha(smooth_photo()), "WEBP"),
    "turned webp": lambda: turned("WEBP"),
    "moving webp": lambda: moving("WEBP"),
    "gif": lambda: encode(smooth_photo(), "GIF"),
    "transparent gif": lambda: encode(smooth_photo().quantize(16), "GIF", transparency=3),
    "moving gif": lambda: moving("GIF"),
}


@pytest.mark.parametrize("name", FORMATS)
def test_pixels_are_pils_whatever_the_file_is_called(name):
    data = FORMATS[name]()
    image = decode(data, "n01440764_1.JPEG")
    assert image.shape == (3, HEIGHT, WIDTH)
    assert image.dtype == torch.uint8
    difference = image.permute(1, 2, 0).numpy().astype(int) - pil_pixels(data)
    assert np.abs(difference).max() <= (3 if "cmyk" in name or "ycck" in name else 1)


@pytest.mark.parametrize(("channels", "colour"), [(1, 0), (2, 4), (3, 2), (4, 6)])
def test_16_bits_are_scaled_not_clipped(channels, colour):
    # PIL itself clips grey ones, so that they are compared by value
    pixels = np.random.default_rng(0).integers(0, 65536, (HEIGHT, WIDTH, channels))
    image = decode(make_png(pixels, colour), "deep.png").permute(1, 2, 0).numpy()
    expected = pixels[..., :3] if channels > 2 else pixels[..., :1].repeat(3, axis=-1)
    assert image.dtype == np.uint8
    assert np.abs(image - expected / 257).max() < 1


def test_pixels_lie_as_the_resize_kernels_want_them():
    for name in ("jpeg", "png", "webp", "gif"):
        assert decode(FORMATS[name](), "photo").stride() == (1, 3 * WIDTH, 3)


@pytest.mark.parametrize("name", ["jpeg", "progressive jpeg", "inverted cmyk jpeg", "webp"])
@pytest.mark.parametrize("share", [0.5, 0.99, -2, 20, 2])
def test_a_truncated_photo_is_refused(name, share):
    assert_cut_is_refused(FORMATS[name](), share)


@pytest.mark.parametrize("name", ["png", "palette png", "gif", "moving gif", "moving webp"])
@pytest.mark.parametrize("share", [0.3, 20, 2])
def test_a_truncated_drawing_is_refused(name, share):
    assert_cut_is_refused(FORMATS[name](), share)


def assert_cut_is_refused(whole: bytes, share: float) -> None:
    data = whole[: int(len(whole) * share) if 0 < share < 1 else int(share)]
    assert_refused(data)


def assert_refused(data: bytes, reason: str = r"\S+.*") -> None:
    with pytest.raises(ValueError, match=rf"^cannot read image a/b.jpg: {reason}; re") as error:
        decode(data, "a/b.jpg")
    message = str(error.value)
    assert "\n" not in message
    assert ".cpp" not in message
    assert " at 0x" not in message


@pytest.mark.parametrize("name", ["png", "gif"])
def test_what_lacks_only_the_end_mark_has_all_its_pixels(name):
    whole = FORMATS[name]()
    assert (decode(whole[:-2], "photo") == decode(whole, "photo")).all()


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "the file is empty"),
        (b"x" * 99, "it is of no format .*"),
        (b"\xff\xd8\xff" + b"\xff" * 99, "the file ends within its header"),
        (b"\xff\xd8\xff\xe0\0\0" * 9, "the file ends within its header"),
        (b"\x89PNG\r\n\x1a\n" + b"\0" * 99, r"\S+.*"),
        (b"GIF89a" + b"\1" * 99, r"\S+.*"),
        (b"RIFF0000WEBPVP8X" + b"\2" + b"\0" * 99, r"\S+.*"),
        (encode(smooth_photo(), "BMP"), "it is of no format .*"),
    ],
    ids=["empty", "garbage", "no header", "no lengths", "png", "gif", "webp", "bmp"],
)
def test_garbage_is_refused(data, reason):
    assert_refused(data, reason)


def jpeg_bomb(side: int) -> bytes:
    """Grey as the first block: six bits for each block of 8 × 8 pixels."""
    small = encode(Image.new("L", (16, 16), 128), "JPEG")
    start = small.index(b"\xff\xda") + 10
    size = small.index(b"\xff\xc0") + 5
    header = small[:size] + struct.pack(">HH", side, side) + small[size + 4 : start]
    return header + b"\x28\xa2\x8a" * ((side // 8) ** 2 // 4) + b"\xff\xd9"


def png_bomb(side: int) -> bytes:
    compress = zlib.compressobj()
    rows = [compress.compress(bytes(1 + side // 8)) for _ in range(side)]
    return png_file(side, side, 1, 0, b"".join(rows) + compress.flush())


def webp_bomb(side: int) -> bytes:
    """One colour, no bits at all for a pixel: only the header tells how many there are."""
    small = encode(Image.new("RGB", (16, 16), (9, 9, 9)), "WEBP", lossless=True)
    return small[:21] + struct.pack("<I", side - 1 | side - 1 << 14) + small[25:]


@pytest.mark.parametrize(
    ("bomb", "side"), [(jpeg_bomb, 30_000), (png_bomb, 30_000), (webp_bomb, 16_383)]
)
def test_a_bomb_is_refused_from_its_header(bomb, side):
    assert decode(bomb(80), "a small one is whole").shape == (3, 80, 80)
    assert side**2 > MAX_PIXELS
    data = bomb(side)
    assert len(data) < 11e6
    assert memory_grown(lambda: assert_refused(data, f"{side} × {side} pixels .*")) < 20e6


def test_a_gif_and_a_moving_webp_are_refused_from_their_headers():
    gif, webp = moving("GIF"), moving("WEBP")
    assert_refused(gif[:6] + b"\xff\xff\xff\xff" + gif[10:], "65535 × 65535 pixels .*")
    assert_refused(webp[:24] + b"\xfe\x3f\0" * 2 + webp[30:], "16383 × 16383 pixels .*")


def memory_grown(call) -> int:
    """Bytes by which the process was larger during a call than before it."""
    clear, status = Path("/proc/self/clear_refs"), Path("/proc/self/status")
    if not clear.exists():
        pytest.skip("only Linux tells the largest size of a process within a while")

    def kilobytes(name: str) -> int:
        line = next(line for line in status.read_text().splitlines() if line.startswith(name))
        return int(line.split()[1])

    clear.write_text("5")
    before = kilobytes("VmRSS")
    call()
    return 1024 * (kilobytes("VmHWM") - before)


def test_the_size_of_the_thumbnail_is_not_the_images():
    thumbnail = jpeg_bomb(64).replace(
        struct.pack(">HH", 64, 64), struct.pack(">HH", 60_000, 60_000)
    )
    segment = b"\xff\xe1" + struct.pack(">H", 2 + len(thumbnail)) + thumbnail
    photo = encode(smooth_photo(), "JPEG")
    data = photo[:2] + segment + b"\0\0" + photo[2:]  # libjpeg goes over bytes between segments
    assert (decode(data, "photo") == decode(photo, "photo")).all()


def test_decoding_warns_of_nothing_and_leaves_the_bytes_alone():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for name in ("jpeg", "png", "webp", "gif"):
            data = FORMATS[name]()
            decode(data, "photo").zero_()
            assert data == FORMATS[name]()
