"""Image files that are damaged: read or refused in a line, and never the end of the process."""

import contextlib
import io
import re
import time
import warnings
from collections import Counter

import numpy as np
import pytest
from apart import litcam, outcomes
from damage import encoded, every_kind, forged, photo
from data_sets import FIT
from PIL import Image

from litcam.datamodules.pixels.decode import decode

SECONDS = 5  # at most, for one image of some kilobytes


def read(data):
    """Decodes an image; what came of it, in a word."""
    started = time.monotonic()
    try:
        image = decode(data, "a/photo.jpg")
    except ValueError as error:
        line = str(error)
        assert re.match(r"cannot read image a/photo.jpg: \S.*; replace it", line), line
        assert "\n" not in line and " at 0x" not in line
        return f"refused {time.monotonic() - started:.2f}"
    height, width = image.shape[1:]
    assert image.shape[0] == 3 and image.numel()
    with warnings.catch_warnings(), contextlib.suppress(OSError, Image.DecompressionBombError):
        warnings.simplefilter("ignore")
        with Image.open(io.BytesIO(data)) as header:  # where Pillow begins with it at all
            assert header.size == (width, height) or header.format == "GIF"
    return f"read {time.monotonic() - started:.2f}"


def tally(said):
    """How many were read, and how many refused; the longest time; and all else that happened."""
    words = [line.split() for line in said]
    fine = [line for line in words if line[0] in ("read", "refused")]
    others = [line for line in said if line.split()[0] not in ("read", "refused")]
    counts = Counter(line[0] for line in fine)
    return counts["read"], counts["refused"], max(float(line[1]) for line in fine), others


def test_damaged_images_of_every_kind(fuzz, tell):
    kinds, said = every_kind(), []
    each = -(-fuzz // len(kinds))
    for number, (kind, sound) in enumerate(kinds.items()):
        generator = np.random.default_rng(number)
        assert outcomes(read, [sound], seconds=SECONDS)[0].startswith("read"), kind
        said += outcomes(read, [forged(sound, generator) for _ in range(each)], seconds=SECONDS)
    good, refused, longest, others = tally(said)
    assert not others
    assert good + refused == each * len(kinds) and good and refused
    tell(
        "an image file is damaged",
        caused=f"{len(kinds)} kinds of JPEG, PNG, WebP and GIF, still and in motion: bits flipped, "
        "cut, bytes put in, taken out and zeroed, PNG's chunks changed under a right checksum",
        times=good + refused,
        happened=f"{refused:,} refused in a line, {good:,} read, none ended or held up the process "
        f"(at most {longest:.1f} s)",
    )


def test_headers_that_promise_too_much(tell):
    """Sizes that the file cannot fill: each side of each kind, every bit of it."""
    kinds, inputs = every_kind(), []
    start = kinds["jpeg"].index(b"\xff\xc0") + 5
    places = {
        "jpeg": range(start, start + 4),
        "png": range(16, 24),
        "webp": range(24, 30),
        "lossless webp": range(21, 25),
        "webp in motion": range(24, 30),
        "gif": range(6, 10),
        "gif in motion": range(6, 10),
    }
    for kind, places_of_kind in places.items():
        for place in places_of_kind:
            for bit in range(8):
                data = bytearray(kinds[kind])
                data[place] ^= 1 << bit
                inputs.append(bytes(data))
    good, refused, longest, others = tally(outcomes(read, inputs, seconds=SECONDS))
    assert not others
    assert good + refused == len(inputs)
    tell(
        "an image file says it is larger than it is",
        caused="every bit of width and height flipped, in JPEG, PNG, WebP and GIF",
        times=len(inputs),
        happened=f"{refused} refused in a line, {good} read, in at most {longest:.1f} s",
    )


@pytest.fixture
def tree(tmp_path):
    for split, count in (("train", 6), ("val", 2)):
        for name in ("cat", "dog"):
            folder = tmp_path / "photos" / split / name
            folder.mkdir(parents=True)
            for number in range(count):
                photo(number).save(folder / f"{number}.png")
    return tmp_path / "photos"


def spoil(path):
    """Flips a bit of the pixels of a PNG."""
    data = bytearray(path.read_bytes())
    data[data.index(b"IDAT") + 90] ^= 1
    path.write_bytes(data)


def test_a_damaged_png_in_every_command(tree, tell):
    spoil(tree / "train/cat/3.png")
    code, said = litcam(*FIT)
    assert code == 0, said
    assert "broken image 1 of at most 10: cannot read image photos/train/cat/3.png: the ch" in said
    assert "broken image 2" not in said
    alone = ("--data.num_workers", 0)  # after an error torch takes ten seconds to end a worker
    code, said = litcam(*FIT, *alone, "--data.max_broken", "0")
    assert (code, said.splitlines()[-1][:8]) == (2, "litcam: ")
    assert "train/cat/3.png" in said.splitlines()[-1] and "Traceback" not in said

    code, said = litcam("convert", tree, "shards", "--num_workers", 1, "--chunk_mb", 0.01)
    assert code == 2
    assert re.search(r"litcam: 1 image cannot be decoded: \S+/train/cat/3.png: the check", said)
    code, said = litcam(
        *("convert", tree, "shards", "--num_workers", 2, "--chunk_mb", 0.01), "--skip_broken"
    )
    assert code == 0 and "left out 1 image that cannot be decoded" in said, said
    assert litcam("convert", "--check", "shards")[0] == 0

    photos = [tree / "train/cat/3.png", tree / "train/cat/2.png"]
    code, said = litcam("explain", *photos, "--models", "resnet10t", "--device", "cpu")
    assert code == 0 and "left out: cannot read image" in said, said

    spoil(tree / "val/dog/1.png")
    code, said = litcam(*FIT, *alone)
    assert code == 2 and "val/dog/1.png" in said.splitlines()[-1], said
    assert "Traceback" not in said
    tell(
        "a photo in the data set is a damaged PNG",
        caused="one bit of its pixels flipped; `litcam fit`, `convert` and `explain`",
        times=7,
        happened="`fit` names it and takes another (`max_broken`), or ends in a line that names "
        "it; `convert` names it or leaves it out, `explain` leaves it out",
        lost="that image",
    )


def test_animations_are_read_up_to_a_bound():
    """The largest that is read takes no longer than a photo of as many pixels may."""
    wide = encoded("WEBP", save_all=True, append_images=[photo().rotate(90)])
    for width, height, expected in ((8192, 4096, "read"), (8192, 4097, "refused")):
        sides = (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
        (said,) = outcomes(read, [wide[:24] + sides + wide[30:]], seconds=SECONDS)
        assert said.startswith(expected)
