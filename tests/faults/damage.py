"""Image files of every kind, and what may happen to a file."""

import io
import struct
import zlib

import numpy as np
from PIL import Image

HEIGHT, WIDTH = 45, 60


def photo(seed=0):
    """Waves with some noise: neither flat nor without any pattern."""
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    waves = [np.sin(x / 9 + phase) + np.cos(y / 7 - phase) for phase in (0.0, 1.0, 2.0)]
    noise = np.random.default_rng(seed).integers(0, 20, (HEIGHT, WIDTH, 3))
    return Image.fromarray(np.uint8(np.stack(waves, axis=-1) * 50 + 110 + noise))


def encoded(kind, image=None, **options):
    file = io.BytesIO()
    (image or photo()).save(file, kind, **options)
    return file.getvalue()


def moving(kind):
    more = [photo().rotate(90), photo().rotate(180)]
    return encoded(kind, save_all=True, append_images=more)


def png(depth, colour, channels, *, interlaced=False):
    """Those that Pillow does not write: 16 bits in colour, interlaced."""
    passes = [(0, 0, 1, 1)]
    if interlaced:
        passes = [(0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4)]
        passes += [(0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2)]
    rows = b""
    pixels = np.asarray(photo()).astype(">u2" if depth == 16 else "u1")[..., :channels]
    for left, top, right, down in passes:
        for row in pixels[top::down, left::right]:
            rows += b"\0" + row.tobytes()
    header = struct.pack(">IIBBBBB", WIDTH, HEIGHT, depth, colour, 0, 0, int(interlaced))
    parts = [(b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts)


def chunk(name, body):
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def every_kind():
    return {
        "jpeg": encoded("JPEG"),
        "progressive jpeg": encoded("JPEG", progressive=True),
        "cmyk jpeg": encoded("JPEG", photo().convert("CMYK")),
        "png": encoded("PNG"),
        "palette png": encoded("PNG", photo().quantize(64)),
        "1-bit png": encoded("PNG", photo().convert("1")),
        "16-bit png": png(16, 2, 3),
        "16-bit grey png": png(16, 0, 1),
        "interlaced png": png(8, 2, 3, interlaced=True),
        "webp": encoded("WEBP"),
        "lossless webp": encoded("WEBP", lossless=True),
        "webp in motion": moving("WEBP"),
        "gif": encoded("GIF"),
        "gif in motion": moving("GIF"),
    }


def damaged(data, generator):
    """A file after an accident: bits flipped, cut, bytes put in, taken out, zeroed, doubled."""
    data = bytearray(data)
    at = int(generator.integers(len(data)))
    length = int(generator.integers(1, 40))
    kind = int(generator.integers(7))
    if kind == 0:  # of its header
        at = int(generator.integers(min(64, len(data))))
    if kind in (0, 1, 2):
        for _ in range(int(generator.integers(1, 4)) if kind < 2 else 1):
            data[at] ^= 1 << int(generator.integers(8))
            at = int(generator.integers(len(data)))
    elif kind == 3:
        del data[at:]
    elif kind == 4:
        data[at:at] = generator.bytes(length)
    elif kind == 5:
        del data[at : at + length]
    else:
        data[at : at + length] = bytes(length) if length % 2 else data[:length]
    return bytes(data)


def forged(data, generator):
    """A PNG damaged as `damaged` does, or in a chunk that keeps a right checksum."""
    if generator.integers(2) or not data.startswith(b"\x89PNG"):
        return damaged(data, generator)
    chunks, at = [], 8
    while at < len(data):
        length, name = struct.unpack_from(">I4s", data, at)
        chunks.append((name, data[at + 8 : at + 8 + length]))
        at += 12 + length
    place = int(generator.integers(len(chunks)))
    name, body = chunks[place]
    change = int(generator.integers(4))
    if change == 0:
        del chunks[place]
    elif change == 1:
        chunks.insert(int(generator.integers(len(chunks) + 1)), (name, body))
    elif name == b"IDAT" and change == 2:  # sound as far as zlib can tell
        rows = bytearray(zlib.decompress(body))
        rows[int(generator.integers(len(rows)))] ^= 1 << int(generator.integers(8))
        chunks[place] = name, zlib.compress(rows[: len(rows) - int(generator.integers(3))])
    elif body:
        chunks[place] = name, damaged(body, generator)
    return data[:8] + b"".join(chunk(*part) for part in chunks)
