"""Photos in class folders, divided for cross-validation: every photo validates once.

    python benchmarks/training/folds.py PETS FOLDS --count 5
    for k in 0 1 2 3 4; do litcam fit --config … --data.root FOLDS/$k; done

PETS holds `train/<class>` and `val/<class>`, which are taken together; FOLDS gets a folder for each
fold, whose `train` and `val` are links to the photos.
"""

import argparse
import random
from pathlib import Path

from litcam.datamodules.sources.layouts import is_image


def main() -> None:
    """Makes the folders."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("photos", type=Path)
    parser.add_argument("folds", type=Path)
    parser.add_argument("--count", type=int, default=5)
    asked = parser.parse_args()
    for name in sorted(path.name for path in (asked.photos / "train").iterdir()):
        places = (asked.photos / split / name for split in ("train", "val"))
        found = [file for place in places for file in place.iterdir() if is_image(file.name)]
        files = sorted(found, key=lambda file: file.name)
        random.Random(0).shuffle(files)
        for fold in range(asked.count):
            for number, file in enumerate(files):
                split = "val" if number % asked.count == fold else "train"
                link = asked.folds / str(fold) / split / name / file.name
                link.parent.mkdir(parents=True, exist_ok=True)
                link.symlink_to(file.absolute())


if __name__ == "__main__":
    main()
