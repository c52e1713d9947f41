"""Chunks written by several processes, which stop together."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from litcam.datamodules.convert.chunks import Chunk, Written, write_chunk
from litcam.datamodules.convert.inputs import Source

__all__ = ["Settings", "write_chunks"]

# How often the bar moves, in seconds.
PERIOD = 0.25


@dataclass(frozen=True)
class Settings:
    """What is alike for all chunks; see `chunks.write_chunk`."""

    root: Path
    short_side: int | None
    skip_broken: bool


class _StoppedError(Exception):
    """Ends a chunk half done, because another one failed or the user has enough."""


def write_chunks(
    chunks: list[Chunk],
    sources: dict[str, Source],
    settings: Settings,
    *,
    num_workers: int,
    tick: Callable[[int], None],
) -> Iterator[tuple[Chunk, Written]]:
    """Writes chunks, and yields each as it is done, in any order.

    Args:
        chunks: What to write.
        sources: The images of each split.
        settings: How.
        num_workers: Processes; with 0 or 1 this one does it.
        tick: Called with the number of images done so far.

    Raises:
        OSError: If an image cannot be read, the disk is full, or a process died.
    """
    num_workers = min(num_workers, len(chunks))
    if num_workers > 1:
        yield from _in_processes(chunks, sources, settings, num_workers, tick)
        return
    done = 0

    def count() -> None:
        nonlocal done
        done += 1
        tick(done)

    for chunk in chunks:
        yield chunk, _write(chunk, sources, settings, count)


def _write(
    chunk: Chunk, sources: dict[str, Source], settings: Settings, tick: Callable[[], None]
) -> Written:
    return write_chunk(
        chunk,
        sources[chunk.split],
        root=settings.root,
        short_side=settings.short_side,
        skip_broken=settings.skip_broken,
        tick=tick,
    )


def _in_processes(
    chunks: list[Chunk],
    sources: dict[str, Source],
    settings: Settings,
    num_workers: int,
    tick: Callable[[int], None],
) -> Iterator[tuple[Chunk, Written]]:
    # A fork of a process with threads (torch has some) may hang.
    context = multiprocessing.get_context("spawn")
    done, stop = context.Value("q", 0), context.Event()
    arguments = (sources, settings, done, stop)
    pool = ProcessPoolExecutor(num_workers, context, _start, arguments)
    try:
        futures: dict[Future[Written], Chunk] = {pool.submit(_work, at): at for at in chunks}
        while futures:
            ready, _ = wait(futures, timeout=PERIOD, return_when=FIRST_COMPLETED)
            tick(done.value)
            for future in ready:
                yield futures.pop(future), future.result()
    except BrokenProcessPool:
        raise OSError(
            "a worker process was killed, perhaps because memory ran out; the same command with "
            "a smaller --num_workers goes on"
        ) from None
    finally:
        stop.set()
        pool.shutdown(cancel_futures=True)


# What a worker process was started with.
_state: dict[str, Any] = {}


def _start(sources: dict[str, Source], settings: Settings, done: Any, stop: Any) -> None:
    # Ctrl-C reaches every process of the terminal; only the first one answers it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(1)
    _state.update(sources=sources, settings=settings, done=done, stop=stop)


def _end_with_parent() -> None:
    # A pool whose owner was killed would wait for work forever.
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _work(chunk: Chunk) -> Written:
    return _write(chunk, _state["sources"], _state["settings"], _tick)


def _tick() -> None:
    with _state["done"].get_lock():
        _state["done"].value += 1
    if _state["stop"].is_set():
        raise _StoppedError
