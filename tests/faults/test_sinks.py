"""A place that takes pictures fails: the others get theirs, and it gets the next ones."""

import pytest
import wandb
from disks import fill, make_read_only, small_disk
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import CSVLogger, MLFlowLogger
from strangers import Stranger, make_trainer, read_lines

from litcam.callbacks import GradCAM, WandbLogger

pytestmark = pytest.mark.timeout(120)

IMAGES, EPOCHS = 4, 4
EACH = IMAGES * 2  # views of an image


class Before(Callback):
    """Does something before an epoch."""

    def __init__(self, **actions):
        self.actions = {int(name.removeprefix("epoch")): do for name, do in actions.items()}

    def on_train_epoch_start(self, trainer, module):
        self.actions.get(trainer.current_epoch, lambda: None)()


def epochs_of(folder):
    """Epochs whose pictures are all there, by the folder's own record."""
    lines = read_lines(folder)
    there = [line["epoch"] for line in lines if (folder / line["file"]).stat().st_size]
    return {epoch for epoch in there if there.count(epoch) == EACH}


def media(folder):
    return [*folder.rglob("files/media/images/**/*.jpg")]


def test_full_disk_of_the_pictures(tmp_path, tell, warned):
    table = CSVLogger(tmp_path / "run", name="", version="")
    assert table.experiment  # it wants its folder to be empty
    with small_disk(tmp_path / "run" / "gradcam", "4m") as disk:
        loggers = [table, WandbLogger(offline=True)]
        trouble = Before(epoch1=lambda: fill(disk), epoch2=(disk / "filler").unlink)
        trainer = make_trainer(
            GradCAM(num_images=IMAGES), trouble, logger=loggers, max_epochs=EPOCHS
        )
        trainer.fit(Stranger())
        wandb.finish()
        assert trainer.state.finished
        kept, sent = epochs_of(disk), media(tmp_path / "wandb")
    assert kept == {0, 2, 3} and len(sent) == EPOCHS * EACH
    once, count = warned
    assert "misses pictures in the run's folder and tries the next" in once
    assert "No space left" in once and f"missed up to {EACH} pictures in the run's folder" in count
    tell(
        "the disk of the pictures is full for one epoch",
        caused="a tmpfs, filled to the last byte before the second epoch and freed after it",
        times=1,
        happened=f"the run ends well; W&B has all {len(sent)} pictures, the folder those of "
        f"{len(kept)} epochs; one line at once and one at the end",
        lost=f"{EACH} pictures on that disk",
    )


def test_mlflow_cannot_write(tmp_path, tell, warned, monkeypatch):
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    address = f"file:{tmp_path / 'ml'}"
    mlflow.set_tracking_uri(address)
    logger = MLFlowLogger("study", tracking_uri=address)
    client, place = logger.experiment, logger.run_id
    (artifacts,) = (tmp_path / "ml").glob(f"*/{place}/artifacts")
    with small_disk(artifacts, "1m") as disk:
        make_read_only(disk)
        loggers = [logger, CSVLogger(tmp_path / "run", name="", version="")]
        trainer = make_trainer(
            GradCAM(num_images=IMAGES), logger=loggers, max_epochs=EPOCHS, default_root_dir=tmp_path
        )
        trainer.fit(Stranger())
    assert trainer.state.finished
    (folder,) = [path.parent for path in tmp_path.rglob("images.jsonl")]
    assert epochs_of(folder) == set(range(EPOCHS))
    assert len(client.get_metric_history(place, "val/loss")) == EPOCHS
    once, count = warned
    assert "in MLFlowLogger and tries the next" in once and "Read-only" in once
    missed = EPOCHS * EACH
    assert f"missed up to {missed} pictures in MLFlowLogger" in count
    tell(
        "MLflow cannot take pictures",
        caused="the place of its artifacts is mounted to be read only",
        times=1,
        happened=f"the run ends well; the folder has all {missed} pictures and MLflow its curves; "
        "one line at once and one at the end",
        lost=f"{missed} pictures in MLflow",
    )
