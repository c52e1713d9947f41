"""The run's folder, where pictures always go."""

import json
from pathlib import Path

from PIL import Image

from litcam.callbacks.places.pictures import Views
from litcam.explain.figures import Picture, sheet
from litcam.files import append_text


def to_folder(views: Views, folder: Path, epoch: int, step: int) -> None:
    """Writes JPEGs by epoch, and a JSON line each, flushed at once so that a kill loses nothing."""
    # Validation and test come one after the other at the same step.
    test = "-test" if next(iter(views), "").startswith("test/") else ""
    place = folder / f"epoch-{epoch:03d}-step-{step:06d}{test}"
    place.mkdir(parents=True, exist_ok=True)
    for key, images in views.items():
        view = key.split("/", 2)[-1].replace("/", "-")
        for image in images:
            path = place / f"{view}-{image.name}.jpg"
            Image.fromarray(image.picture).save(path, quality=92)
            line = {"file": f"{place.name}/{path.name}", "key": key, "epoch": epoch}
            line |= {"step": step, "caption": image.caption, "tiles": len(image.tiles)}
            append_text(folder / "images.jsonl", json.dumps(line | image.facts) + "\n")
    if picture := draw_sheet(views):
        picture.save(place / "sheet.jpg", quality=92)


def draw_sheet(views: Views) -> Image.Image | None:
    """All of them on one picture: the first view's tiles, then the last tile of each other view."""
    together: dict[tuple[str, str], list[tuple[Picture, str]]] = {}
    for key, images in views.items():
        for image in images:
            row = together.setdefault((key.partition("/dataloader_idx_")[2], image.name), [])
            row += list(zip(image.tiles, image.titles, strict=True))[-1 if row else 0 :]
    if not together:
        return None
    rows = [[tile for tile, _ in row] for row in together.values()]
    titles = [[title for _, title in row] for row in together.values()]
    return Image.fromarray(sheet(rows, titles))
