"""What Lightning cuts short, and data that are not what they were: with and without a resume."""

import multiprocessing
import os
from datetime import timedelta
from pathlib import Path

import lightning as L
import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import BatchSizeFinder, Callback, ModelCheckpoint
from PIL import Image
from torch import nn

from litcam.callbacks import Coverage
from litcam.datamodules import ImageNetDataModule
from litcam.datamodules.convert import convert
from litcam.datamodules.sources import folders

COUNT = 26


class Tiny(L.LightningModule):
    """Remembers what it was shown: `(epoch, batch_idx, images)`."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 2))
        self.trained, self.validated = [], []

    def training_step(self, batch, batch_idx):
        self.trained.append((self.trainer.current_epoch, batch_idx, batch["index"].tolist()))
        return nn.functional.cross_entropy(self.net(batch["image"]), batch["label"])

    def validation_step(self, batch, batch_idx):
        self.validated.append((self.trainer.current_epoch, batch_idx, batch["index"].tolist()))

    def predict_step(self, batch, batch_idx):
        return batch["index"]

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


class StopAt(Callback):
    """Ends the run in the batch of a number, over all epochs."""

    def __init__(self, number):
        self.number = number

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        if trainer.global_step == self.number:
            raise RuntimeError("stop")


def write(root, train=COUNT // 2, val=5):
    generator = np.random.default_rng(0)
    for split, count in (("train", train), ("val", val)):
        for name in ("cat", "dog"):
            folder = root / split / name
            folder.mkdir(parents=True, exist_ok=True)
            for number in range(count):
                pixels = generator.integers(0, 256, (20, 24, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f"{number:02}.jpg")
    return root


@pytest.fixture
def root(tmp_path):
    return write(tmp_path / "photos")


def fit(root, batch_size=4, *, ckpt=None, callbacks=(), stop=None, **options):
    """Trains; an exception of `StopAt` is expected where it is asked for."""
    data = ImageNetDataModule(root, batch_size, num_workers=0, image_size=16)
    module = Tiny()
    last = ModelCheckpoint(
        root.parent, "last", save_on_exception=True, enable_version_counter=False
    )
    trainer = L.Trainer(
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        callbacks=[last, Coverage(), *callbacks, *([StopAt(stop)] if stop is not None else [])],
        **{"max_epochs": 2, **options},
    )
    if stop is None:
        trainer.fit(module, data, ckpt_path=ckpt)
    else:
        with pytest.raises(RuntimeError, match="stop"):
            trainer.fit(module, data, ckpt_path=ckpt)
    return module, trainer


def images(module, epoch):
    return [index for at, _, batch in module.trained if at == epoch for index in batch]


def go_on(root, *, stop, then=None, **options):
    """Stops in a batch and goes on, perhaps otherwise; what was trained, and by the second run."""
    first, _ = fit(root, stop=stop, **options)
    second, trainer = fit(root, ckpt=root.parent / "last.ckpt", **{**options, **(then or {})})
    return first.trained + second.trained, second, trainer


@pytest.mark.slow
def test_a_limit_counts_what_was_trained_before(root):
    whole, _ = fit(root, limit_train_batches=4)
    trained, second, trainer = go_on(root, stop=3, limit_train_batches=4)
    assert trained == whole.trained
    assert len(second.trained) == 1 + 4
    assert trainer.global_step == 8


@pytest.mark.parametrize(("limit", "left"), [(2, 0), (5, 2), (0.5, 0), (1.0, 3)])
def test_another_limit_after_a_resume(root, limit, left):
    _, second, _ = go_on(root, stop=3, then={"limit_train_batches": limit})
    assert sum(epoch == 0 for epoch, *_ in second.trained) == left
    assert [epoch for epoch, *_ in second.validated] == [0, 0, 0, 1, 1, 1]


@pytest.mark.parametrize("batch_size", [1, 2, 3, 5, 16])
@pytest.mark.parametrize("stop", [1, 5])
def test_another_batch_size_repeats_nothing(root, stop, batch_size):
    trained, second, _ = go_on(root, stop=stop, then={"batch_size": batch_size})
    first = [index for epoch, _, batch in trained if epoch == 0 for index in batch]
    gone = 4 * stop
    assert len(first) == len(set(first)) == gone + (COUNT - gone) // batch_size * batch_size
    # The epoch ends as any other: it is validated, and the next one is whole.
    assert {epoch for epoch, *_ in second.validated} == {0, 1}
    assert len(set(images(second, 1))) == COUNT // batch_size * batch_size


def test_validation_within_an_epoch_goes_on_too(root):
    whole, _ = fit(root, val_check_interval=2)
    trained, second, _ = go_on(root, stop=3, val_check_interval=2)
    assert trained == whole.trained
    assert len(second.validated) == len(whole.validated) - 3


@pytest.mark.parametrize("options", [{"max_steps": 4}, {"max_time": timedelta(milliseconds=1)}])
def test_an_epoch_that_was_cut_short_is_gone_on_with(root, options):
    whole, _ = fit(root)
    first, _ = fit(root, **options)
    assert 0 < len(first.trained) < 6
    wider = {"max_steps": -1} if "max_steps" in options else {"max_time": timedelta(hours=1)}
    second, trainer = fit(root, ckpt=root.parent / "last.ckpt", **wider)
    assert first.trained + second.trained == whole.trained
    assert trainer.callback_metrics["train/images_missing"] == 2


def test_loaders_made_anew_every_epoch(root):
    whole, _ = fit(root, max_epochs=3)
    anew, _ = fit(root, max_epochs=3, reload_dataloaders_every_n_epochs=1)
    assert anew.trained == whole.trained
    trained, _, _ = go_on(root, stop=8, max_epochs=3, reload_dataloaders_every_n_epochs=1)
    assert trained == whole.trained


def test_the_batch_size_finder(root):
    module, trainer = fit(root, batch_size=2, callbacks=[BatchSizeFinder(max_trials=2)])
    assert trainer.datamodule.batch_size == 4
    for epoch in (0, 1):
        assert len(set(images(module, epoch)[-24:])) == 24


def test_the_same_few_batches_with_a_broken_image(root):
    broken = root / "train/cat/01.jpg"
    broken.write_bytes(broken.read_bytes()[:200])
    module, _ = fit(root, overfit_batches=2)
    first, second = ([b for at, _, b in module.trained if at == epoch] for epoch in (0, 1))
    assert first == second and len(first) == 2
    assert 1 not in images(module, 0)


def test_predictions_come_in_the_order_of_storage(root, tmp_path):
    convert(root, tmp_path / "shards", chunk_bytes=2000, say=lambda line: None)
    data = ImageNetDataModule(tmp_path / "shards", 4, num_workers=0, image_size=16)
    trainer = L.Trainer(
        accelerator="cpu", logger=False, enable_progress_bar=False, enable_checkpointing=False
    )
    predicted = torch.cat(trainer.predict(Tiny(), data))
    assert predicted.tolist() == data.predict_dataloader().dataset.chunks.images.tolist()
    assert sorted(predicted.tolist()) == list(range(10))


def added(root):
    write(root, train=14)


def renamed(root):
    (root / "train/cat/00.jpg").rename(root / "train/cat/000.jpg")


def moved(root):
    (root / "train/cat/00.jpg").rename(root / "train/dog/00a.jpg")


@pytest.mark.parametrize(
    ("change", "words"),
    [(added, "26 training images, and now there are 28"), (renamed, "names"), (moved, "classes")],
)
def test_other_data_are_noticed(root, change, words):
    fit(root, stop=3)
    change(root)
    with pytest.raises(ValueError, match=f"{words}.*; give it the same data, or start") as caught:
        fit(root, ckpt=root.parent / "last.ckpt")
    assert "\n" not in str(caught.value)


def test_broken_images_are_counted_over_a_resume(root):
    for number in range(2):
        (root / f"train/cat/{number:02}.jpg").write_bytes(b"nonsense")

    def data(**options):
        return ImageNetDataModule(root, 4, num_workers=0, image_size=16, **options)

    last = ModelCheckpoint(root.parent, "last", enable_version_counter=False)
    options = {"accelerator": "cpu", "logger": False, "enable_progress_bar": False}
    trainer = L.Trainer(max_epochs=1, callbacks=[last], **options)
    trainer.fit(Tiny(), data(max_broken=3))
    for number in (2, 3):
        (root / f"train/dog/{number:02}.jpg").write_bytes(b"nonsense")
    trainer = L.Trainer(max_epochs=2, callbacks=[last], **options)
    with pytest.raises(ValueError, match=r"train/dog/0[23].jpg.*max_broken=3 allows"):
        trainer.fit(Tiny(), data(max_broken=3), ckpt_path=root.parent / "last.ckpt")


@pytest.mark.slow
def test_a_disk_that_does_not_answer_is_reported(root, monkeypatch):
    # To open a pipe nobody writes to is to wait for ever, as for a mount that hangs; litcam itself
    # refuses pipes.
    monkeypatch.setattr(folders, "read_whole", lambda path: Path(path).read_bytes())
    path = root / "val/cat/03.jpg"
    path.unlink()
    os.mkfifo(path)
    data = ImageNetDataModule(root, 4, num_workers=1, image_size=16, timeout=2)
    data.setup("validate")
    with pytest.raises(OSError, match=r"no batch from .*val for 2 s; look whether the disk"):
        list(data.val_dataloader())
    data.teardown("validate")


def test_workers_are_a_share_of_the_cores(root, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(26)), raising=False)
    data = ImageNetDataModule(root, 4, image_size=16)
    data.trainer = L.Trainer(
        accelerator="cpu", devices=2, strategy="ddp", logger=False, enable_checkpointing=False
    )
    assert data._loader_options()["num_workers"] == 13
    assert multiprocessing.active_children() == []
