"""Nothing that goes wrong with a picture stops a training run, and nothing stays behind."""

import csv
import gc
import pickle
from pathlib import Path

import lightning.pytorch.loggers as loggers
import pytest
import torch
from lightning.pytorch.callbacks import Callback
from strangers import Stranger, count_hooks, make_trainer, read_lines
from torch import nn

from litcam.callbacks import GradCAM
from litcam.callbacks.explained import shown_maps
from litcam.callbacks.places import run_folder, sending
from litcam.explain import Sparseness


class Wrap(nn.Module):
    """A network whose logits go wrong in validation from the second epoch on."""

    def __init__(self, how):
        super().__init__()
        self.inner, self.how, self.calls = Stranger().net, how, 0

    def forward(self, images):
        logits = self.inner(images)
        self.calls += not self.training
        return self.how(logits) if not self.training and self.calls > 5 else logits


@pytest.mark.parametrize(
    ("how", "words"),
    [(lambda x: x * torch.nan, "logits are not finite"), (lambda x: x * 0 + 1, "map is flat")],
    ids=["nan", "constant"],
)
def test_logits_without_information_are_shown_as_such(how, words, warned, tmp_path):
    trainer = make_trainer(GradCAM(), max_epochs=3)
    trainer.fit(Stranger(Wrap(how)))
    assert trainer.state.finished
    # Of ten images only what is not finite is an alarm as well.
    shown, *alarms = warned
    assert words in shown and ["alarm, blank maps" in line for line in alarms] == [True] * (
        "not finite" in words
    )
    text = (tmp_path / "gradcam" / "images.jsonl").read_text()
    assert "NaN" not in text and words in text
    assert len(read_lines(tmp_path / "gradcam")) == 3 * 16


def test_nan_from_the_start_is_one_line(warned, tmp_path):
    module = Stranger()
    nn.init.constant_(module.net[-1].weight, torch.nan)
    trainer = make_trainer(GradCAM())
    trainer.fit(module)
    assert trainer.state.finished and len(warned) == 1 and "not finite" in warned[0]


def fail_after(number, error, function):
    calls = []

    def failing(*args, **kwargs):
        calls.append(True)
        if len(calls) > number:
            raise error
        return function(*args, **kwargs)

    return failing


@pytest.mark.parametrize(
    ("owner", "name", "error"),
    [
        (shown_maps, "draw_views", ValueError("cannot draw")),
        (sending, "to_folder", OSError(28, "No space left on device")),
        (shown_maps, "find_views", RuntimeError("inside a batch")),
    ],
)
def test_trouble_is_said_once_and_what_was_written_stays(
    owner, name, error, warned, tmp_path, monkeypatch
):
    passes = 3 if name == "find_views" else 1
    monkeypatch.setattr(owner, name, fail_after(passes, error, getattr(owner, name)))
    module = Stranger()
    trainer = make_trainer(GradCAM(), max_epochs=3)
    trainer.fit(module)
    assert trainer.state.finished and trainer.current_epoch == 3
    once, *counted = warned
    assert "training goes on" in once and str(error) in once
    assert [line.split(" in ")[0] for line in counted] == ["GradCAM missed up to 32 pictures"] * (
        name == "to_folder"
    )
    lines = read_lines(tmp_path / "gradcam")
    assert len(lines) == 16
    assert all((tmp_path / "gradcam" / line["file"]).stat().st_size for line in lines)
    assert count_hooks(module) == 0


@pytest.mark.parametrize(
    ("owner", "name"),
    [(sending, "to_folder"), (shown_maps, "find_views"), (shown_maps, "draw_views")],
)
def test_after_one_failure_the_next_validation_is_whole(owner, name, warned, tmp_path, monkeypatch):
    function, calls = getattr(owner, name), []

    def fail_once(*args, **kwargs):
        calls.append(True)
        if len(calls) == 1:
            raise OSError(5, "a hiccup")
        return function(*args, **kwargs)

    monkeypatch.setattr(owner, name, fail_once)
    logger = loggers.CSVLogger(tmp_path)
    trainer = make_trainer(GradCAM(), logger=logger, max_epochs=3)
    trainer.fit(Stranger())
    once, *counted = warned
    assert "tries the next" in once and "a hiccup" in once
    assert len(counted) == (name == "to_folder")
    lines = read_lines(Path(logger.log_dir) / "gradcam")
    assert [line["epoch"] for line in lines] == [1] * 16 + [2] * 16
    with Path(logger.log_dir, "metrics.csv").open() as file:
        measured = [row["val/gradcam/sparseness"] for row in csv.DictReader(file)]
    assert len(set(filter(None, measured))) >= 2


def test_numbers_of_a_part_of_a_validation_are_not_logged(warned, tmp_path, monkeypatch):
    """A mean over some batches would look like one over all."""
    update, calls = Sparseness.update, []

    def fail_once(self, maps):
        calls.append(True)
        if len(calls) == 2:
            raise torch.OutOfMemoryError("a hiccup")
        update(self, maps)

    monkeypatch.setattr(Sparseness, "update", fail_once)
    logger = loggers.CSVLogger(tmp_path)
    trainer = make_trainer(GradCAM(), logger=logger, max_epochs=2)
    trainer.fit(Stranger())
    with Path(logger.log_dir, "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    logged = {name: {row["epoch"] for row in rows if row[name]} for name in rows[0]}
    assert logged["val/gradcam/sparseness"] == {"1"}
    assert logged["val/gradcam/blank_maps"] == {"0", "1"}
    assert len(warned) == 1 and "cannot measure sparseness" in warned[0]


def test_disk_full_in_the_middle_of_a_picture(warned, tmp_path, monkeypatch):
    save = fail_after(5, OSError(28, "No space left on device"), run_folder.Image.Image.save)
    monkeypatch.setattr(run_folder.Image.Image, "save", save)
    trainer = make_trainer(GradCAM())
    trainer.fit(Stranger())
    assert trainer.state.finished and len(warned) == 2 and "No space left" in warned[0]
    assert "missed up to 32 pictures in the run's folder" in warned[1]
    assert len(read_lines(tmp_path / "gradcam")) == 5


def test_logger_that_raises(warned, tmp_path, monkeypatch):
    logger = loggers.TensorBoardLogger(tmp_path)
    broken = fail_after(0, ConnectionError("gone"), None)
    monkeypatch.setattr(logger.experiment, "add_image", broken)
    trainer = make_trainer(GradCAM(), logger=logger)
    trainer.fit(Stranger())
    assert trainer.state.finished and len(warned) == 2 and "gone" in warned[0]
    assert "missed up to 32 pictures in TensorBoardLogger" in warned[1]
    assert len(list(tmp_path.rglob("predicted-*.jpg"))) == 16


@pytest.mark.slow
def test_nothing_grows_over_twenty_epochs():
    counts, tensors = [], []

    class Count(Callback):
        def on_train_epoch_end(self, trainer, module):
            counts.append(count_hooks(module))
            if trainer.current_epoch not in (2, 19):
                return
            gc.collect()
            tensors.append(sum(type(thing) is torch.Tensor for thing in gc.get_objects()))

    module = Stranger()
    make_trainer(GradCAM(), Count(), max_epochs=20).fit(module)
    assert set(counts) == {0}
    assert tensors[1] <= tensors[0]


def test_pickles_before_and_after_a_run(tmp_path):
    cam = GradCAM(num_images=3, classes=["true"])
    for _ in range(2):
        again = pickle.loads(pickle.dumps(cam))
        assert again.num_images == 3 and again.classes == ("true",)
        trainer = make_trainer(again, max_epochs=1)
        trainer.fit(Stranger())
        cam = again
    assert len(read_lines(tmp_path / "gradcam")) == 6
