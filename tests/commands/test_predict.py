"""`litcam predict PHOTOS --ckpt_path FILE`: the checkpoint alone tells everything."""

import csv
import os
import pty
import re
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest
import timm
import torch
from torch import nn

from litcam.datamodules import ImageNetDataModule
from litcam.lightning_modules import Classifier
from litcam.train import main

SIZE = 48


@pytest.fixture
def data(photos):
    mean, std = (0.1, 0.2, 0.3), (0.4, 0.5, 0.6)
    data = ImageNetDataModule(
        photos, batch_size=20, image_size=SIZE, mean=mean, std=std, num_workers=0
    )
    data.setup("validate")
    return data


@pytest.fixture
def network(data):
    """A checkpoint as a run of `litcam fit` leaves it, of a network that is sure of itself."""
    module = Classifier("resnet10t", 2, backbone_args={"channels": [8, 8, 16, 16]})
    nn.init.normal_(module.backbone.fc.weight)
    stored = {
        "state_dict": module.state_dict(),
        "hyper_parameters": dict(module.hparams),
        "class_names": ["a cat", "not a cat, but a dog"],
        "image_size": SIZE,
        "data_config": vars(data.config),
    }
    torch.save(stored, "last.ckpt")
    return module.eval()


def predict(*words):
    main(["predict", *map(str, words), "--device", "cpu"])
    with Path("predictions.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_photos_get_the_classes_that_the_run_would_give_them(data, network, photos, capsys):
    rows = predict(photos / "val/cat", photos / "val/dog", "--ckpt_path", "last.ckpt")
    expected = {}
    keys = data.val_dataloader().dataset.keys
    with torch.no_grad():
        for batch in data.val_dataloader():
            batch = data.on_after_batch_transfer(batch, 0)
            for index, found in zip(
                batch["index"], network(batch["image"]).softmax(1), strict=True
            ):
                expected[Path(keys[index]).name] = found
    assert len(rows) == len(expected) == len(data.val_dataloader().dataset)
    for row in rows:
        found = expected[Path(row["image"]).name]
        assert row["class"] == ["a cat", "not a cat, but a dog"][found.argmax()]
        assert float(row["probability"]) == pytest.approx(float(found.max()), abs=1e-4)
        assert float(row["probability_2"]) == pytest.approx(float(found.min()), abs=1e-4)
    assert len({row["class"] for row in rows}) == 2
    out = capsys.readouterr().out
    assert f"What is on {len(rows)} of {len(rows)} photos: predictions.csv" in out
    assert "… and" in out


def test_what_is_no_photo_is_left_out_in_a_line(network, photos, capsys):
    Path("broken.jpg").write_bytes(next((photos / "val/cat").iterdir()).read_bytes()[:300])
    good = sorted((photos / "val/dog").iterdir())[:3]
    rows = predict("broken.jpg", *good, "gone.jpg", "--ckpt_path", "last.ckpt", "--topk", "1")
    assert [row["image"] for row in rows] == [str(path) for path in good]
    assert list(rows[0]) == ["image", "class", "probability"]
    left = [line for line in capsys.readouterr().out.splitlines() if line.startswith("left out: ")]
    assert len(left) == 2
    assert "gone.jpg does not exist" in left[0]
    assert "broken.jpg" in left[1]


def test_weights_of_any_origin_name_photos(photos):
    stranger = timm.create_model("resnet10t", num_classes=1000)
    torch.save(stranger.state_dict(), "a.pth")
    first = sorted((photos / "val/cat").iterdir())[0]
    rows = predict(first, "--ckpt_path", "resnet10t=a.pth", "--topk", "2")
    assert len(rows) == 1
    assert "class_2" in rows[0]
    assert not rows[0]["class"].startswith("class ")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["photo.jpg"], "missing: --ckpt_path; see `litcam predict --help`"),
        (["--ckpt_path", "last.ckpt"], "missing: a photo"),
        (["photo.jpg", "--ckpt_path", "lost.ckpt"], "does not exist; did you mean last.ckpt?"),
        (["photo.jpg", "--ckpt_path", "run"], "is a folder; the newest in it is run/checkpoints/"),
        (["photo.jpg", "--ckpt_path", "half.ckpt"], "half.ckpt is not a checkpoint of litcam"),
        (["photo.jpg", "--ckpt_path", "photo.jpg"], "photo.jpg is not a checkpoint of litcam"),
        (["nowhere", "--ckpt_path", "last.ckpt"], "no photo could be read"),
        (["photo.jpg", "--ckpt_path", "last.ckpt", "--topk", "0"], "--topk must be at least 1"),
        (["photo.jpg", "--ckpt_path", "last.ckpt", "--out", "run"], "run is no ordinary file"),
        (["photo.jpg", "--ckpt_path", "last.ckpt", "--tokp", "1"], "did you mean --topk"),
        (["photo.jpg", "--ckpt_path", "last.ckpt", "--device", "gpu"], "did you mean cuda?"),
    ],
)
def test_a_mistake_is_one_line(network, photos, capsys, words, said):
    Path("photo.jpg").write_bytes(next((photos / "val/cat").iterdir()).read_bytes())
    whole = Path("last.ckpt").read_bytes()
    Path("half.ckpt").write_bytes(whole[: len(whole) // 2])
    Path("run/checkpoints").mkdir(parents=True)
    Path("run/checkpoints/last.ckpt").write_bytes(whole)
    with pytest.raises(SystemExit) as end:
        main(["predict", *words])
    assert end.value.code == 2
    err = capsys.readouterr().err.strip().splitlines()
    assert err[-1].startswith("litcam: ")
    assert said in err[-1]
    assert not Path("predictions.csv").exists()


@pytest.mark.slow
def test_ctrl_c_keeps_what_is_done(network, photos):
    Path("photos").mkdir()
    source = min((photos / "val/cat").iterdir())
    for number in range(4000):
        Path(f"photos/{number:04d}.jpg").symlink_to(source)
    program = "import sys; from litcam.train import main; main(sys.argv[1:])"
    words = ["predict", "photos", "--ckpt_path", "last.ckpt", "--batch_size", "1"]
    terminal, end = pty.openpty()
    process = subprocess.Popen([sys.executable, "-c", program, *words], stdout=end, stderr=end)
    os.close(end)
    said, stopped = b"", False
    with os.fdopen(terminal, "rb", buffering=0) as screen, suppress(OSError):  # at its end
        while part := screen.read(4096):
            said += part
            # The bar tells what is read, which is a little ahead of what is named.
            if not stopped and re.search(rb"(00[2-9]\d|0[1-9]\d\d)\.jpg", said):
                process.send_signal(signal.SIGINT)
                stopped = True
    assert process.wait(60) == 130, said.decode()[-3000:]
    rows = Path("predictions.csv").read_text().splitlines()
    assert 1 < len(rows) < 4001
    assert f"What is on {len(rows) - 1} of 4000 photos" in said.decode()
