"""LitData's own format of a chunk, written with every place known: nothing of LitData is needed.

A chunk is ``uint32`` number of items, ``uint32`` where each begins and where the last ends, and the
items. An item is three ``uint32`` lengths and the three values one after another: the image file,
the label as ``int64``, the key in UTF-8. All are little-endian. Source: litdata 0.2.76.
"""

import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import xxhash

__all__ = ["Item", "index_of", "write_items"]

# What LitData has to know to read items back as dicts of `Item`.
CONFIG: dict[str, Any] = {
    "chunk_bytes": None,
    "compression": None,
    "compression_batch_size": None,
    "compression_level": None,
    "data_format": ["bytes", "int", "str"],
    "data_spec": (
        '[1, {"type": "builtins.dict", "context": "[\\"image\\", \\"label\\", \\"key\\"]", '
        '"children_spec": [{"type": null, "context": null, "children_spec": []}, '
        '{"type": null, "context": null, "children_spec": []}, '
        '{"type": null, "context": null, "children_spec": []}]}]'
    ),
    "encryption": None,
    "ipc_compression": None,
    "item_loader": "PyTreeLoader",
    "types": {"image": "bytes", "key": "str", "label": "int"},
}
LENGTHS = struct.Struct("<3I")
LABEL = struct.Struct("<q")
LARGEST = 2**32 - 1


class Item(NamedTuple):
    """An image of a chunk."""

    image: bytes
    label: int
    key: str


def write_items(file: Path, items: Sequence[Item]) -> tuple[list[int], str]:
    """Writes a chunk.

    Args:
        file: To write.
        items: In their order.

    Returns:
        Where the bytes of each image begin in the file, and the xxh64 of the file.

    Raises:
        ValueError: If the format has no numbers for a file so large.
        OSError: If the disk is full.
    """
    keys = [item.key.encode() for item in items]
    lengths = [
        (len(item.image), LABEL.size, len(key)) for item, key in zip(items, keys, strict=True)
    ]
    head = 4 * (1 + len(items) + 1)
    starts = head + np.cumsum([0, *(LENGTHS.size + sum(three) for three in lengths)])
    if starts[-1] > LARGEST:
        raise ValueError(f"{file.name} would have {starts[-1]:,} bytes; give a smaller --chunk_mb")
    digest = xxhash.xxh64()
    with file.open("wb") as handle:
        for part in (struct.pack("<I", len(items)), starts.astype("<u4").tobytes()):
            handle.write(part)
            digest.update(part)
        for item, key, three in zip(items, keys, lengths, strict=True):
            for part in (LENGTHS.pack(*three), item.image, LABEL.pack(item.label), key):
                handle.write(part)
                digest.update(part)
    return (starts[:-1] + LENGTHS.size).tolist(), digest.hexdigest()


def index_of(chunks: Sequence[Mapping[str, Any]], updated_at: str) -> dict[str, Any]:
    """What LitData's ``index.json`` says of a split.

    Args:
        chunks: ``file``, ``num_images`` and ``num_bytes`` of each.
        updated_at: By which LitData tells whether its copy of a remote folder is still good.
    """
    entries = [
        {
            "chunk_bytes": chunk["num_bytes"],
            "chunk_size": chunk["num_images"],
            "dim": None,
            "filename": chunk["file"],
        }
        for chunk in chunks
    ]
    largest = max(chunk["num_images"] for chunk in chunks)
    return {
        "chunks": entries,
        "config": {**CONFIG, "chunk_size": largest},
        "updated_at": updated_at,
    }
