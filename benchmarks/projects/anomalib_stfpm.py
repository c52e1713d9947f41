"""Anomaly detection, a student feature pyramid after a teacher's: STFPM of anomalib, with GradCAM.

Repository: https://github.com/openvinotoolkit/anomalib at 161bb369547d (Apache-2.0).
Used as they are: Stfpm with its pre- and post-processor, the Folder datamodule, and Engine, which
makes the Trainer; no evaluator and no visualizer. Changed: the teacher's weights are random (timm
is asked for pretrained=False), images of 64 pixels. Data: 32 photos of cats are normal, 16 of dogs
not.

    LITCAM_TEST_DATA=<folder of photos> python anomalib_stfpm.py <the checked-out repository>
"""

import sys
from pathlib import Path
from types import SimpleNamespace

import lightning.pytorch as pl
import timm
from check import WORK, photos, trial
from PIL import Image

sys.path.insert(0, str(Path(sys.argv[1], "src")))
create = timm.create_model
timm.create_model = lambda name, **given: create(name, **(given | {"pretrained": False}))
from anomalib.data import Folder  # noqa: E402
from anomalib.engine import Engine  # noqa: E402
from anomalib.models import Stfpm  # noqa: E402

ADDED = 5  # images=, target=, target_layer=, mean=, std=
DATA = WORK / "photos"
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def write_photos():
    """Of one kind all are normal, of the other a half as many are not."""
    for place, (path, kind) in enumerate(photos(64, "val")):
        folder = DATA / ("good", "defect")[kind]
        folder.mkdir(parents=True, exist_ok=True)
        if kind == 0 or place < 32:
            image = Image.open(path).convert("RGB").resize((64, 64))
            image.save(folder / f"{place:03d}.png")


def make():
    """As its examples."""
    sizes = Stfpm.configure_pre_processor((64, 64))
    module = Stfpm(pre_processor=sizes, evaluator=False, visualizer=False)
    folders = {"normal_dir": "good", "abnormal_dir": "defect", "root": DATA, "num_workers": 0}
    sizes = {"train_batch_size": 8, "eval_batch_size": 8, "seed": 0}
    return module, {"datamodule": Folder("pets", **folders, **sizes)}


def make_engine(enable_checkpointing, **settings):
    """Its Engine takes what a Trainer does, and has its own word on checkpoints."""
    return Engine(**settings)


def hand(module, data, record):
    """The score of being an anomaly, the greatest of its anomaly map."""
    photo = data["datamodule"].val_data[record["index"]].image
    score = module.model(module.pre_processor.transform(photo)[None]).pred_score[0]
    return score, photo, {"student": ".student_model." in record["layer"]}


def arguments(module):
    """What has to be added."""
    return {
        "images": lambda batch: batch.image,
        "target": lambda output: output.pred_score,
        "target_layer": "model.student_model.feature_extractor.layer3",
        "mean": MEAN,
        "std": STD,
    }


write_photos()
engine = SimpleNamespace(seed_everything=pl.seed_everything, Trainer=make_engine)
seen = trial("anomalib_stfpm", make, hand, arguments, pl=engine)
assert seen.pictures and seen.as_by_hand and seen.bitwise
print(f"lines added: {ADDED}")
