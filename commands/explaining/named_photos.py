"""The classes of photos, out of a checkpoint alone: a table, and a csv."""

import csv
import io
import os
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from rich.text import Text
from torch import Tensor

from litcam.commands.cli import errors
from litcam.commands.cli.devices import find_device
from litcam.commands.cli.options import OptionParser
from litcam.commands.explaining.models import Model, load_model
from litcam.commands.explaining.photos import Tick, find_photos, progress_bar, read_photo
from litcam.commands.explaining.words import name_photos
from litcam.datamodules.loading import num_cores
from litcam.datamodules.pixels.transforms import normalize
from litcam.files import write_whole
from litcam.lightning_modules.atomic_checkpoints import newest_readable

# What a program says that was stopped by Ctrl-C.
STOPPED = 130
# More rows than anybody reads on a terminal.
MAX_ROWS = 20

Row = tuple[str, list[tuple[str, float]]]


def predict(args: Sequence[str]) -> None:
    """Names what is on photos; `args` are the words after `litcam predict`.

    Raises:
        ValueError: If an option makes no sense, the checkpoint cannot be used, or no photo read.
        OSError: If there is no such checkpoint.
    """
    options = parse(args)
    photos, problems = find_photos(options.photos)
    for problem in problems:
        _leave_out(problem)
    model = _load(options.ckpt_path)
    model.network.to(options.device)
    rows: list[Row] = []
    stopped = False
    try:
        with progress_bar(len(photos)) as tick, torch.inference_mode():
            for row in _predict(model, photos, options, tick):
                rows.append(row)
    except KeyboardInterrupt:
        stopped = True
    if not rows and not stopped:
        raise ValueError("no photo could be read, for the reasons above")
    _write(options.out, rows, min(options.topk, len(rows[0][1])) if rows else 0)
    _show(rows)
    print(f"What is on {len(rows)} of {len(photos)} photos: {options.out}")
    if stopped:
        sys.exit(STOPPED)


def parse(args: Sequence[str]) -> Any:
    """The options, each held against what it can be.

    Raises:
        ValueError: If one makes no sense.
    """
    parser = OptionParser("predict")
    parser.add_argument("photos", nargs="*", default=[])
    parser.add_argument("--ckpt_path", default="")
    parser.add_argument("--topk", type=int, default=3)
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--out", type=Path, default=Path("predictions.csv"))
    parser.add_argument("--device", default="auto")
    options = parser.parse_args(list(args))
    if not options.photos or not options.ckpt_path:
        missing = "a photo" if not options.photos else "--ckpt_path"
        raise ValueError(f"missing: {missing}; see `litcam predict --help`")
    for name in ("topk", "batch_size"):
        if getattr(options, name) < 1:
            raise ValueError(f"--{name} must be at least 1, got {getattr(options, name)}")
    if options.out.exists() and not options.out.is_file():
        raise ValueError(f"--out {options.out} is no ordinary file; give another")
    if not os.access(options.out.absolute().parent, os.W_OK):
        raise ValueError(f"--out {options.out}: its folder cannot be written to; give another")
    options.device = find_device(options.device)
    return options


def _load(name: str) -> Model:
    path = Path(name)
    if path.is_dir() and not (path / "config.json").is_file():
        inside = newest_readable(path) or newest_readable(path / "checkpoints")
        there = f"the newest in it is {inside}" if inside else "there is no checkpoint in it"
        raise ValueError(f"ckpt_path {name} is a folder; {there}")
    if not path.exists() and not {"=", ":"} & set(name):
        beside = [at.name for at in path.parent.glob("*")]
        near = get_close_matches(path.name, beside)
        hint = f"did you mean {path.parent / near[0]}?" if near else "check the path"
        raise FileNotFoundError(f"ckpt_path {name} does not exist; {hint}")
    model = load_model(name, pretrained=True)
    if not model.has_classes:
        raise ValueError(
            f"ckpt_path {name} is an encoder, which knows no classes; fine-tune it first: "
            f"litcam fit --model.weights {name}"
        )
    return model


def _predict(model: Model, photos: Sequence[Path], options: Any, tick: Tick) -> Iterator[Row]:
    """Reads photos in threads, and names them a batch at a time."""

    def read(photo: Path) -> Tensor | Exception:
        try:
            return read_photo(photo, model.image_size, model.config)
        except (ValueError, OSError) as error:
            return error

    with ThreadPoolExecutor(num_cores()) as pool:
        for done in range(0, len(photos), options.batch_size):
            some = photos[done : done + options.batch_size]
            tick(done, some[0].name)
            found = list(zip(some, pool.map(read, some), strict=True))
            for _, error in found:
                if isinstance(error, Exception):
                    _leave_out(str(error))
            images = [(photo, image) for photo, image in found if isinstance(image, Tensor)]
            if images:
                batch = torch.stack([image for _, image in images]).to(options.device)
                best = _best(model, normalize(batch, model.config), options.topk)
                yield from zip((str(photo) for photo, _ in images), best, strict=True)


def _best(model: Model, images: Tensor, topk: int) -> list[list[tuple[str, float]]]:
    """The names and probabilities of the likeliest classes of each image."""
    try:
        logits = model.network(images)
    except RuntimeError as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise ValueError(f"{model.name} cannot take photos: {reason}") from None
    found = logits.float().softmax(dim=1).topk(min(topk, logits.shape[1]))
    names = model.classes or [f"class {number}" for number in range(logits.shape[1])]
    return [
        [(names[label], value) for label, value in zip(labels, values, strict=True)]
        for labels, values in zip(found.indices.tolist(), found.values.tolist(), strict=True)
    ]


def _write(file: Path, rows: Sequence[Row], topk: int) -> None:
    r"""As `PredictionsFile` does: bytes of a name that are not UTF-8 become ``\udcXX``."""
    text = io.StringIO()
    numbers = ["", *(f"_{place}" for place in range(2, topk + 1))]
    table = csv.writer(text)
    table.writerow(["image", *(f"{name}{n}" for n in numbers for name in ("class", "probability"))])
    for photo, best in rows:
        table.writerow([photo, *(at for name, p in best for at in (name, f"{p:.4f}"))])
    write_whole(file, text.getvalue().encode(errors="backslashreplace").decode())


def _show(rows: Sequence[Row]) -> None:
    shown = rows[:MAX_ROWS]
    table = Table(box=None)
    for title in ("photo", "class", "probability"):
        table.add_column(title)
    titles = name_photos([Path(photo) for photo, _ in shown]).values()
    for photo, (_, ((name, probability), *_others)) in zip(titles, shown, strict=True):
        words = (photo, name, f"{probability:.2f}")
        table.add_row(*(Text(errors.in_short(word)) for word in words))
    Console().print(table)
    if len(rows) > MAX_ROWS:
        print(f"… and {len(rows) - MAX_ROWS} more")


def _leave_out(line: str) -> None:
    print(f"left out: {errors.in_short(line)}")
