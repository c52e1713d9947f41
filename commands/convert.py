"""`litcam convert`: a folder of images as shards, which disks and networks read quickly."""

import argparse
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, Task, TaskProgressColumn, TextColumn
from rich.progress import TimeRemainingColumn as Eta
from rich.text import Text

from litcam.commands.cli.options import OptionParser

INTERRUPTED = 130

PAGE = """\
usage: litcam convert SRC DST [OPTIONS]
       litcam convert --check DST

  Writes the images of SRC into DST as shards: few large files, which network disks, object stores
  and clusters with a limit on the number of files read many times faster than single images.
  Training takes them as it takes folders: --data.root DST. litdata.StreamingDataset reads them too.
  Images keep their bytes. Each is decoded once, so that a broken one is found now.

SRC is one of
{layouts}
  A tar holds NAME.jpg (jpeg, png, webp) with NAME.cls, or NAME.json with "label"; a classes.txt
  beside the tars names the numbers. Parquet files need pyarrow (pip install pyarrow) and room to
  unpack them once.

DST must not exist. Until all is written, the work is in DST.partial; whatever stopped it, the same
command goes on.

Options
  --short_side N     make larger images smaller: short side N, JPEG of quality 90 (changes the data)
  --num_workers N    processes (default: {workers}, as many as there are cores, at most 8)
  --chunk_mb 64      size of a shard; images are laid into shards in an order shuffled once
  --seed 0           of that order
  --skip_broken      leave out images that cannot be decoded, and list them
  --check DST        compare every file of DST with what was written

For instance: litcam convert imagenet imagenet-shards --short_side 512"""


def convert(args: Sequence[str]) -> None:
    """Converts a folder or checks one; `args` are the words after `litcam convert`.

    Raises:
        ValueError: If an option makes no sense.
    """
    # Takes seconds; the page does not need it.
    if not {"-h", "--help"}.isdisjoint(args):
        print(_page())
        return
    options = _parser().parse_args(list(args))
    if not 0 < options.chunk_mb <= 2000:  # nor is it nan
        raise ValueError(
            f"chunk_mb must be above 0 and at most 2000, got {options.chunk_mb:g}; 64 is usual"
        )
    if options.check is not None:
        _check(Path(options.check))
        return
    if options.src is None or options.dst is None:
        raise ValueError("missing: SRC and DST; `litcam convert --help` shows what they are")
    try:
        _convert(options)
    except KeyboardInterrupt:
        print("litcam: stopped; the same command goes on", file=sys.stderr)
        sys.exit(INTERRUPTED)


def _parser() -> argparse.ArgumentParser:
    parser = OptionParser("convert")
    parser.add_argument("src", nargs="?")
    parser.add_argument("dst", nargs="?")
    parser.add_argument("--short_side", type=int)
    parser.add_argument("--num_workers", type=int, default=_num_workers())
    parser.add_argument("--chunk_mb", type=float, default=64.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--skip_broken", action="store_true")
    parser.add_argument("--check", metavar="DST")
    return parser


def _page() -> str:
    from litcam.datamodules.convert.inputs import LAYOUTS

    layouts = "\n".join(f"  {name:22}{layout}" for name, layout in LAYOUTS.items())
    return PAGE.format(layouts=layouts, workers=_num_workers())


def _num_workers() -> int:
    # A job on a cluster may use fewer cores than the machine has.
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return min(8, cores or 1)


def _convert(options: argparse.Namespace) -> None:
    from litcam.datamodules import convert as conversion

    if options.short_side:
        print(
            f"--short_side {options.short_side} changes the data: larger images are made smaller "
            "(bicubic) and become JPEGs of quality 90; smaller ones keep their bytes"
        )
    with _bar("images") as (say, tick):
        manifest = conversion.convert(
            options.src,
            options.dst,
            short_side=options.short_side,
            num_workers=options.num_workers,
            chunk_bytes=round(options.chunk_mb * 1e6),
            seed=options.seed,
            skip_broken=options.skip_broken,
            say=say,
            tick=tick,
        )
    print(
        f"{_content(manifest['splits'].values())} of {len(manifest['classes'])} classes in "
        f"{options.dst}. Train with: litcam fit --config finetune_resnet34.yaml "
        f"--data.root {options.dst}"
    )


def _check(root: Path) -> None:
    from litcam.datamodules.convert import manifest

    sizes = manifest.read_manifest(root)["splits"].values()
    total = sum(chunk["num_bytes"] for about in sizes for chunk in about["chunks"])
    done = 0
    with _bar("bytes") as (_, tick):

        def count(num_bytes: int) -> None:
            nonlocal done
            done += num_bytes
            tick(min(done, total), total)

        found = manifest.check(root, count)
    for split, about in found["splits"].items():
        left_out = f", {len(about['skipped'])} left out" if about["skipped"] else ""
        print(f"{split}: {_content([about])}{left_out}, all as written")


def _content(splits: Any) -> str:
    chunks = [chunk for about in splits for chunk in about["chunks"]]
    images = sum(chunk["num_images"] for chunk in chunks)
    size = sum(chunk["num_bytes"] for chunk in chunks)
    return f"{images:,} images ({size / 1e9:.2f} GB) in {len(chunks)} chunks"


class _Speed(TextColumn):
    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text("" if speed is None else f"{self._short(speed)} {task.fields['unit']}/s")

    @staticmethod
    def _short(number: float) -> str:
        return f"{number / 1e6:,.0f} M" if number >= 1e7 else f"{number:,.0f}"


@contextmanager
def _bar(unit: str) -> Iterator[tuple[Callable[[str], None], Callable[[int, int], None]]]:
    columns = TextColumn("{task.description}"), BarColumn(), TaskProgressColumn()
    console = Console(stderr=True)
    # A log file would get every state of the bar.
    silent = not console.is_terminal
    with Progress(
        *columns, _Speed(""), Eta(), console=console, transient=True, disable=silent
    ) as progress:
        task = progress.add_task(f"looking for {unit}", total=None, unit=unit)

        def tick(done: int, total: int) -> None:
            progress.update(task, description=unit, completed=done, total=total)

        yield lambda line: progress.print(line) if not silent else print(line), tick
