"""Which method? Deletion, insertion, ROAD and average drop of each, on real photos.

    python benchmarks/maps/methods.py PHOTOS tf_efficientnet_lite0=lite0.pth --photos 200
    python benchmarks/maps/methods.py PETS/val small_vit:trained --photos 200  # small_vit.py

PHOTOS is a folder with photos or class folders, of which every n-th photo is taken. Each map is of
the predicted class. A figure is the mean over photos; in brackets, the 95 % interval of its
difference to Grad-CAM's, by 2000 bootstrap samples of the same photos; a star where that leaves out
0. `random` is a 7x7 map of noise. Each photo counts once, so that weak maps are not averaged away.
"""

import argparse
import json
import random
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from litcam.commands.explaining.models import Model, load_model
from litcam.datamodules.pixels.decode import decode
from litcam.datamodules.pixels.transforms import eval_transform, normalize
from litcam.datamodules.sources.layouts import is_image
from litcam.explain import CAM, ROAD, AverageDropIncrease, DeletionInsertion

# Name of a row: method and layers.
CNN: dict[str, tuple[str, list[str] | None]] = {
    "gradcam": ("gradcam", None),
    "gradcam++": ("gradcam++", None),
    "layercam": ("layercam", None),
    "layercam, 3 layers": ("layercam", ["blocks.4", "blocks.5", "bn2"]),
    "finercam": ("finercam", None),
}
VIT: dict[str, tuple[str, list[str] | None]] = {
    "gradcam": ("gradcam", None),
    "layercam": ("layercam", None),
    "hirescam": ("hirescam", None),
    "legrad": ("legrad", None),
    "libragrad": ("libragrad", None),
    "finercam": ("finercam", None),
}
BETTER = {"deletion": "lower", "insertion": "higher", "average_drop": "lower", "road": "higher"}
NUM_SAMPLES = 2000
# Fewer steps than the defaults: the same for all methods.
METRICS: tuple[Callable[[], Any], ...] = (
    lambda: DeletionInsertion(steps=10),
    AverageDropIncrease,
    lambda: ROAD(percentiles=(50,)),
)


def find_maps(model: Model, images: Tensor, cams: dict[str, CAM]) -> dict[str, Tensor]:
    """Maps of the predicted class by row, and noise."""
    maps = {"random": torch.rand(len(images), 7, 7)}
    for name, cam in cams.items():
        with cam, torch.no_grad():
            model.network(images)
        if cam.failure:
            sys.exit(cam.failure)
        maps[name] = cam()
        cam.release()
    return maps


def measure(model: Model, image: Tensor, cams: dict[str, CAM]) -> dict[str, dict[str, float]]:
    """Each metric of each row for one photo."""
    with torch.no_grad():
        probabilities = model.network(image).softmax(1)
    classes, found = probabilities.argmax(1), {}
    for name, maps in find_maps(model, image, cams).items():
        found[name] = {}
        for make in METRICS:
            metric = make()
            metric.update(model.network, image, maps, classes, probabilities)
            values = metric.compute()
            found[name] |= {key: float(v) for key, v in values.items() if key in BETTER}
    return found


def table(found: list[dict[str, dict[str, float]]]) -> str:
    """The means, and intervals of their differences to Grad-CAM's."""
    lines = ["| method | " + " | ".join(f"{k} ({b})" for k, b in BETTER.items()) + " |"]
    lines.append("|---" * (len(BETTER) + 1) + "|")
    chosen = np.random.default_rng(0).integers(len(found), size=(NUM_SAMPLES, len(found)))
    for name in sorted(found[0], key=lambda name: (name == "random", name != "gradcam")):
        cells = []
        for key in BETTER:
            own = np.array([photo[name][key] for photo in found])
            if name == "gradcam":
                cells.append(f"{np.nanmean(own):.3f}")
                continue
            difference = own - np.array([photo["gradcam"][key] for photo in found])
            low, high = np.percentile(np.nanmean(difference[chosen], 1), (2.5, 97.5))
            star = "" if low <= 0 <= high else " *"
            cells.append(f"{np.nanmean(own):.3f} [{low:+.3f}, {high:+.3f}]{star}")
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    """Prints the table and saves the figures of every photo."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("model", help="as for `litcam explain --models`")
    parser.add_argument("--photos", type=int, default=200)
    parser.add_argument("--out", type=Path, default=Path("methods.json"))
    options = parser.parse_args()
    torch.manual_seed(0)
    sys.path.insert(0, str(Path(__file__).parent))
    model = load_model(options.model, pretrained=False)
    model.network.eval()
    rows = VIT if any(hasattr(m, "num_prefix_tokens") for m in model.network.modules()) else CNN
    files = sorted(path for path in options.folder.rglob("*") if is_image(path.name))
    files = files[:: max(1, len(files) // options.photos)][: options.photos]
    # So that those of a run that was stopped are of every class.
    random.Random(0).shuffle(files)
    transform = eval_transform(model.image_size[0], model.config)
    # One for all photos, so that the layer is looked for once.
    cams = {name: CAM(model.network, *row) for name, row in rows.items()}
    found = []
    for file in files:
        image = transform(decode(file.read_bytes(), file.name))
        found.append(measure(model, normalize(image[None], model.config), cams))
        options.out.write_text(json.dumps(found))
    print(f"{len(found)} photos, {options.model}\n\n{table(found)}")


if __name__ == "__main__":
    main()
