"""The photos of a run, which it keeps beside its heatmaps: to compare answers on."""

from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import functional

from litcam.commands.explaining.models import Model
from litcam.datamodules.pixels.transforms import normalize
from litcam.explain.figures import GAP
from litcam.report.pictures import read_lines

__all__ = ["images_to_compare"]

# Which of the tiles of a picture is the image as it is.
TILES = {"gradcam": 0, "reconstructions": 3}


def images_to_compare(run: Path, model: Model, count: int = 8) -> tuple[Tensor, str]:
    """Images as the network takes them, and what they are.

    Args:
        run: Folder.
        model: That takes them.
        count: How many at most, at least two.

    Returns:
        ``(n, 3, height, width)``, normalised: the run's photos, or noise where it shows none.
    """
    found = [
        functional.resize(functional.pil_to_tensor(photo), list(model.image_size), antialias=True)
        for name, number in TILES.items()
        for photo in _photos(run / name, number, count)
    ][:count]
    if len(found) < 2:
        generator = torch.Generator().manual_seed(0)
        return torch.randn(count, 3, *model.image_size, generator=generator), "images of noise"
    return normalize(torch.stack(found), model.config), "photos of the run"


def _photos(folder: Path, number: int, count: int) -> list[Image.Image]:
    lines = {line.get("index"): line for line in read_lines(folder / "images.jsonl")}
    found = [_tile(folder, line, number) for line in list(lines.values())[:count]]
    return [tile for tile in found if tile is not None]


def _tile(folder: Path, line: dict[str, Any], number: int) -> Image.Image | None:
    try:
        picture, tiles = Image.open(folder / line["file"]).convert("RGB"), int(line["tiles"])
    except (OSError, SyntaxError, ValueError, KeyError):
        return None
    width = (picture.width - GAP * (tiles - 1)) // tiles
    return picture.crop((number * (width + GAP), 0, number * (width + GAP) + width, picture.height))
