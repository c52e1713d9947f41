"""Face recognition by metric learning: AdaFace, with GradCAM.

Repository: https://github.com/mk-minchul/AdaFace at c60eaa786a42 (MIT).
Used as they are: its LightningModule Trainer (IR-18, AdaFace head) and its DataModule: an image
folder to train on, memory-mapped pairs to validate on, which are BGR. Edited for Lightning 2 when
loaded, nothing of it for GradCAM: `validation_epoch_end(outputs)` gets what a validation_step
around the module's keeps, torch's `_LRScheduler` is `LRScheduler`, and bcolz and mxnet, which are
imported and not called here, are empty modules. Data: photos of pets for faces, 24 and 20.

    LITCAM_TEST_DATA=<folder of photos> python adaface.py <the checked-out repository>
"""

import sys
import types

import numpy as np
import pytorch_lightning
import torch
from check import WORK, photos, trial
from PIL import Image

sys.path.insert(0, sys.argv[1])
sys.modules.update({name: types.ModuleType(name) for name in ("bcolz", "mxnet")})
import evaluate_utils  # noqa: E402
import train_val  # noqa: E402
from data import DataModule  # noqa: E402
from head import l2_norm  # noqa: E402

ADDED = 3  # target=, labels=, pixels=
ROOT, PEOPLE = WORK / "faces", 6
train_val.lr_scheduler._LRScheduler = torch.optim.lr_scheduler.LRScheduler
end_validation = train_val.Trainer.validation_epoch_end
for hook in ("training_epoch_end", "validation_epoch_end", "test_epoch_end"):
    delattr(train_val.Trainer, hook)


Trainer = types.new_class("Trainer", (train_val.Trainer,))  # Lightning 2 keeps no outputs
step = train_val.Trainer.validation_step
Trainer.on_validation_epoch_start = lambda self: setattr(self, "kept", [])
Trainer.validation_step = lambda self, *given: self.kept.append(step(self, *given))
Trainer.on_validation_epoch_end = lambda self: end_validation(self, self.kept)


def write_faces():
    """Four photos a person; ten pairs a validation set, BGR, with mean and std 0.5."""
    for number, (path, _) in enumerate(photos(4 * PEOPLE)):
        folder = ROOT / "train" / "imgs" / f"person-{number % PEOPLE}"
        folder.mkdir(parents=True, exist_ok=True)
        Image.open(path).convert("RGB").resize((112, 112)).save(folder / f"{number}.jpg")
    faces = [Image.open(path).convert("RGB").resize((112, 112)) for path, _ in photos(20, "val")]
    bgr = np.stack([np.asarray(face)[..., ::-1] for face in faces]).transpose(0, 3, 1, 2)
    bgr = ((bgr / 255 - 0.5) / 0.5).astype(np.float32)
    for name in ("agedb_30", "cfp_fp", "lfw", "cplfw", "calfw"):
        (ROOT / "val" / name / "memfile").mkdir(parents=True)
        evaluate_utils.make_memmap(str(ROOT / "val" / name / "memfile" / "mem_file.dat"), bgr)
        np.save(ROOT / "val" / f"{name}_list.npy", np.arange(10) % 2 == 0)
    together = str(ROOT / "val" / "concat_validation_memfile")
    evaluate_utils.make_memmap(together, np.concatenate([bgr] * 5))


def make():
    """As main.py, with the defaults of config.py but for sizes and workers."""
    options = {"arch": "ir_18", "head": "adaface", "m": 0.4, "h": 0.333, "s": 64.0, "lr": 0.1}
    options |= {"t_alpha": 0.01, "momentum": 0.9, "lr_milestones": [8, 12], "lr_gamma": 0.1}
    options |= {"custom_num_class": PEOPLE, "start_from_model_statedict": "", "batch_size": 12}
    options |= {"distributed_backend": "dp", "data_root": str(ROOT), "num_workers": 0}
    options |= {"train_data_path": "train", "val_data_path": "val", "train_data_subset": False}
    for kind in ("low_res", "crop", "photometric"):
        options[f"{kind}_augmentation_prob"] = 0.0
    options |= {"swap_color_channel": False, "use_mxrecord": False, "output_dir": str(ROOT / "out")}
    return Trainer(**options), {"datamodule": DataModule(**options)}


def hand(module, data, record):
    """Likeness to the recorded person, 64 times the cosine; those of validation are not known."""
    image, *_ = data["datamodule"].val_dataset[record["index"]]
    scores = 64 * module.model(image[None])[0] @ l2_norm(module.head.kernel, axis=0)
    facts = {
        "a person": record["class"] < PEOPLE,
        "predicted": record["predicted"] == int(scores.argmax()),
        "no label": record["label"] is None,
    }
    return scores[0, min(record["class"], PEOPLE - 1)], image.flip(0) * 0.5 + 0.5, facts


def arguments(module):
    """What has to be added."""
    return {
        "target": lambda output: 64 * output[0] @ l2_norm(module.head.kernel, axis=0),
        "labels": lambda batch: None,
        "pixels": lambda images: images.flip(1) * 0.5 + 0.5,
    }


write_faces()
few = {"num_sanity_val_steps": 0}  # too few pairs for the ten folds that are made of them
seen = trial("adaface", make, hand, arguments, pl=pytorch_lightning, **few)
assert seen.pictures and seen.as_by_hand and seen.bitwise
print(f"lines added: {ADDED}")
