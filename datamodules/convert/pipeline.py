"""From photos in any layout to shards: gone on with after any stop, whole or not there at all."""

import errno
import fcntl
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from litcam.datamodules.convert.chunks import UNFINISHED, replace_text
from litcam.datamodules.convert.inputs import Source, open_source
from litcam.datamodules.convert.manifest import (
    expected_files,
    read_manifest,
    write_manifest,
    write_split,
)
from litcam.datamodules.convert.plan import PLAN, Plan, make_plan
from litcam.datamodules.convert.workers import Settings, write_chunks
from litcam.datamodules.shard_format import MANIFEST
from litcam.files import sync

__all__ = ["CHUNK_BYTES", "convert"]

CHUNK_BYTES = 64_000_000
BROKEN = "broken.txt"
OURS = {PLAN, MANIFEST, BROKEN, "unpacked", "train", "val", "test"}
FULL = (errno.ENOSPC, errno.EDQUOT)


def convert(
    src: str | Path,
    dst: str | Path,
    *,
    short_side: int | None = None,
    num_workers: int = 0,
    chunk_bytes: int = CHUNK_BYTES,
    seed: int = 0,
    skip_broken: bool = False,
    say: Callable[[str], None] = print,
    tick: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, Any]:
    """Writes the images of a folder as LitData shards that litcam also reads at random.

    Args:
        src: Folder in one of the layouts of `litcam.datamodules.convert.inputs`.
        dst: Folder to make. Until it is whole, everything is in ``dst.partial``; the same call
            goes on from what is there.
        short_side: Makes larger images smaller, so that their short side is this long.
        num_workers: Processes; with 0 or 1 this one does it.
        chunk_bytes: About the size of a chunk.
        seed: Of the order in which images are laid into chunks.
        skip_broken: Leaves out images that cannot be decoded.
        say: Takes each line of news.
        tick: Called with the number of images done, and of all.

    Returns:
        The manifest.

    Raises:
        ValueError: If an argument makes no sense, ``dst.partial`` was begun with other ones, or
            images are broken.
        OSError: If ``dst`` exists or the disk is full.
    """
    src, dst = Path(src).expanduser(), Path(dst).expanduser()
    _check_arguments(src, dst, short_side, chunk_bytes)
    partial = dst.with_name(dst.name + ".partial")
    settings = Settings(partial, short_side, skip_broken)
    plan = Plan()
    with _only_one(partial):
        try:
            sources = open_source(src, partial / "unpacked")
            plan = make_plan(
                sources,
                partial,
                seed=seed,
                chunk_bytes=chunk_bytes,
                short_side=short_side,
                skip_broken=skip_broken,
            )
            if not (partial / MANIFEST).exists():
                if plan.goes_on:
                    say(f"going on: {len(plan.done())} of {len(plan.chunks)} chunks are there")
                _write_chunks(plan, sources, settings, num_workers=num_workers, tick=tick)
                _report_broken(plan, settings, say)
                splits = {
                    split: write_split(partial, source, plan.of(split), plan.written)
                    for split, source in sources.items()
                }
                classes = sources["train"].classes
                write_manifest(partial, splits, classes=classes, seed=seed, short_side=short_side)
            _publish(partial, dst)
        except OSError as error:
            if error.errno not in FULL:
                raise
            raise _full_disk(plan, partial) from None
    return read_manifest(dst)


def _check_arguments(src: Path, dst: Path, short_side: int | None, chunk_bytes: int) -> None:
    if short_side is not None and short_side < 1:
        raise ValueError(f"short_side must be at least 1, got {short_side}")
    if not 1 <= chunk_bytes <= 2_000_000_000:
        raise ValueError(
            f"chunk_mb must be above 0 and at most 2000, got {chunk_bytes / 1e6:g}; 64 is usual"
        )
    if dst.exists():
        raise FileExistsError(
            f"{dst} exists; give another DST, delete it, or see whether it is whole with "
            f"`litcam convert --check {dst}`"
        )
    here, there = src.resolve(), dst.resolve()
    if here in there.parents or there in here.parents:
        raise ValueError(f"{dst} and {src} lie in each other; give a DST beside SRC")
    if src.is_dir() and not dst.parent.is_dir():
        raise FileNotFoundError(f"{dst.parent} does not exist; make it first, or check the path")


def _is_ours(partial: Path) -> bool:
    names = (path.name.removeprefix(UNFINISHED) for path in partial.iterdir())
    return OURS.issuperset(names)


@contextmanager
def _only_one(partial: Path) -> Iterator[None]:
    if partial.is_dir() and not _is_ours(partial):
        raise FileExistsError(
            f"{partial} is not what litcam convert left there; move it away or delete it"
        )
    try:
        existed = partial.exists()
        partial.mkdir(exist_ok=True)
        # The folder itself is locked, and so nothing is left to remove before it is published.
        handle = os.open(partial, os.O_RDONLY)
    except OSError as error:
        raise OSError(f"cannot write to {partial}: {error.strerror}; give another DST") from None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError:
        raise FileExistsError(f"another litcam convert is at work in {partial}") from None
    finally:
        os.close(handle)
        # What was refused before it began leaves nothing behind.
        if not existed and partial.exists() and not any(partial.iterdir()):
            partial.rmdir()


def _write_chunks(
    plan: Plan,
    sources: dict[str, Source],
    settings: Settings,
    *,
    num_workers: int,
    tick: Callable[[int, int], None],
) -> None:
    total = sum(len(chunk.indices) for chunk in plan.chunks)
    before = sum(len(chunk.indices) for chunk in plan.done())
    tick(before, total)
    found = write_chunks(
        plan.missing(),
        sources,
        settings,
        num_workers=num_workers,
        tick=lambda done: tick(before + done, total),
    )
    for chunk, written in found:
        plan.written[chunk] = written


def _report_broken(plan: Plan, settings: Settings, say: Callable[[str], None]) -> None:
    broken = [line for chunk in plan.chunks for line in plan.written[chunk].broken]
    if not broken:
        return
    # "cannot read image PLACE: REASON", and the places are what counts.
    lines = [line.removeprefix("cannot read image ") for line in broken]
    shown = "; ".join(lines[:3]) + (f"; and {len(lines) - 3} more" if len(lines) > 3 else "")
    count = f"{len(lines)} image{'s' if len(lines) > 1 else ''}"
    if settings.skip_broken:
        say(f"left out {count} that cannot be decoded ({MANIFEST} lists them): {shown}")
        return
    replace_text(settings.root / BROKEN, "\n".join(lines) + "\n")
    raise ValueError(
        f"{count} cannot be decoded: {shown}; all are in {settings.root / BROKEN}. Replace them "
        "and give the same command again, or leave them out with --skip_broken; finished chunks "
        "are kept"
    )


def _publish(partial: Path, dst: Path) -> None:
    expected = expected_files(read_manifest(partial))
    shutil.rmtree(partial / "unpacked", ignore_errors=True)
    # The plan goes last: until then, the same command ends what this one began.
    for path in sorted(partial.rglob("*"), key=lambda path: path.name == PLAN):
        if path.is_file() and path.relative_to(partial).as_posix() not in expected:
            path.unlink()
    sync(partial)
    partial.rename(dst)
    sync(dst.parent)


def _full_disk(plan: Plan, partial: Path) -> OSError:
    done = f"{len(plan.done())} of {len(plan.chunks)} chunks are" if plan.chunks else "no chunk is"
    about = f"; about {plan.missing_bytes() / 1e6:,.0f} MB are missing" if plan.chunks else ""
    return OSError(
        f"the disk of {partial} is full: {done} written{about}. Make room, and the same command "
        "goes on"
    )
