"""The pictures of a run, read from its folder: for the report."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from litcam.explain.figures import GAP, Picture
from litcam.files import whole_lines
from litcam.report.packing import pack_picture

Line = dict[str, Any]
# A stop of the slider for each epoch, thinned evenly beyond these: maps are small, pictures not.
MAX_MAPS, MAX_PICTURES = 200, 24
PHOTO, SMALL = 224, 160


def read_lines(file: Path) -> list[Line]:
    """The lines of a JSON lines file; one that a kill cut off is left out."""
    found = []
    for text in whole_lines(file):
        try:
            found.append(json.loads(text))
        except ValueError:
            continue
    return [line for line in found if isinstance(line, dict)]


def read_heatmaps(folder: Path) -> list[dict[str, Any]]:
    """The maps of every `GradCAM` callback of a run, for the page: a group for each loader."""
    groups = []
    for place, key, lines in grouped(folder, "map"):
        lines, other = _of_known_images(lines)
        stops = _stops(lines, MAX_MAPS)
        views = list(dict.fromkeys(line["view"] for line in lines))
        images = []
        for index in sorted({line["index"] for line in lines}):
            own = {(line["view"], line["step"]): line for line in lines if line["index"] == index}
            photos = (read_tile(place, line, 0) for line in own.values())
            photo = next((found for found in photos if found is not None), None)
            if photo is None:
                continue
            last = list(own.values())[-1]
            maps = {view: [_map(own.get((view, stop["step"]))) for stop in stops] for view in views}
            images.append({"name": last["image"], "true": last.get("label_name"), "maps": maps})
            images[-1]["photo"] = pack_picture(photo, PHOTO)
        made = lines[-1]
        grid = "x".join(map(str, made["grid"]))
        about = f"{made['method']} at {made['layer']}, {grid} positions{other}"
        title = _title("Where it looks", "gradcam", key)
        if images:
            groups.append(
                {"title": title, "about": about, "stops": stops, "views": views, "images": images}
            )
    return groups


def read_reconstructions(folder: Path) -> list[dict[str, Any]]:
    """The pictures of every `Reconstructions` callback of a run, for the page."""
    groups = []
    for place, key, lines in grouped(folder, "mask_share"):
        lines, other = _of_known_images(lines)
        stops = _stops(lines, MAX_PICTURES)
        images = []
        for index in sorted({line["index"] for line in lines}):
            own = {line["step"]: line for line in lines if line["index"] == index}
            made = [_guess(place, own.get(stop["step"])) for stop in stops]
            last = list(own.values())[-1]
            seen, true = read_tile(place, last, 0), read_tile(place, last, 3)
            if seen is not None and true is not None:
                ends = {"masked": pack_picture(seen, SMALL), "original": pack_picture(true, SMALL)}
                images.append({"name": last["image"], "made": made, **ends})
        share = lines[-1]["mask_share"]
        part = f"{1 - share:.0%}"
        about = f"What the encoder sees ({part}), the hidden cells guessed, and the image{other}."
        if lines[-1].get("borrowed"):
            about += " Each guessed cell has the true one's mean and contrast."
        title = _title("What it guesses", "reconstructions", key)
        if images:
            groups.append({"title": title, "about": about, "stops": stops, "images": images})
    return groups


def read_figures(folders: Sequence[Path]) -> list[dict[str, str]]:
    """The figures that `litcam explain` wrote into these folders."""
    found = []
    for folder in folders:
        figure = folder / "figure.png"
        if (picture := _open(figure)) is not None:
            facts = read_json(folder / "explain.json")
            models = dict.fromkeys(str(fact.get("model")) for fact in facts)
            methods = dict.fromkeys(str(fact.get("method")) for fact in facts)
            title = f"{folder.name}: {', '.join(models)}; {', '.join(methods)}"
            side = min(*picture.shape[:2], 1400)
            found.append({"title": title, "picture": pack_picture(picture, side)})
    return found


def read_json(file: Path) -> list[Line]:
    """The list of objects in a JSON file, empty where there is none."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return []
    return [line for line in found if isinstance(line, dict)] if isinstance(found, list) else []


def grouped(folder: Path, fact: str) -> Iterator[tuple[Path, str, list[Line]]]:
    """Lines that have `fact`, by folder and by stage and loader, each with its view."""
    for file in sorted(folder.glob("*/images.jsonl")):
        groups: dict[str, list[Line]] = {}
        for line in read_lines(file):
            if fact not in line:
                continue
            key, _, loader = str(line["key"]).partition("/dataloader_idx_")
            stage, name, *view = key.split("/", 2)
            line["view"] = "".join(view)
            groups.setdefault(f"{stage}/{name}/{loader}", []).append(line)
        for key, lines in groups.items():
            yield file.parent, key, lines


def _of_known_images(lines: list[Line]) -> tuple[list[Line], str]:
    """Lines whose index tells the image; else those of the last validation, and a word on it.

    A shuffled loader that tells no index gives other images under the same number every epoch.
    """
    if all(line.get("index_known", True) for line in lines):
        return lines, ""
    last = max(int(line["step"]) for line in lines)
    return [line for line in lines if int(line["step"]) == last], (
        "; the last validation only, because every one showed other images"
    )


def _title(words: str, usual: str, key: str) -> str:
    stage, name, loader = key.split("/", 2)
    loader = f"loader {loader}" if loader else ""
    extra = [name if name != usual else "", "test" if stage == "test" else "", loader]
    return ", ".join([words, *filter(None, extra)])


def _stops(lines: Sequence[Line], most: int) -> list[dict[str, int]]:
    """Validations in order, the first and the last among them."""
    # A resumed run may have done a step twice.
    epochs = {int(line["step"]): int(line["epoch"]) for line in lines}
    steps = sorted(epochs)
    kept = np.linspace(0, len(steps) - 1, min(most, len(steps))).round().astype(int)
    return [{"epoch": epochs[steps[at]], "step": steps[at]} for at in sorted(set(kept.tolist()))]


def _map(line: Line | None) -> dict[str, Any] | None:
    if line is None:
        return None
    return {
        "map": "" if line["problem"] else line["map"],
        "grid": line["grid"],
        "max": line["map_max"],
        "class": line["class_name"],
        "probability": line["probability"],
        "predicted": line["predicted_name"],
        "confidence": line["confidence"],
        "correct": line["correct"],
        "problem": line["problem"],
    }


def _guess(place: Path, line: Line | None) -> dict[str, Any] | None:
    both = None if line is None else read_tile(place, line, 2)
    if line is None or both is None:
        return None
    return {"picture": pack_picture(both, SMALL, 60), "psnr": line["psnr"]}


def read_tile(place: Path, line: Line, number: int) -> Picture | None:
    """One of the tiles that lie side by side in a line's file."""
    picture, count = _open(place / line["file"]), int(line["tiles"])
    if picture is None:
        return None
    width = (picture.shape[1] - GAP * (count - 1)) // count
    left = number * (width + GAP)
    return picture[:, left : left + width]


def _open(file: Path) -> Picture | None:
    """A picture, or None where it is missing or broken: the rest of the report is still made."""
    try:
        return np.asarray(Image.open(file).convert("RGB"))
    except (OSError, SyntaxError, ValueError):
        return None
