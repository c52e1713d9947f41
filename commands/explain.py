"""`litcam explain`: photos × models × classes × methods in one figure."""

import argparse
import logging
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch
from einops import rearrange
from torch import Tensor

from litcam.commands.cli import errors
from litcam.commands.explaining.models import Model, load_model, name_models
from litcam.commands.explaining.photos import Tick, progress_bar, read_photo
from litcam.commands.explaining.results import Results
from litcam.commands.explaining.words import name_photos, parse
from litcam.datamodules.pixels.transforms import normalize
from litcam.explain import CAM
from litcam.explain.comparison import Cell, explain_photos
from litcam.explain.figures import enlarge
from litcam.explain.methods.formulas import CLASS_FREE, METHODS, SLOW_METHODS, VIT_METHODS

PAGE = """\
usage: litcam explain PHOTO [PHOTO …] --models NAME [NAME …] [OPTIONS]

  Shows where networks look for a class: a row for each photo and model, a column for each class
  and method. Writes figure.png, each heatmap, and explain.json with what made them.

PHOTO is a file or a folder. A model is a name of timm's, last.ckpt or encoder.safetensors of a run,
NAME=FILE (timm's network with anybody's weights), a folder of Hugging Face's hub, hf-hub:NAME, or
module:function. What cannot be explained is left out in one line.

Options
  --models NAME …       resnet34 vit_base_patch16_224 runs/finetune_resnet34/version_0/…/last.ckpt
  --classes NAME …      predicted (default), true (the name of the photo's folder), a name, number;
                        cat and dog take the likeliest breed
  --methods NAME …      {methods}
                        for timm's ViTs: {vit}
                        where there are ReLUs, a forward a class: guided_gradcam
                        slow, one forward a channel: {slow}
                        for an encoder, which knows no classes: {free}
  --pretrained          timm's weights, downloaded once; else the names of timm have random weights
  --target_layer NAME … instead of the one that is found; several for layercam
  --device NAME         cpu, cuda, cuda:1, mps; default: the accelerator of this machine, if any
  --out FOLDER          default: explained
  --config FILE         any of these options, as YAML; paper/… are the figures of litcam's paper

For instance: litcam explain cat_and_dog.jpg --models resnet34 --classes cat dog --pretrained
              litcam explain cat_and_dog.jpg --config paper/every_model.yaml --pretrained"""

# What a program says that was stopped by Ctrl-C.
STOPPED = 130
# Photos at once, of this many pixels a side or fewer. On a CPU more of them are no quicker.
ON_ACCELERATOR, ON_CPU, USUAL_SIDE = 32, 4, 224


def explain(args: Sequence[str]) -> None:
    """Explains photos; `args` are the words after `litcam explain`.

    Raises:
        ValueError: If nothing could be explained, an option makes no sense, or a file cannot be
            written.
    """
    if not args or not {"-h", "--help"}.isdisjoint(args):
        names = (" ".join(each) for each in (METHODS, VIT_METHODS, SLOW_METHODS, CLASS_FREE))
        print(PAGE.format(**dict(zip(("methods", "vit", "slow", "free"), names, strict=True))))
        return
    options, problems = parse(args)
    # How many tensors were loaded is news where one trains, not for each model of a figure.
    logging.getLogger("lightning.pytorch.utilities.rank_zero").setLevel(logging.WARNING)
    report = _Report()
    for problem in problems:
        report(problem)
    results = Results(Path(options.out), options.classes, options.methods)
    stopped = False
    try:
        with progress_bar(len(options.models) * len(options.photos) * len(options.methods)) as tick:
            _explain_all(options, results, report, tick)
    except KeyboardInterrupt:
        stopped = True
    if results.record:
        print(results.write())
    elif not stopped:
        raise ValueError("nothing could be explained, for the reasons above")
    if stopped:
        print("stopped: the rest was not explained", file=sys.stderr)
        sys.exit(STOPPED)


class _Report:
    """Says why something is left out, each line once."""

    def __init__(self) -> None:
        self._told: set[str] = set()

    def __call__(self, line: str) -> None:
        if line not in self._told:
            self._told.add(line)
            print(f"left out: {errors.in_short(line)}")


def _explain_all(
    options: argparse.Namespace, results: Results, report: _Report, tick: Tick
) -> None:
    photos, models = name_photos(options.photos), name_models(options.models)
    for place, name in enumerate(options.models):
        done = place * len(photos) * len(options.methods)
        tick(done, f"loading {models[name]}")
        try:
            model = load_model(name, pretrained=options.pretrained)
            model.network.to(options.device)
        except Exception as error:  # one that fails does not take the others along
            report(_reason(error))
            continue
        model.name = models[name]
        # One for all photos of a model, so that the layer is looked for once.
        explainer = _Explainer(model, options, results, report)
        size = _batch_size(model, options)
        for start in range(0, len(photos), size):
            batch = list(photos.items())[start : start + size]
            begun = done + start * len(options.methods)
            what = f"{model.name}, {batch[0][1]}"
            explainer(batch, partial(_tick_method, tick, begun, options.methods, len(batch), what))


def _batch_size(model: Model, options: argparse.Namespace) -> int:
    """As many photos as are quick at once, and fit beside each other in memory."""
    if not SLOW_METHODS.keys().isdisjoint(options.methods):
        return 1  # they take a batch of their own for each photo
    most = ON_CPU if options.device.type == "cpu" else ON_ACCELERATOR
    height, width = model.image_size
    return max(1, most * USUAL_SIDE**2 // max(height * width, USUAL_SIDE**2))


def _tick_method(
    tick: Tick, start: int, methods: Sequence[str], num_photos: int, what: str, method: str
) -> None:
    tick(start + list(methods).index(method) * num_photos, f"{method}: {what}")


class _Explainer:
    """Explains photos with one network, and writes what comes of it."""

    def __init__(
        self, model: Model, options: argparse.Namespace, results: Results, report: _Report
    ) -> None:
        self._model, self._options = model, options
        self._results, self._report = results, report
        self._cam: CAM | None = None

    def __call__(self, photos: Sequence[tuple[Path, str]], before: Callable[[str], None]) -> None:
        """Takes files and titles; each that cannot be read or explained is a line."""
        images: list[Tensor] = []
        read = []
        for photo, title in photos:
            try:
                images.append(read_photo(photo, self._model.image_size, self._model.config))
                read.append((photo, title))
            except (ValueError, OSError) as error:
                self._report(_reason(error))
        if not images:
            return
        try:
            explained = self._explain(read, torch.stack(images), before)
        except Exception as error:  # strangers' networks raise anything
            if len(read) == 1:
                self._report(f"{self._model.name} on {read[0][1]}: {_reason(error)}")
                return
            for one in read:  # of several, one may be at fault
                self([one], before)
            return
        for (photo, title), image, (cells, problems) in zip(read, images, explained, strict=True):
            self._keep(photo, title, image, cells, problems)

    def _explain(
        self, photos: Sequence[tuple[Path, str]], images: Tensor, before: Callable[[str], None]
    ) -> list[tuple[list[Cell], list[str]]]:
        model, options = self._model, self._options
        layers = options.target_layer
        method, layer = ("layercam", layers) if len(layers) > 1 else ("gradcam", "".join(layers))
        self._cam = self._cam or CAM(model.network, method, layer or None)
        folders = [photo.absolute().parent.name for photo, _ in photos]
        resolves = [partial(model.resolve, folder=folder) for folder in folders]
        return explain_photos(
            self._cam,
            normalize(images, model.config).to(options.device),
            options.classes,
            options.methods,
            resolves=resolves if model.has_classes else None,
            before=before,
        )

    def _keep(
        self, photo: Path, title: str, image: Tensor, cells: list[Cell], problems: list[str]
    ) -> None:
        """Writes what the network saw with its heatmaps, and says what it does not have."""
        prefix = "" if self._model.has_classes else f"{self._model.name}: "
        for problem in problems:
            self._report(prefix + problem)
        picture = enlarge(rearrange(image, "rgb h w -> h w rgb").numpy())
        for cell in cells:
            _enlarge(cell, (picture.shape[0], picture.shape[1]))
        if cells:
            self._results.add(self._model, photo, title, picture, cells)


def _reason(error: Exception) -> str:
    """An error in one line, with its kind where litcam did not word it."""
    line = " ".join(str(error).split())[:300]
    worded = isinstance(error, ValueError | OSError | RuntimeError) and line
    return line if worded else f"{type(error).__name__}: {line}"


def _enlarge(cell: Cell, size: tuple[int, int]) -> None:
    if cell.heatmap.shape != size:
        heat = torch.nn.functional.interpolate(cell.heatmap[None, None], size, mode="bilinear")
        cell.heatmap = heat[0, 0]
