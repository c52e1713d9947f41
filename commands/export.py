"""`litcam export`: a run's network as others load it."""

import argparse
import logging
import shutil
from collections.abc import Sequence
from itertools import count
from pathlib import Path

from safetensors import SafetensorError

from litcam.commands.cli.options import OptionParser
from litcam.commands.exporting import (
    Source,
    check_installed,
    find_source,
    images_to_compare,
    write_card,
    write_onnx,
    write_timm,
)
from litcam.files import sync

PAGE = """\
usage: litcam export RUN [OPTIONS]

  Writes the network of a run as others load it: a folder of timm's and of Hugging Face's hub,
  config.json and model.safetensors, with images and classes as trained, and a model card,
  README.md, of what the run knows. timm.create_model("local-dir:FOLDER", pretrained=True) loads it,
  and so do litcam explain --models FOLDER and litcam fit --model.weights FOLDER.

RUN is the folder of a run, or one above it (then the newest run in it is taken), a checkpoint, or
the encoder.safetensors of a pretraining. Of a run the best checkpoint is taken, with averaged
weights where it has them.

Options
  --ckpt_path FILE      another checkpoint of the run; `last` is its last.ckpt
  --out FOLDER          default: exported, in the run's folder
  --overwrite           where there is such a folder already; other files in it stay
  --no_pictures         leave out the run's heatmaps: they show its validation photos
  --onnx                model.onnx as well, for any number of images, held against PyTorch's logits;
                        pip install litcam[onnx]"""

# All that is ever written, so that of an older export nothing stays beside a newer one.
FILES = ("config.json", "model.safetensors", "model.onnx", "pictures", "README.md")


def export(args: Sequence[str]) -> None:
    """Exports a run; `args` are the words after `litcam export`.

    Raises:
        OSError: There is no such run or checkpoint.
        ValueError: It is damaged, the folder is there already or cannot be written to, or an option
            makes no sense.
    """
    if not args or not {"-h", "--help"}.isdisjoint(args):
        print(PAGE)
        return
    options = _parse(args)
    if options.onnx:
        check_installed()
    # How many tensors were loaded is no news here.
    logging.getLogger("lightning.pytorch.utilities.rank_zero").setLevel(logging.WARNING)
    source = find_source(options.run, options.ckpt_path)
    out = options.out or source.run / "exported"
    _check_free(out, options.overwrite)
    try:
        lines = _write_whole(source, out, options)
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())
        raise ValueError(f"cannot write to {out}: {reason}; give another --out") from None
    print("\n".join(lines))


def _parse(args: Sequence[str]) -> argparse.Namespace:
    parser = OptionParser("export")
    parser.add_argument("run", type=Path)
    parser.add_argument("--ckpt_path", default="")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--overwrite", action="store_true")
    parser.add_argument("--no_pictures", action="store_true")
    parser.add_argument("--onnx", action="store_true")
    return parser.parse_args(args)


def _check_free(out: Path, overwrite: bool) -> None:
    if out.exists() and not out.is_dir():
        raise ValueError(f"--out {out} is a file; give a folder")
    if not out.is_dir() or not any(out.iterdir()):
        return
    if not overwrite:
        raise ValueError(f"folder {out} is there already; give another --out, or add --overwrite")
    if not all((out / name).is_file() for name in ("config.json", "model.safetensors")):
        raise ValueError(f"folder {out} holds no export to write over; give another --out")


def _write_whole(source: Source, out: Path, options: argparse.Namespace) -> list[str]:
    """Writes a folder beside the place, which then takes it; the lines that tell what and where."""
    place = out.resolve()
    partial = place.with_name(f"{place.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)  # of a kill
    try:
        partial.mkdir(parents=True)
        lines = _write_all(source, partial, out, options)
        return [*_put(partial, place), *lines]
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _write_all(source: Source, folder: Path, out: Path, options: argparse.Namespace) -> list[str]:
    write_timm(source.model, folder)
    compared = _write_onnx(source, folder) if options.onnx else ""
    write_card(source, folder, out, pictures=not options.no_pictures, onnx=compared)
    shown = sum(1 for _ in folder.glob("pictures/*"))
    size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) / 1e6
    why = f" ({source.told})" if source.told else ""
    lines = [f"{source.file}{why} as a folder of timm's: {out} ({size:.1f} MB)"]
    lines.append(f'Load it: timm.create_model("local-dir:{out}", pretrained=True)')
    beside = f", and its {shown} pictures: photos of the run" if shown else ""
    lines.append(f"Read it before you publish it: {out / 'README.md'}{beside}")
    return lines + ([f"ONNX: {compared}"] if compared else [])


def _write_onnx(source: Source, folder: Path) -> str:
    images, what = images_to_compare(source.run, source.model)
    difference, largest = write_onnx(source.model.network, images, folder / "model.onnx")
    return (
        "model.onnx takes `images` (batch, 3, height, width), normalised, and gives `logits`; over "
        f"{len(images)} {what} they differ from PyTorch's by {difference:.1g} at most, where the "
        f"largest is {largest:.2g}."
    )


def _put(partial: Path, out: Path) -> list[str]:
    """Puts a whole folder in its place; a line where an older card makes way."""
    for path in partial.rglob("*"):
        sync(path)
    if not out.is_dir():
        partial.replace(out)
        return []
    kept, card = [], out / "README.md"
    if card.is_file() and card.read_bytes() != (partial / card.name).read_bytes():
        names = (out / f"README.old{number or ''}.md" for number in count())
        older = next(path for path in names if not path.exists())
        card.replace(older)
        kept.append(f"The README.md that was there is {older}")
    for name in FILES:
        if (out / name).is_dir():
            shutil.rmtree(out / name)
        if (partial / name).exists():
            (partial / name).replace(out / name)
        else:
            (out / name).unlink(missing_ok=True)
    return kept
