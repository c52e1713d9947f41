"""The examples run as a reader would run them."""

import importlib.util
import json
import re
import sys
from pathlib import Path
from types import ModuleType

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from PIL import Image

from litcam.callbacks import GradCAM
from litcam.commands.report import report
from litcam.datamodules import SyntheticDataModule

EXAMPLES = Path(__file__).parent.parent / "examples"


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"example_{name}", EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


class Validated(pl.LightningModule):
    """A network that is there already."""

    def __init__(self, network):
        super().__init__()
        self.network = network

    def validation_step(self, batch, batch_idx):
        right = self.network(batch["image"]).argmax(1) == batch["label"]
        self.log("val/acc1", right.float().mean(), batch_size=len(right))


def test_plain_pytorch(tmp_path, capsys):
    out, example = tmp_path / "maps.jpg", load("plain_pytorch")
    torch.manual_seed(0)
    data = SyntheticDataModule(128, num_val=160, batch_size=32)
    data.setup()
    network = example.train(data, num_epochs=1)
    example.evaluate(network, data, str(out))
    said = capsys.readouterr().out
    assert "layer4 explained" in said
    # Five rows of photo, predicted and true class.
    with Image.open(out) as picture:
        assert picture.size == (3 * 228 + 4, 5 * 246 + 4)
    # What it prints is what the callback logs for the same network and images.
    trainer = pl.Trainer(
        default_root_dir=tmp_path,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[GradCAM(1)],
    )
    (logged,) = trainer.validate(Validated(network), data, verbose=False)
    lines = re.findall(r"(pointing game|energy inside) (\S+), by chance (\S+)\n", said)
    assert [name for name, *_ in lines] == ["pointing game", "energy inside"]
    for name, value, chance in lines:
        key = f"val/gradcam/{name.replace(' ', '_')}"
        assert float(value) == pytest.approx(logged[key], abs=6e-4)
        assert float(chance) == pytest.approx(logged[f"{key}_chance"], abs=6e-4)
    assert f"{logged['val/acc1']:.0%} right" in said


def test_plain_pytorch_as_a_program(tmp_path, capsys):
    out = tmp_path / "maps.jpg"
    load("plain_pytorch").main(num_train=32, num_epochs=1, out=str(out))
    assert len(capsys.readouterr().out.splitlines()) == 3
    assert out.exists()


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
def test_your_lightning_module(tmp_path, monkeypatch, photo_folders, capsys):
    monkeypatch.chdir(tmp_path)
    load("your_lightning_module").main(photo_folders, max_epochs=1, image_size=64)
    run = tmp_path / "lightning_logs" / "version_0"
    file = run / "gradcam" / "images.jsonl"
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    assert len(lines) == 2 * 6
    assert {line["layer"] for line in lines} == {"network.layer4"}
    assert {line["label_name"] for line in lines} == {"cat", "dog"}
    assert len(list((run / "gradcam").glob("epoch-000-*/predicted-*.jpg"))) == 6
    assert "val/gradcam/sparseness" in (run / "metrics.csv").read_text()
    report(["lightning_logs/version_0"])
    assert "report.html" in capsys.readouterr().out
    page = (run / "report.html").read_text()
    assert "network.layer4" in page and "val/gradcam/sparseness" in page
