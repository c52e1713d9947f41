"""A chunk, and what there is to ask about a cache; for the tests of this room."""

import time

import xxhash

from litcam.datamodules.remote import StoredFile

KEY = "data/train/chunk-0-0.bin"
NAME = "train/chunk-0-0.bin"
CHUNK = bytes(range(256)) * 1200
HASH = xxhash.xxh64(CHUNK).hexdigest()


def fetch(store):
    return store.path(NAME, num_bytes=len(CHUNK), xxh64=HASH)


def chunks(count):
    return [StoredFile(f"train/{number}.bin", len(CHUNK), HASH) for number in range(count)]


def files_of(store):
    found = (path.name for path in store.folder.rglob("*") if path.is_file())
    return sorted(name for name in found if name != "CACHEDIR.TAG")


def here(store):
    """Numbers of the chunks that lie in the cache."""
    return {int(name[:-4]) for name in files_of(store) if name.endswith(".bin")}


def one_line(caught):
    message = str(caught.value)
    assert "\n" not in message
    assert caught.traceback[-1].frame.f_globals["__name__"].startswith("litcam.datamodules")
    return message


def wait_for(condition, seconds=20):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)
