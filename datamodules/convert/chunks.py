"""One chunk of LitData at a time: which images it holds, and how it is written whole or not."""

import io
import json
import shutil
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path

import xxhash
from torch import Tensor
from torchvision.transforms import v2

from litcam.datamodules.convert.inputs import Source
from litcam.datamodules.convert.litdata import Item, write_items
from litcam.datamodules.pixels.decode import decode
from litcam.files import sync

__all__ = [
    "Chunk",
    "Written",
    "fingerprint",
    "read_written",
    "replace_text",
    "stored",
    "write_chunk",
]

UNFINISHED = ".unfinished-"


# Each is its own key in a dict; to compare hundreds of indices would be slow.
@dataclass(frozen=True, eq=False)
class Chunk:
    """A chunk to write: ``chunk-0-<number>.bin`` of a split with the images ``indices``."""

    split: str
    number: int
    indices: tuple[int, ...]
    fingerprint: str

    def file(self, root: Path) -> Path:
        """Where it is written, below the folder of all splits."""
        return root / self.split / f"chunk-0-{self.number}.bin"


@dataclass
class Written:
    """What is known of a chunk once it is written; a small json file beside it.

    Attributes:
        fingerprint: Of the images it was made from.
        broken: Where its images that cannot be decoded are, and why.
        skipped: Indices of those; without ``skip_broken`` such a chunk is not written.
        offsets: Where the bytes of each image that is there begin in the file.
        lengths: How many they are.
        num_bytes: Size of the file; 0 if there is none.
        xxh64: Of the file.
    """

    fingerprint: str
    broken: list[str] = field(default_factory=list)
    skipped: list[int] = field(default_factory=list)
    offsets: list[int] = field(default_factory=list)
    lengths: list[int] = field(default_factory=list)
    num_bytes: int = 0
    xxh64: str = ""


def fingerprint(parts: Iterable[object]) -> str:
    """A hash of what things print as.

    >>> fingerprint(["a", 1])
    '77b061ebf01b3be2'
    """
    digest = xxhash.xxh64()
    for part in parts:
        digest.update(f"{part}\0".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


def stored(data: bytes, place: str, short_side: int | None) -> bytes:
    """Decodes an image to see that it can be, and returns the bytes to keep.

    Args:
        data: The image file.
        place: Where it is, for messages.
        short_side: Images with a longer short side are made smaller, as JPEG of quality 90.

    Raises:
        ValueError: If it cannot be decoded.
    """
    if not data:
        raise ValueError(f"cannot read image {place}: the file is empty")
    image = decode(data, place)
    if short_side is None or min(image.shape[-2:]) <= short_side:
        return data
    return _smaller(image, short_side)


def _smaller(image: Tensor, short_side: int) -> bytes:
    cubic = v2.InterpolationMode.BICUBIC
    image = v2.functional.resize(image, [short_side], interpolation=cubic, antialias=True)
    file = io.BytesIO()
    v2.functional.to_pil_image(image).save(file, "JPEG", quality=90)
    return file.getvalue()


def write_chunk(
    chunk: Chunk,
    source: Source,
    *,
    root: Path,
    short_side: int | None,
    skip_broken: bool,
    tick: Callable[[], None],
) -> Written:
    """Writes a chunk and what is known of it; both are there afterwards, or neither.

    Args:
        chunk: Which images, and where to.
        source: Holds them.
        root: Folder of all splits.
        short_side: See `stored`.
        skip_broken: Leaves broken images out; else a chunk that has some is not written.
        tick: Called after each image.

    Raises:
        OSError: If an image cannot be read or the disk is full.
        ValueError: If the chunk is larger than its format allows.
    """
    written = Written(chunk.fingerprint)
    items: list[Item] = []
    for index in chunk.indices:
        place = source.place(index)
        try:
            image = stored(_read(source, index), place, short_side)
            items.append(Item(image, int(source.labels[index]), source.keys[index]))
        except ValueError as error:
            written.broken.append(str(error).partition("; ")[0])
            written.skipped.append(index)
        tick()
    if written.broken and not skip_broken:
        return written
    target = chunk.file(root)
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=UNFINISHED, dir=target.parent) as folder:
        if items:
            file = Path(folder, target.name)
            written.offsets, written.xxh64 = write_items(file, items)
            written.lengths = [len(item.image) for item in items]
            written.num_bytes = file.stat().st_size
            sync(file)
            file.replace(target)
        replace_text(target.with_suffix(".json"), json.dumps(asdict(written)))
    return written


def _read(source: Source, index: int) -> bytes:
    try:
        return source.read(index)
    except OSError as error:
        # Not the image's fault: it may well be readable tomorrow, so it is never left out.
        raise OSError(
            f"cannot read {source.place(index)}: {error.strerror or error}; once it can be read, "
            "the same command goes on"
        ) from None


def read_written(chunk: Chunk, root: Path, *, skip_broken: bool) -> Written | None:
    """What is known of a chunk that an earlier run finished, if it is of use now."""
    file = chunk.file(root)
    try:
        written = Written(**json.loads(file.with_suffix(".json").read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None
    size = file.stat().st_size if file.exists() else 0
    fits = written.fingerprint == chunk.fingerprint and written.num_bytes == size
    return written if fits and (skip_broken or not written.broken) else None


def replace_text(file: Path, text: str) -> None:
    """Writes a small file so that after any stop it is the old or the new one."""
    unfinished = file.with_name(f"{UNFINISHED}{file.name}")
    unfinished.write_text(text, encoding="utf-8")
    sync(unfinished)
    unfinished.replace(file)


def clear_unfinished(root: Path) -> None:
    """Removes what a run that was killed left half done."""
    for path in [*root.glob(f"{UNFINISHED}*"), *root.glob(f"*/{UNFINISHED}*")]:
        shutil.rmtree(path) if path.is_dir() else path.unlink()
