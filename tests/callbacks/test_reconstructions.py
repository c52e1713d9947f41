"""What `Reconstructions` draws, where it goes, and that training does not notice."""

import copy
import json
import logging
import os
import random
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import lightning.pytorch.loggers as loggers
import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import Callback
from PIL import Image
from pretraining import make_data, make_mae, pretrain
from strangers import Stranger, make_trainer, read_lines
from torch.utils.data import DataLoader, TensorDataset

from litcam.callbacks import Neighbours, Reconstructions, reconstructions
from litcam.callbacks.explained.reconstruction_views import (
    bring_reconstructions,
    reconstruct_images,
)
from litcam.callbacks.validation.pixels import Pixels

KEY, FOLDER, GAP, SIDE = "val/reconstructions", "reconstructions", 4, 224


@pytest.fixture
def said():
    lines = []

    class Keep(logging.Handler):
        def emit(self, record):
            lines.append(record.getMessage())

    keep, logger = Keep(), logging.getLogger("lightning.pytorch.callbacks.litcam")
    logger.addHandler(keep)
    logger.setLevel(logging.INFO)
    yield lines
    logger.removeHandler(keep)


@pytest.fixture
def drawn(monkeypatch):
    """What is drawn at each epoch or step, before it is a JPEG."""
    kept = []
    draw = reconstructions.draw_reconstructions

    def keep(made, names, when):
        kept.append({image.index: image for image in made})
        return draw(made, names, when)

    monkeypatch.setattr(reconstructions, "draw_reconstructions", keep)
    return kept


def read_tiles(file):
    picture = np.asarray(Image.open(file)).astype(float)
    assert picture.shape == (SIDE, 4 * SIDE + 3 * GAP, 3)
    return [picture[:, start : start + SIDE] for start in range(0, 4 * (SIDE + GAP), SIDE + GAP)]


def check_tiles(tiles, share):
    """JPEG moves a value by a few levels, more at the borders of cells."""
    seen, predicted, both, original = tiles
    hidden, shown = (np.abs(tile - 128).max(2) < 4 for tile in (seen, predicted))
    assert hidden.mean() == pytest.approx(share, abs=0.06)
    assert shown.mean() == pytest.approx(1 - share, abs=0.1)
    assert np.median(np.abs(seen - original)[~hidden]) < 4
    assert np.median(np.abs(both - original)[~hidden]) < 8
    assert np.median(np.abs(both - predicted)[hidden]) < 4
    assert np.abs(both - original)[hidden].mean() > 10


@pytest.mark.parametrize("family", ["vit", "swin", "cnn"])
def test_folder_holds_four_tiles_an_image(family, tmp_path, said):
    pretrain(Reconstructions(num_images=3), mae=make_mae(family), data=make_data(family))
    lines = read_lines(tmp_path / FOLDER)
    assert [(line["epoch"], line["step"]) for line in lines] == [(0, 3)] * 3 + [(1, 7)] * 3
    assert [line["index"] for line in lines] == [0, 4, 9] * 2
    for line in lines:
        assert line["key"] == KEY and line["image"] == f"val/{line['index']:06d}"
        assert line["mask_share"] == 0.75 and line["borrowed"] is False
        assert line["label_name"] == ("stripes", "checks")[line["index"] % 2]
        assert line["caption"].startswith(f"epoch {line['epoch']}, step {line['step']} | val/")
        assert f"PSNR {line['psnr']:.1f} dB" in line["caption"] and "true" not in line["caption"]
        check_tiles(read_tiles(tmp_path / FOLDER / line["file"]), 0.75)
    with Image.open(tmp_path / FOLDER / "epoch-001-step-000007" / "sheet.jpg") as sheet:
        assert sheet.width == 4 * (SIDE + GAP) + GAP
    assert len([line for line in said if "Reconstructions shows 3 images" in line]) == len(said)


def test_wandb_keeps_what_was_shown():
    import wandb
    from wandb_files import read_history

    import litcam.callbacks

    logger = litcam.callbacks.WandbLogger(offline=True)
    pretrain(Reconstructions(num_images=2, steps=[2]), logger=logger)
    files = Path(wandb.run.dir)
    wandb.finish()
    shown = [item for item in read_history(files.parent) if f"{KEY}.count" in item]
    assert [item["trainer/global_step"] for item in shown] == [1, 3, 7]
    for item in shown:
        assert item[f"{KEY}._type"] == "images/separated" and item[f"{KEY}.count"] == 2
        for name, caption in zip(item[f"{KEY}.filenames"], item[f"{KEY}.captions"], strict=True):
            assert f"step {item['trainer/global_step']} | val/0" in caption and " dB" in caption
            check_tiles(read_tiles(files / name), 0.75)


def test_tensorboard_keeps_pictures_and_captions(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    logger = loggers.TensorBoardLogger(tmp_path, "tb")
    pretrain(Reconstructions(indices=[7], name="mine"), logger=logger)
    events = EventAccumulator(logger.log_dir, {"images": 0, "tensors": 0}).Reload()
    assert events.Tags()["images"] == ["val/mine/000007"]
    assert [event.step for event in events.Images("val/mine/000007")] == [3, 7]
    text = events.Tensors("val/mine/000007/text_summary")[0].tensor_proto.string_val[0]
    assert b"PSNR" in text
    assert len(read_lines(Path(logger.log_dir) / "mine")) == 2


def test_images_and_masks_stay_the_same_whatever_the_batches(drawn):
    pretrain(Reconstructions(num_images=4, steps=[1, 6]))
    pretrain(Reconstructions(num_images=4), data=make_data(batch_size=3))
    assert len(drawn) == 6
    for later in drawn[1:]:
        for index, image in later.items():
            np.testing.assert_array_equal(image.hidden, drawn[0][index].hidden)
            np.testing.assert_array_equal(image.original, drawn[0][index].original)
    assert any((drawn[0][0].hidden != image.hidden).any() for image in drawn[0].values())
    assert (drawn[0][0].predicted != drawn[3][0].predicted).any(), "the model learns"


@pytest.mark.parametrize("norm", [False, True])
def test_psnr_is_that_of_the_pixels(norm, drawn, tmp_path, said):
    mae = make_mae(norm_pix_loss=norm, lr=1e-3)
    pretrain(Reconstructions(num_images=5), mae=mae, max_epochs=1)
    for line in read_lines(tmp_path / FOLDER):
        image = drawn[0][line["index"]]
        error = (image.predicted.astype(float) - image.original)[image.hidden] / 255
        expected = -10 * np.log10(np.square(error).mean())
        # Pixels are cut at black and white and rounded, which the model's own number is not.
        assert line["psnr"] == pytest.approx(expected, abs=0.4)
        np.testing.assert_array_equal(image.predicted[~image.hidden], image.original[~image.hidden])
        assert line["borrowed"] is norm
        assert ("uses each cell's true mean and contrast" in line["caption"]) is norm
    assert ("true mean and contrast" in said[0]) is norm


class Witness(Callback):
    """Everything that a callback must leave alone, after each training step and validation."""

    def __init__(self):
        self.kept = []

    def on_train_start(self, trainer, module):
        module.decoder.eval()

    def keep(self, trainer, module, *args):
        grads = [p.grad for p in module.parameters()]
        numbers = np.random.get_state()[1].tolist()  # noqa: NPY002
        metrics = {
            k: v
            for k, v in trainer.callback_metrics.items()
            if "knn" not in k and "per_second" not in k
        }
        modes = [part.training for part in module.modules()]
        random_state = torch.get_rng_state(), numbers, random.getstate()
        state = module.state_dict(), grads, metrics, trainer.optimizers[0].state_dict()
        hooks = sum(len(part._forward_hooks) for part in module.modules())
        stage, grad_mode = trainer.state.stage, torch.is_grad_enabled()
        self.kept.append(copy.deepcopy((*state, *random_state, modes, stage, hooks, grad_mode)))

    on_train_batch_end = on_validation_end = keep


@pytest.mark.parametrize("family", ["vit", "swin", "cnn"])
@pytest.mark.parametrize(
    "kwargs",
    [
        {},
        {"num_sanity_val_steps": 0, "accumulate_grad_batches": 2, "val_check_interval": 3},
        {"precision": "bf16-mixed"},
    ],
    ids=["plain", "accumulation", "bf16"],
)
def test_training_is_bitwise_the_same(family, kwargs, tmp_path):
    from test_untouched import assert_same

    kept = []
    for callbacks in ([], [Reconstructions(num_images=3, steps=[1, 2]), Neighbours()]):
        witness = Witness()
        torch.manual_seed(1)
        np.random.seed(1)  # noqa: NPY002
        random.seed(1)
        mae, data = make_mae(family), make_data(family)
        trainer = pretrain(*callbacks, witness, mae=mae, data=data, **kwargs)
        kept.append(witness.kept)
    assert_same(*kept)
    assert any(set(one[7]) == {True, False} for one in kept[0]), "modes were to differ by part"
    assert "val/knn_acc1" in trainer.callback_metrics
    steps = {line["step"] for line in read_lines(tmp_path / FOLDER)}
    assert {0, 1} <= steps and len(steps) >= 3


def test_a_step_before_any_validation_shows_what_validation_shows(drawn, tmp_path):
    callback = Reconstructions(num_images=3, steps=[1, 4])
    pretrain(callback, num_sanity_val_steps=0, max_epochs=1)
    # Step 4 is drawn in training, and not once more by the validation that follows.
    assert [line["step"] for line in read_lines(tmp_path / FOLDER)] == [0] * 3 + [3] * 3
    for index, image in drawn[0].items():
        np.testing.assert_array_equal(image.original, drawn[1][index].original)


def test_a_step_waits_where_there_is_no_validation_loader_yet(said, tmp_path):
    kwargs = {"num_sanity_val_steps": 0, "check_val_every_n_epoch": 2}
    trainer = pretrain(Reconstructions(num_images=2, steps=[1, 2]), **kwargs)
    assert trainer.state.finished and len(read_lines(tmp_path / FOLDER)) == 2
    assert len([line for line in said if "waits for the first validation" in line]) == 1


def test_every_second_epoch_and_validate_alone(tmp_path):
    trainer = pretrain(Reconstructions(num_images=1, every_n_epochs=2), max_epochs=3)
    assert [line["epoch"] for line in read_lines(tmp_path / FOLDER)] == [0, 2]
    trainer.validate(make_mae(), make_data(), verbose=False)
    assert len(read_lines(tmp_path / FOLDER)) == 3


def test_fast_dev_run_draws_nothing(tmp_path):
    trainer = pretrain(Reconstructions(steps=[1]), fast_dev_run=True)
    assert trainer.state.finished and not (tmp_path / FOLDER).exists()


def test_sanity_check_leaves_no_picture(tmp_path):
    found = []

    class Look(Callback):
        def on_train_start(self, trainer, module):
            found.append((tmp_path / FOLDER).exists())

    pretrain(Reconstructions(), Look())
    assert found == [False]


@pytest.mark.parametrize(("after", "calls_in_all"), [(0, 3), (1, 3), (4, 5)])
def test_a_reconstruct_that_raises_does_not_kill_training(after, calls_in_all, said, tmp_path):
    mae, calls = make_mae(), []
    inner = mae.reconstruct

    def fail(*args):
        calls.append(True)
        if len(calls) > after:
            raise RuntimeError("no such thing")
        np.random.rand(), random.random(), torch.rand(1)  # noqa: NPY002
        return inner(*args)

    mae.reconstruct = fail
    trainer = pretrain(Reconstructions(num_images=3, steps=[1]), mae=mae)
    assert trainer.state.finished and trainer.current_epoch == 2
    warned = [line for line in said if "no such thing" in line]
    assert len(warned) == 1 and "training goes on" in warned[0]
    assert len(calls) == calls_in_all, "each validation tries again"
    assert mae.training


def test_a_stranger_is_refused_in_one_line():
    with pytest.raises(ValueError, match="got Stranger: train") as caught:
        make_trainer(Reconstructions()).fit(Stranger())
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("kwargs", "words"),
    [
        ({"num_images": 0}, "num_images must be at least 1, got 0"),
        ({"every_n_epochs": 0}, "every_n_epochs must be at least 1, got 0"),
        ({"steps": [5, 0]}, "steps must be at least 1, got 0"),
        ({"mean": [0.5]}, "mean and std must be of one length"),
    ],
)
def test_bad_arguments(kwargs, words):
    with pytest.raises(ValueError, match=words):
        Reconstructions(**kwargs)


class Guesser(Stranger):
    """Predicts a constant, of images as plain tuples in a shuffled loader or in order."""

    num_cells = 4

    def __init__(self, value, images, **kwargs):
        super().__init__()
        self.value, self.images, self.kwargs = value, images, kwargs

    def reconstruct(self, images, noise):
        assert not self.training and not torch.is_grad_enabled()
        hidden = torch.zeros(len(images), *images.shape[2:], dtype=torch.bool)
        hidden[:, :16] = True
        predicted = torch.where(hidden[:, None], self.value, images)
        psnr = torch.full((len(images),), torch.nan)
        return SimpleNamespace(predicted=predicted, hidden=hidden, psnr=psnr, borrowed=False)

    def val_dataloader(self):
        labels = torch.arange(len(self.images)) % 3
        return DataLoader(TensorDataset(self.images, labels), 4, **self.kwargs)


@pytest.mark.parametrize("shuffle", [False, True])
def test_any_module_that_reconstructs(shuffle, tmp_path):
    module = Guesser(-0.5, torch.rand(10, 3, 32, 32), shuffle=shuffle)
    make_trainer(Reconstructions(num_images=2, steps=[4])).fit(module)
    text = (tmp_path / FOLDER / "images.jsonl").read_text()
    lines = [json.loads(line) for line in text.splitlines()]
    assert len(lines) == 6 and "NaN" not in text and lines[0]["psnr"] is None
    labels = {line["label_name"] for line in lines if line["label_name"]}
    assert labels <= {f"class {number}" for number in range(3)} and labels
    for line in lines:
        both = read_tiles(tmp_path / FOLDER / line["file"])[2]
        assert both[:100].max() < 20 and both[130:].mean() > 100, "darker than black is black"


@pytest.mark.parametrize(
    ("images", "stats", "value", "expected"),
    [
        (torch.tensor([-1.0, 1.0]), ((0.5,) * 3, (0.5,) * 3), 0.0, 128),
        (torch.tensor([0.0, 1.0]), ((0.5,) * 3, (0.5,) * 3), 1.5, 255),
        (torch.tensor([0.0, 255.0]), ((), ()), 51.0, 51),
        (torch.tensor([-2.0, 6.0]), ((), ()), 0.0, 64),
    ],
    ids=["normalised", "pixels", "bytes", "min-max"],
)
def test_a_prediction_is_drawn_on_its_original_s_scale(images, stats, value, expected):
    images = images.view(1, 1, 1, 2).expand(1, 3, 32, 2).repeat(1, 1, 1, 16)
    pixels = Pixels(*stats, "known" if stats[0] else "min-max")
    with torch.no_grad():
        kept = reconstruct_images(Guesser(value, images).eval(), images, [0], [5], pixels)
    (made,) = bring_reconstructions([kept])
    assert set(np.unique(made.original)) == {0, 255}
    assert (made.predicted[:16] == expected).all()
    np.testing.assert_array_equal(made.predicted[16:], made.original[16:])


SCRIPT = """
import sys
import torch
torch.set_num_threads(1)
from pretraining import make_data, make_mae, pretrain
from litcam.callbacks import Neighbours, Reconstructions
ranks, folder = int(sys.argv[1]), sys.argv[2]
torch.manual_seed(0)
mae, data = make_mae(), make_data(num_val=11, batch_size=4 // ranks)
mae.configure_optimizers = lambda: torch.optim.SGD(mae.parameters(), lr=0.0)
kwargs = {"devices": ranks, "strategy": "ddp_find_unused_parameters_true"} if ranks > 1 else {}
callbacks = Reconstructions(num_images=4, steps=[1, 6]), Neighbours(3, 9)
kwargs |= {"num_sanity_val_steps": 0, "default_root_dir": folder}
trainer = pretrain(*callbacks, mae=mae, data=data, **kwargs)
found = trainer.callback_metrics["val/knn_acc1"].item()
print(f"rank {trainer.global_rank} knn {found}\\n", end="")
"""


@pytest.mark.slow
def test_two_ranks_show_and_count_what_one_does(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    where = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    env = {**os.environ, "PYTHONPATH": where, "PYTHONWARNINGS": "ignore"}
    lines, accuracies = [], set()
    for ranks in (1, 2):
        folder = tmp_path / str(ranks)
        command = [sys.executable, str(script), str(ranks), str(folder)]
        done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=150)
        assert done.returncode == 0, done.stderr[-2000:]
        assert "sync_dist" not in done.stderr
        lines.append(read_lines(folder / FOLDER))
        told = [line.split() for line in done.stdout.splitlines() if line.startswith("rank ")]
        assert sorted(line[1] for line in told) == [str(rank) for rank in range(ranks)]
        accuracies |= {line[3] for line in told}
    assert len(accuracies) == 1
    one, two = lines
    assert len(one) == len(two) == 16
    for left, right in zip(one, two, strict=True):
        assert left["index"] == right["index"] and left["step"] == right["step"]
        assert left["psnr"] == pytest.approx(right["psnr"], abs=1e-3)
        pictures = [
            np.asarray(Image.open(tmp_path / str(ranks) / FOLDER / line["file"])).astype(int)
            for ranks, line in ((1, left), (2, right))
        ]
        assert np.abs(pictures[0] - pictures[1]).max() <= 8
