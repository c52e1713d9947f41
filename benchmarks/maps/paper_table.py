"""The paper's networks side by side: how right they are, and what their maps are worth.

    python benchmarks/maps/paper_table.py PETS/val runs/sweeps/seven_small/*/checkpoints/last.ckpt
    python benchmarks/maps/paper_table.py PETS/val resnet34 vit_base_patch16_224 … --pretrained

PETS/val has a folder for each class. Accuracy is over all of its photos: the likeliest of these
classes, where a network of ImageNet takes its likeliest breed. Maps are Grad-CAM's of the true
class, on the photos of `--boxes`. Networks under `--beside` are in the tables, but of no family.
What each network gave is kept in `--out` and made once; other boxes or steps want another folder.
Runs of a sweep whose folders differ in `seed=N` alone are seeds of one network.
With `--page` the tables go into a document, between `<!-- seven -->` and `<!-- /seven -->`;
`paper_numbers.py` says what they hold.
"""

import argparse
import csv
import json
import re
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from paper_numbers import Found, make_tables
from torch import Tensor

from litcam.commands.explaining.models import Model, load_model
from litcam.datamodules.pixels.decode import decode
from litcam.datamodules.pixels.transforms import eval_transform, normalize
from litcam.datamodules.sources.layouts import is_image
from litcam.explain import CAM, ROAD, DeletionInsertion, EnergyInside, PointingGame
from litcam.explain.metrics.image_mean import ImageMean
from litcam.files import write_whole
from litcam.report.filling import fill_in

BOXES = Path(__file__).parent / "pets_boxes.csv"
SIDES = ("x0", "y0", "x1", "y1")
BATCH = 10
Boxes = dict[str, list[list[float]]]


def read_boxes(file: Path, folder: Path) -> Boxes:
    """Boxes by photo: left, top, right and bottom as shares of its width and height.

    Raises:
        OSError: There is no such file.
        ValueError: A line is no box, or names a photo that is not in the folder.
    """
    boxes: Boxes = {}
    # Numbered as an editor does, comments and all.
    numbered = enumerate(file.read_text(encoding="utf-8").splitlines(), 1)
    lines = [(number, line) for number, line in numbered if not line.startswith("#")]
    rows = csv.DictReader(line for _, line in lines)
    for (number, line), row in zip(lines[1:], rows, strict=True):
        at = f"{file}, line {number}"
        try:
            name, box = row["file"], [float(row[side]) for side in SIDES]
        except (KeyError, TypeError, ValueError):
            raise ValueError(f"{at}: must be file,x0,y0,x1,y1, got {line!r}") from None
        if not (0 <= box[0] < box[2] <= 1 and 0 <= box[1] < box[3] <= 1):
            raise ValueError(f"{at}: a box is 0 <= x0 < x1 <= 1, and y alike, got {line!r}")
        if not (folder / name).is_file():
            raise ValueError(f"{at}: photo {name!r} is not in {folder}; name it from there")
        boxes.setdefault(name, []).append(box)
    if not boxes:
        raise ValueError(f"{file} has no boxes; give lines file,x0,y0,x1,y1")
    return boxes


def read_images(model: Model, files: Sequence[Path]) -> Tensor:
    """Photos as a network takes them, `(batch, 3, height, width)`, normalised."""
    transform = eval_transform(model.image_size[0], model.config)
    images = [transform(decode(file.read_bytes(), str(file))) for file in files]
    return normalize(torch.stack(images), model.config)


def make_mask(model: Model, file: Path, boxes: Sequence[Sequence[float]]) -> Tensor:
    """Where boxes lie in a photo as a network takes it, `(height, width)`."""
    height, width = decode(file.read_bytes(), str(file)).shape[1:]
    y, x = (torch.arange(side) + 0.5 for side in (height, width))
    mask = torch.zeros(1, height, width)
    for x0, y0, x1, y1 in boxes:
        rows, columns = (y >= y0 * height) & (y < y1 * height), (x >= x0 * width) & (x < x1 * width)
        mask[0, rows[:, None] & columns] = 1
    # Cropped and resized as the photo is.
    return eval_transform(model.image_size[0], model.config)(mask)[0] > 0.5


def resolve_all(model: Model, probabilities: Tensor, classes: Sequence[str]) -> list[int]:
    """A number in this network for each class, by a photo's probabilities `(num_classes,)`.

    Raises:
        ValueError: The network has no such class.
    """
    if not model.has_classes:
        raise ValueError(f"{model.name} is an encoder and knows no classes; fine-tune it first")
    return [model.resolve(name, probabilities)[0] for name in classes]


def find_right(model: Model, folder: Path, classes: Sequence[str]) -> list[bool]:
    """For each photo, whether its likeliest class is that of its folder."""
    found = []
    for true, name in enumerate(classes):
        files = sorted(file for file in (folder / name).iterdir() if is_image(file.name))
        for start in range(0, len(files), BATCH):
            with torch.no_grad():
                logits = model.network(read_images(model, files[start : start + BATCH]))
            for row in logits.softmax(1):
                found.append(int(row[resolve_all(model, row, classes)].argmax()) == true)
    return found


def measure(model: Model, folder: Path, boxes: Boxes, steps: int) -> Found:
    """All numbers of a network.

    Raises:
        ValueError: It has no such classes, or cannot be explained.
    """
    classes = sorted(path.name for path in folder.iterdir() if path.is_dir())
    cam, maps, numbers = CAM(model.network), [], []
    names = list(boxes)
    for part in (names[start : start + BATCH] for start in range(0, len(names), BATCH)):
        images = read_images(model, [folder / name for name in part])
        with cam, torch.no_grad():
            rows = model.network(images).softmax(1)
        if cam.failure:
            raise ValueError(f"{model.name}: {cam.failure}")
        folders = [[Path(name).parts[0]] for name in part]
        true = [resolve_all(model, row, own)[0] for row, own in zip(rows, folders, strict=True)]
        heat = cam(torch.tensor(true)).detach().cpu()
        cam.release()
        masks = torch.stack([make_mask(model, folder / name, boxes[name]) for name in part])
        numbers.append(of_maps(heat, masks) | of_network(model, images, heat, true, rows, steps))
        maps += heat.tolist()
    assert cam.target_layer is not None
    attends = any("Attention" in type(part).__name__ for part in model.network.modules())
    return Found(
        name=f"{model.network.pretrained_cfg['architecture']}, {rows.shape[1]} classes",
        family="transformer" if attends else "CNN",
        image_size=model.image_size[0],
        layer=cam.target_layer.name,
        right=find_right(model, folder, classes),
        maps=maps,
        numbers={key: torch.cat([each[key] for each in numbers]).tolist() for key in numbers[0]},
    )


class Each(ImageMean):
    """Keeps the values of a metric's last batch, image by image; first among its bases."""

    def _add(self, keep: Tensor, among: Tensor | None = None, **values: Tensor) -> None:
        self.each = {key: value.where(keep, torch.nan) for key, value in values.items()}


class EachEnergyInside(Each, EnergyInside):
    """Energy inside, and what nothing and the middle would get."""


class EachPointingGame(Each, PointingGame):
    """Pointing game, and what nothing and the middle would get."""


class EachDeletionInsertion(Each, DeletionInsertion):
    """Deletion and insertion."""


class EachROAD(Each, ROAD):
    """ROAD and its parts."""


def of_maps(heat: Tensor, masks: Tensor) -> dict[str, Tensor]:
    """What maps `(batch, h, w)` tell by themselves, with what the middle and nothing would get."""
    found = {}
    metrics = {"energy_inside": EachEnergyInside(), "pointing_game": EachPointingGame()}
    for key, metric in metrics.items():
        metric.update(heat, masks)
        short = key.partition("_")[0]
        found |= {short: metric.each[key]}
        found |= {f"{short}_{fact}": metric.each[fact] for fact in ("chance", "centre")}
    return found


def of_network(
    model: Model, images: Tensor, heat: Tensor, true: list[int], rows: Tensor, steps: int
) -> dict[str, Tensor]:
    """What the network says when pixels go, by the maps and by maps of noise.

    Args:
        model: Of the maps.
        images: `(batch, 3, height, width)`.
        heat: Maps `(batch, h, w)`.
        true: The class of each.
        rows: Probabilities `(batch, num_classes)` of the images.
        steps: Of each curve.
    """
    found: dict[str, Tensor] = {}
    classes, noise = torch.tensor(true), torch.rand(heat.shape)
    for end, maps in (("", heat), ("_noise", noise)):
        curves = EachDeletionInsertion(steps=steps)
        curves.update(model.network, images, maps, classes, rows)
        found |= {f"{key}{end}": value for key, value in curves.each.items()}
    road = EachROAD(percentiles=(50,))
    road.update(model.network, images, heat, classes, rows)
    return found | {"road": road.each["road"]}


def main() -> None:
    """Measures what was not yet, prints the tables, and puts them into a page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="of photos, a folder for each class")
    parser.add_argument("models", nargs="+", help="as for `litcam explain --models`")
    parser.add_argument("--beside", nargs="+", default=[], help="networks of no family")
    parser.add_argument("--pretrained", action="store_true", help="timm's weights")
    parser.add_argument("--boxes", type=Path, default=BOXES)
    parser.add_argument("--steps", type=int, default=5, help="of deletion and insertion")
    parser.add_argument("--out", type=Path, default=Path("paper_table"))
    parser.add_argument("--page", type=Path, help="a document with <!-- seven --> in it")
    options = parser.parse_args()
    try:
        boxes = read_boxes(options.boxes, options.folder)
        words = [*options.models, *options.beside]
        found = [find(word, boxes, options) for word in words]
        tables = make_tables(found)
        print(tables)
        if options.page:
            fill_in(options.page, "seven", tables)
    except (ValueError, OSError) as error:
        sys.exit(f"paper_table: {error}")


def find(word: str, boxes: Boxes, options: Any) -> Found:
    """What was kept of a network, or what it gives now."""
    kept = options.out / (re.sub(r"[^\w.=,-]+", "_", word).strip("_") + ".json")
    file = Path(word.partition("=")[2] if not Path(word).exists() else word)
    written = file.stat().st_mtime if file.is_file() else 0.0
    if kept.is_file() and kept.stat().st_mtime > written:
        found = Found(**json.loads(kept.read_text()))
    else:
        torch.manual_seed(0)
        model = load_model(word, pretrained=options.pretrained)
        found = measure(model, options.folder, boxes, options.steps)
        write_whole(kept, json.dumps(asdict(found)))
    # Runs of a sweep lie in folders such as `seed=0,config=resnet34`.
    found = replace(found, run=re.sub(r"\bseed=\d+,?", "", word))
    return replace(found, family="beside") if word in options.beside else found


if __name__ == "__main__":
    main()
