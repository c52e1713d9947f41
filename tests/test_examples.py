"""The examples run as a reader would run them."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from PIL import Image

EXAMPLES = Path(__file__).parent.parent / "examples"


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"example_{name}", EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_plain_pytorch(tmp_path, capsys):
    out = tmp_path / "maps.jpg"
    load("plain_pytorch").main(num_train=128, num_epochs=1, out=str(out))
    assert "layer4 explained" in capsys.readouterr().out
    # Five rows of photo, predicted and true class.
    with Image.open(out) as picture:
        assert picture.size == (3 * 228 + 4, 5 * 246 + 4)


@pytest.fixture
def photo_folders(tmp_path):
    random = np.random.default_rng(0)
    for split, count in (("train", 16), ("val", 3)):
        for name in ("cat", "dog"):
            folder = tmp_path / "photos" / split / name
            folder.mkdir(parents=True)
            for number in range(count):
                pixels = random.integers(0, 256, (48, 64, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f"{number}.jpg")
    return tmp_path / "photos"


@pytest.mark.filterwarnings("ignore:.*does not have many workers.*")
@pytest.mark.filterwarnings("ignore:.*logging interval.*")
def test_your_lightning_module(tmp_path, monkeypatch, photo_folders):
    monkeypatch.chdir(tmp_path)
    load("your_lightning_module").main(photo_folders, max_epochs=1, image_size=64)
    lines = (tmp_path / "gradcam" / "images.jsonl").read_text().splitlines()
    assert len(lines) == 2 * 6
    assert len(list((tmp_path / "gradcam").glob("epoch-000-*/predicted-*.jpg"))) == 6
