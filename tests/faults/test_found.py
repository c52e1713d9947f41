"""What was found to crash, hang or give a traceback, in `found/`: each is refused in one line."""

import shutil
from pathlib import Path

import pytest
from apart import outcomes
from data_sets import pack, read_all, refusal, replace_column, samples, write_photos

from litcam.datamodules.convert import convert
from litcam.datamodules.convert.inputs import open_source
from litcam.datamodules.pixels.decode import decode

SECONDS = 5
FOUND = sorted((Path(__file__).parent / "found").iterdir())


@pytest.fixture
def opened(tmp_path):
    """Opens a data set with one of these files in it; the line in which it is refused."""
    good, tars, kaggle = tmp_path / "good", tmp_path / "tars", tmp_path / "kaggle"
    convert(write_photos(tmp_path / "photos"), good, chunk_bytes=4000, say=lambda line: None)
    for split in ("train", "val"):
        pack(tars / f"{split}.tar", samples())
    write_photos(kaggle)
    for photo in sorted((kaggle / "val").glob("*/*.jpg")):
        photo.rename(kaggle / "val" / f"{photo.parent.name}{photo.name}")
    for name in ("cat", "dog"):
        (kaggle / "val" / name).rmdir()

    def opened(path):
        data = path.read_bytes()
        match path.suffix:
            case ".npy":
                spoilt = shutil.copytree(good, tmp_path / path.stem)
                replace_column(spoilt, "labels.npy", data)
                return refusal(read_all, spoilt)
            case ".csv":
                (kaggle / "LOC_val_solution.csv").write_bytes(data)
                return refusal(read_all, kaggle)
            case ".txt" | ".tar":
                spoilt = shutil.copytree(tars, tmp_path / path.stem)
                name = "classes.txt" if path.suffix == ".txt" else "train.tar"
                (spoilt / name).write_bytes(data)
                return refusal(open_source, spoilt, tmp_path)
        return refusal(decode, data, path.name)

    return opened


def test_what_was_found(opened, tell):
    said = outcomes(lambda path: f"refused: {opened(path)}", FOUND, seconds=SECONDS)
    for path, line in zip(FOUND, said, strict=True):
        assert line.startswith("refused: ") and len(line) > 20, (path.name, line)
    tell(
        "files that once crashed, hung or gave a traceback",
        caused="images, columns, lists, csv and tars out of `tests/faults/found/`",
        times=len(FOUND),
        happened="each refused in a line",
    )
