"""`litcam report --panel`: reconstructions after chosen epochs, out of a run's folder alone."""

import csv
import json
import shutil
from statistics import fmean

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from litcam.callbacks import Reconstructions, SafeCSVLogger
from litcam.datamodules import SyntheticDataModule
from litcam.lightning_modules import MAE
from litcam.report.panel import LABEL, LINE, SIDE, TILE, write_panel
from litcam.train import main

EPOCHS = [0, 2]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Three images of three classes, drawn after epochs 0, 1 and 2, and in the middle of two."""
    args = {"patch_size": 8, "embed_dim": 24, "depth": 1, "num_heads": 2}
    torch.manual_seed(0)
    mae = MAE(
        "vit_tiny_patch16_224", image_size=32, backbone_args=args, decoder_dim=32, decoder_depth=1,
        lr=0.05, warmup_epochs=0,
    )  # fmt: skip
    data = SyntheticDataModule(16, 9, num_classes=3, image_size=32, batch_size=4)
    logger = SafeCSVLogger(tmp_path_factory.mktemp("runs"), "mae")
    pl.Trainer(
        max_epochs=3, accelerator="cpu", logger=logger, enable_progress_bar=False,
        enable_model_summary=False, enable_checkpointing=False, log_every_n_steps=1,
        callbacks=[Reconstructions(indices=[1, 3, 8], steps=[6, 10])],
    ).fit(mae, data)  # fmt: skip
    return logger.log_dir


@pytest.fixture
def run(trained, tmp_path):
    return shutil.copytree(trained, tmp_path / "runs" / "mae" / "version_0")


@pytest.fixture
def texts(monkeypatch):
    """What is written on a picture, by place; it is written all the same."""
    written, write = {}, ImageDraw.ImageDraw.text

    def keep(self, at, text, *args):
        written[tuple(map(int, at))] = text
        return write(self, at, text, *args)

    monkeypatch.setattr(ImageDraw.ImageDraw, "text", keep)
    return written


def read_lines(run):
    text = (run / "reconstructions/images.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines()]


def change_lines(run, change):
    lines = [json.dumps(change(line)) + "\n" for line in read_lines(run)]
    (run / "reconstructions/images.jsonl").write_text("".join(lines))


def read_columns(texts):
    """Texts by column, from the top; those that are no cell's are left out."""
    columns = {}
    for (x, _), text in sorted(texts.items(), key=lambda item: item[0][1]):
        columns.setdefault((x - LABEL) // SIDE + 1, []).append(text)
    return columns


def test_a_row_an_image_and_a_column_an_epoch(run, texts):
    assert write_panel(run, EPOCHS) == run / "panel.png"
    panel = np.asarray(Image.open(run / "panel.png")).astype(int)
    lines = [line for line in read_lines(run) if (line["epoch"], line["step"]) in ((0, 3), (2, 11))]
    assert [line["index"] for line in lines] == [1, 3, 8] * 2
    for row in range(3):
        for column in range(4):
            line = lines[row + 3 * (column == 3)]
            with Image.open(run / "reconstructions" / line["file"]) as file:
                picture = file.convert("RGB")
            number = (3, 0, 2, 2)[column]
            tile = picture.crop((228 * number, 0, 228 * number + 224, 224))
            wanted = np.asarray(tile.resize(TILE, Image.Resampling.BICUBIC)).astype(int)
            left, top = LABEL + 4 + SIDE * column, LINE + SIDE * row
            cell = panel[top : top + TILE[1], left : left + TILE[0]]
            assert np.abs(cell - wanted).max() <= 2
    columns = read_columns(texts)
    assert columns[0][:6] == ["", "checks", "stripes", "dots", "val/loss", "PSNR, dB"]
    assert columns[0][6].startswith("75% of each image is hidden.")
    rows = list(csv.DictReader((run / "metrics.csv").read_text().splitlines()))
    for column, epoch in ((3, 0), (4, 2)):
        (loss,) = (
            float(row["val/loss"]) for row in rows if row["val/loss"] and row["epoch"] == f"{epoch}"
        )
        psnr = fmean(line["psnr"] for line in lines if line["epoch"] == epoch)
        assert columns[column] == [f"epoch {epoch}", f"{loss:.3g}", f"{psnr:.1f}"]


def test_a_run_that_goes_on(run, texts):
    (run / "metrics.csv").unlink()
    with (run / "reconstructions/images.jsonl").open("a") as file:
        file.write('{"file": "epoch-003-step-0000')
    write_panel(run, [2])
    assert read_columns(texts)[3][:2] == ["epoch 2", "–"]


def test_a_run_of_before_labels_were_kept(run, texts):
    names = {1: "cat/1.jpg", 3: "dog/3.jpg", 8: "8.jpg"}
    old = {"label_name"}
    change_lines(
        run,
        lambda line: (
            {k: v for k, v in line.items() if k not in old} | {"image": names[line["index"]]}
        ),
    )
    write_panel(run, [1])
    assert read_columns(texts)[0][1:4] == ["cat", "dog", "8.jpg"]


def test_cells_without_a_true_picture_are_told(run, texts):
    change_lines(run, lambda line: line | {"borrowed": True})
    write_panel(run, [1])
    assert "Each predicted cell has the true one's mean and contrast." in texts.values()


def test_a_lost_picture_leaves_its_cell_white(run):
    lost = next(line for line in read_lines(run) if line["step"] == 11)
    (run / "reconstructions" / lost["file"]).unlink()
    panel = np.asarray(Image.open(write_panel(run, EPOCHS)))
    assert (panel[LINE : LINE + SIDE, LABEL + 4 + 3 * SIDE :] == 255).all()
    assert panel[LINE : LINE + SIDE, LABEL : LABEL + 3 * SIDE].std() > 20


def test_the_command_says_where_it_is(run, capsys):
    main(["report", str(run), "--panel", "2", "0", "2"])
    panel, page = capsys.readouterr().out.splitlines()
    assert panel == str(run / "panel.png") and page.startswith(str(run / "report.html"))
    elsewhere = run.parent / "elsewhere"
    main(["report", str(run), "--panel", "1", "--out", str(elsewhere / "page.html")])
    assert sorted(file.name for file in elsewhere.iterdir()) == ["page.html", "panel.png"]


@pytest.mark.parametrize(
    ("epochs", "change", "said"),
    [
        (["7"], {}, "not drawn in {run}: epoch 7 (nearest: 1, 2)"),
        (["1", "9", "-4"], {}, "epoch 9 (nearest: 1, 2), epoch -4 (nearest: 0, 1)"),
        (["one"], {}, "--panel: invalid int value: 'one'; see `litcam report --help`"),
        (["1"], {"index_known": False}, "other images at every epoch, because its validation"),
        (["1"], {"file": "gone.jpg"}, "has lost its pictures"),
        (["1"], {"key": "test/reconstructions"}, "holds no pictures of a Reconstructions"),
    ],
)
def test_what_cannot_be_drawn_is_one_line(run, capsys, epochs, change, said):
    change_lines(run, lambda line: line | change)
    with pytest.raises(SystemExit):
        main(["report", str(run), "--panel", *epochs])
    error = capsys.readouterr().err
    assert said.format(run=run) in error and len(error.splitlines()) == 1
    assert not (run / "panel.png").exists() and not (run / "report.html").exists()
