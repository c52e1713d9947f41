"""`litcam explain`: photos × models × classes × methods in one figure."""

import argparse
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch
import yaml
from PIL import Image
from rich.progress import track
from torchvision.transforms import v2

from litcam.commands import errors
from litcam.commands.config_files import find_configs
from litcam.commands.explained_models import Model, load_model
from litcam.datamodules.images import decode
from litcam.datamodules.layouts import is_image
from litcam.datamodules.transforms import eval_transform, normalize
from litcam.explain.comparison import Cell, explain_photo
from litcam.explain.figures import enlarge, overlay, sheet
from litcam.explain.methods import METHODS, find_method

PAGE = """\
usage: litcam explain PHOTO [PHOTO …] --models NAME [NAME …] [OPTIONS]

  Shows where networks look for a class: a row for each photo and model, a column for each class
  and method. Writes figure.png, each heatmap, and explain.json with what made them.

PHOTO is a file or a folder. A model is a name of timm's, or last.ckpt of a run.

Options
  --models NAME …       resnet34 vit_base_patch16_224 runs/finetune_resnet34/version_0/…/last.ckpt
  --classes NAME …      predicted (default), a name, a number; cat and dog take the likeliest breed
  --methods NAME …      {methods}
  --pretrained          timm's weights, downloaded once; else the names of timm have random weights
  --target_layer NAME   instead of the one that is found
  --out FOLDER          default: explained
  --config FILE         any of these options, as YAML; paper/… are the figures of litcam's paper

For instance: litcam explain cat_and_dog.jpg --models resnet34 --classes cat dog --pretrained
              litcam explain cat_and_dog.jpg --config paper/every_model.yaml --pretrained"""


def explain(args: Sequence[str]) -> None:
    """Explains photos; `args` are the words after `litcam explain`.

    Raises:
        ValueError: If nothing could be explained, or an option makes no sense.
    """
    if not args or not {"-h", "--help"}.isdisjoint(args):
        print(PAGE.format(methods=" ".join(METHODS)))
        return
    options = _options(args)
    for method in options.methods:
        find_method(method)
    photos = _find_photos(options.photos)
    out = Path(options.out)
    rows, titles, record = [], [], []
    for name in track(options.models, "Explaining", transient=True):
        try:
            model = load_model(name, pretrained=options.pretrained)
        except (ValueError, OSError) as error:
            print(f"left out: {error}")
            continue
        for photo in photos:
            try:
                picture, cells = _explain(model, photo, options)
            except (ValueError, OSError, RuntimeError) as error:
                print(f"left out: {model.name} on {photo.name}: {error}")
                continue
            if not cells:
                continue
            overlays = [overlay(picture, cell.heatmap.numpy()) for cell in cells]
            rows.append([picture, *overlays])
            random = "" if model.trained else " (random weights)"
            titles.append([f"{model.name}{random}, {photo.name}", *map(_title, cells)])
            record += [
                _save(out, model, photo, *pair) for pair in zip(cells, overlays, strict=True)
            ]
    if not rows:
        raise ValueError("nothing could be explained, for the reasons above")
    out.mkdir(parents=True, exist_ok=True)
    Image.fromarray(sheet(rows, titles)).save(out / "figure.png")
    (out / "explain.json").write_text(json.dumps(record, indent=1))
    print(f"{len(record)} heatmaps: {out / 'figure.png'}")


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        known = self._option_string_actions
        if match := re.match(r"unrecognized arguments: (--\S+)", message):
            raise ValueError(errors.unknown("option", match[1].partition("=")[0], known))
        raise ValueError(f"{message.removeprefix('argument ')}; see `litcam explain --help`")


def _options(args: Sequence[str]) -> argparse.Namespace:
    parser = _Parser(add_help=False, allow_abbrev=False)
    parser.add_argument("photos", nargs="*")
    parser.add_argument("--models", nargs="+", default=[])
    parser.add_argument("--classes", nargs="+", default=["predicted"])
    parser.add_argument("--methods", nargs="+", default=["gradcam"])
    parser.add_argument("--pretrained", action="store_true")
    parser.add_argument("--target_layer", default="")
    parser.add_argument("--out", default="explained")
    parser.add_argument("--config")
    words = find_configs(list(args))
    config = parser.parse_args(words).config
    if config:
        parser.set_defaults(**_read(Path(config), parser))
    options = parser.parse_args(words)
    if not options.photos or not options.models:
        missing = "a photo" if not options.photos else "--models"
        raise ValueError(f"missing: {missing}; see `litcam explain --help`")
    return options


def _read(file: Path, parser: argparse.ArgumentParser) -> dict[str, Any]:
    if not file.is_file():
        raise ValueError(f"config {file} does not exist")
    found: dict[str, Any] = yaml.safe_load(file.read_text()) or {}
    known = [action.dest for action in parser._actions]
    for name in found:
        if name not in known:
            raise ValueError(f"{file}: {errors.unknown('option', name, known)}")
    # Class numbers are words on the command line.
    return {
        name: [str(word) for word in value] if isinstance(value, list) else value
        for name, value in found.items()
    }


def _find_photos(names: Sequence[str]) -> list[Path]:
    photos: list[Path] = []
    for path in map(Path, names):
        if not path.exists():
            raise ValueError(f"photo {path} does not exist; check the path")
        found = (
            sorted(at for at in path.iterdir() if is_image(at.name)) if path.is_dir() else [path]
        )
        if not found:
            raise ValueError(f"folder {path} holds no images")
        photos += found
    return photos


def _explain(
    model: Model, photo: Path, options: argparse.Namespace
) -> tuple[np.ndarray[Any, np.dtype[np.uint8]], list[Cell]]:
    pixels = decode(photo.read_bytes(), str(photo))
    image = _transform(model)(pixels)
    cells, problems = explain_photo(
        model.network,
        normalize(image[None], model.config),
        options.classes,
        options.methods,
        resolve=model.resolve,
        target_layer=options.target_layer,
    )
    for problem in problems:
        print(f"left out: {problem}")
    picture = image.permute(1, 2, 0).numpy()
    return enlarge(picture), [_enlarged(cell, enlarge(picture).shape) for cell in cells]


def _transform(model: Model) -> v2.Transform:
    height, width = model.image_size
    if height == width:
        return eval_transform(height, model.config)
    return v2.Resize((height, width), antialias=True)


def _enlarged(cell: Cell, shape: tuple[int, ...]) -> Cell:
    size = (shape[0], shape[1])
    if cell.heatmap.shape != size:
        heat = torch.nn.functional.interpolate(cell.heatmap[None, None], size, mode="bilinear")
        cell.heatmap = heat[0, 0]
    return cell


def _title(cell: Cell) -> str:
    return f"{cell.name} {cell.probability:.2f}, {cell.method} at {cell.layer}"


def _save(out: Path, model: Model, photo: Path, cell: Cell, picture: Any) -> dict[str, Any]:
    folder = out / "heatmaps"
    folder.mkdir(parents=True, exist_ok=True)
    name = "-".join((photo.stem, model.name, cell.wanted, cell.method))
    file = folder / (re.sub(r"[^\w.+-]+", "_", name) + ".png")
    Image.fromarray(picture).save(file)
    return {
        "file": str(file.relative_to(out)),
        "photo": str(photo),
        "model": model.name,
        "trained": model.trained,
        "asked": cell.wanted,
        "class": cell.number,
        "class_name": cell.name,
        "probability": cell.probability,
        "method": cell.method,
        "layer": cell.layer,
        "grid": list(cell.grid),
        "reason": cell.reason,
        "map_max": cell.highest,
    }
