"""Pictures in each logger's own client, read back from what it wrote."""

import json
import sqlite3
import zipfile
from contextlib import closing
from pathlib import Path

import lightning.pytorch.loggers as loggers
import numpy as np
import pytest
from lightning.pytorch.loggers.logger import Logger
from PIL import Image
from strangers import Stranger, make_trainer

from litcam.callbacks import GradCAM, add_place
from litcam.callbacks.places import sending

pytestmark = pytest.mark.filterwarnings("ignore")


def fit(logger, folder, **kwargs):
    trainer = make_trainer(GradCAM(num_images=3), logger=logger, default_root_dir=folder, **kwargs)
    trainer.fit(Stranger())


def test_mlflow_has_one_slider_for_each_view(tmp_path, warned, monkeypatch):
    """Its client reads back the sheets, one for each step."""
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    logger = loggers.MLFlowLogger("study", tracking_uri=f"file:{tmp_path / 'ml'}")
    fit(logger, tmp_path / "run")
    client = mlflow.MlflowClient(f"file:{tmp_path / 'ml'}")
    names = [file.path for file in client.list_artifacts(logger.run_id, "images")]
    for view in ("predicted", "true"):
        own = [n for n in names if f"gradcam~{view}+step+" in n and n.endswith(".png")]
        assert [n.split("+")[2] for n in own] == ["2", "5"]
    picture = Image.open(client.download_artifacts(logger.run_id, own[0], str(tmp_path)))
    assert picture.width > 400 and np.asarray(picture).std() > 20
    assert not warned


def test_comet_offline(tmp_path, warned, monkeypatch):
    """The archive that `comet upload` would send holds every picture with its name and step."""
    comet = pytest.importorskip("comet_ml")
    logger = loggers.CometLogger(online=False, project="study")
    # Lightning 2.6.6 disables its offline experiment; this is the one it would have made.
    folder = str(tmp_path / "comet")
    logger._experiment = comet.OfflineExperiment(
        project_name="study", offline_directory=folder, disabled=False
    )
    fit(logger, tmp_path / "run")
    logger.experiment.end()
    (archive,) = (tmp_path / "comet").glob("*.zip")
    with zipfile.ZipFile(archive) as packed:
        lines = [json.loads(line) for line in packed.read("messages.json").splitlines()]
        found = [line["payload"] for line in lines if line["type"] == "file_upload"]
    images = [one for one in found if one["upload_type"] == "visualization"]
    about = [one["additional_params"] for one in images]
    assert len(images) == len({(one["figName"], one["step"]) for one in about}) == 2 * 2 * 3
    views = {one["figName"].rpartition("/")[0] for one in about}
    assert views == {"val/gradcam/predicted", "val/gradcam/true"}
    assert "map of" in images[0]["metadata"]["caption"]
    assert not warned


def test_trackio(tmp_path, warned, monkeypatch):
    """Its local database holds a record a validation, and the files are pictures."""
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    trackio = pytest.importorskip("trackio")

    class TrackioLogger(Logger):
        name = version = "study"

        def __init__(self):
            self.experiment = trackio.init("study", embed=False)

        def log_metrics(self, metrics, step=None):
            self.experiment.log(metrics, step=step)

        def log_hyperparams(self, *args, **kwargs):
            pass

        def finalize(self, status):
            trackio.finish()

    fit(TrackioLogger(), tmp_path / "run")
    (database,) = tmp_path.rglob("study*.db")
    with closing(sqlite3.connect(database)) as opened:
        rows = [json.loads(row[0]) for row in opened.execute("select metrics from metrics")]
    records = [row for row in rows if any(key.startswith("val/gradcam/true/") for key in row)]
    assert len(records) == 2
    images = [v for v in records[0].values() if isinstance(v, dict) and "caption" in v]
    assert len(images) == 6 and all("map of" in one["caption"] for one in images)
    assert len([*tmp_path.joinpath("trackio").rglob("*.png")]) == 12
    assert not warned


def test_a_place_of_ones_own(tmp_path, warned, monkeypatch):
    """A logger nobody has heard of, in a dozen lines."""
    monkeypatch.setattr(sending, "_added", [])
    shown = []

    class Notebook(Logger):
        name = version = "notebook"
        log_metrics = log_hyperparams = lambda self, *args, **kwargs: None

    @add_place
    def to_notebook(logger):
        if not isinstance(logger, Notebook):
            return None

        def send(views, epoch, step):
            shown.extend((key, image.name, epoch) for key in views for image in views[key])
            assert all(image.picture.dtype == np.uint8 for key in views for image in views[key])

        return send

    fit([Notebook(), loggers.TensorBoardLogger(tmp_path / "tb")], tmp_path / "run")
    assert len(shown) == len(set(shown)) == 12 and not warned
    assert [*tmp_path.joinpath("tb").rglob("events*")]


def test_an_error_of_one_logger_is_one_line(tmp_path, warned, monkeypatch):
    monkeypatch.setattr(sending, "_added", [])

    @add_place
    def broken(logger):
        return lambda views, epoch, step: Path("/nowhere/at/all").read_text()

    fit(loggers.CSVLogger(tmp_path), tmp_path / "run", max_epochs=1)
    assert len(warned) == 2 and "FileNotFoundError" in warned[0]
