"""Multi-label chest X-rays of facebookresearch/CovidPrognosis, with GradCAM.

Repository: https://github.com/facebookresearch/CovidPrognosis at 9c753d1156f0 (MIT), archived.
Used as they are: SipModule (DenseNet-121), XrayDataModule, CheXpertDataset with its CSV.
Edited for Lightning 2 and NumPy 2 when loaded, nothing of it for GradCAM: `pl.metrics` is
torchmetrics', `np.float` is float, `on_epoch_start` has its new name, `validation_epoch_end` gets
what a validation_step around the module's keeps. The MoCo checkpoint is of random weights. Data: 40
and 16 photos in grey and CheXpert's 14 labels with blanks (NaN) and -1 (uncertain) among them.

    LITCAM_TEST_DATA=<folder of photos> python covid_prognosis.py <the checked-out repository>
"""

import sys
import types
from pathlib import Path

import numpy as np
import pandas as pd
import pytorch_lightning as pl
import torch
import torchmetrics
import torchvision
from check import WORK, photos, trial
from PIL import Image
from torchvision import transforms as tv

DATA = WORK / "xrays"
sys.path.insert(0, sys.argv[1])
vars(np)["float"] = float
auroc = torchmetrics.functional.classification.binary_auroc
pl.metrics = types.SimpleNamespace(Accuracy=torchmetrics.classification.BinaryAccuracy)
pl.metrics.functional = types.SimpleNamespace(auroc=lambda s, labels: auroc(s, labels.int()))
import covidprognosis as cp  # noqa: E402
from covidprognosis.data import transforms as xray  # noqa: E402

ADDED = 1  # datamodule.class_names =
NAMES = cp.data.CheXpertDataset.default_labels()
ABOUT = ["Sex", "Age", "Frontal/Lateral", "AP/PA"]
SCORED = ["Atelectasis", "Cardiomegaly", "Consolidation", "Edema", "Pleural Effusion"]
code = Path(sys.argv[1], "cp_examples", "sip_finetune", "sip_finetune.py").read_text()
code = code.replace("on_epoch_start", "on_train_epoch_start")
sip = types.ModuleType("sip_finetune")
exec(compile(code, "sip_finetune", "exec"), sip.__dict__)
SipModule = types.new_class("SipModule", (sip.SipModule,))  # Lightning 2 keeps no outputs
SipModule.on_validation_epoch_start = lambda self: setattr(self, "kept", [])
step, end = sip.SipModule.validation_step, sip.SipModule.validation_epoch_end
del sip.SipModule.validation_epoch_end
SipModule.validation_step = lambda self, *given: self.kept.append(step(self, *given))
SipModule.on_validation_epoch_end = lambda self: end(self, self.kept)


def write_chexpert():
    """Its CSVs and files, and the checkpoint."""
    random, paths = np.random.default_rng(0), iter(photos(56))
    for split, count in {"train": 40, "valid": 16}.items():
        rows = []
        for place in range(count):
            path = f"CheXpert-v1.0/{split}/patient{place:05d}/study1/view1_frontal.jpg"
            (DATA / path).parent.mkdir(parents=True)
            Image.open(next(paths)[0]).convert("L").resize((80, 72)).save(DATA / path)
            labels = (random.random(14) < 0.3).astype(float) if place else np.eye(14)[3]
            if place % 3:
                labels[random.random(14) < 0.3] = np.nan
                labels[random.random(14) < 0.1] = -1
            rows.append([path, "F", 50, "Frontal", "AP", *labels])
        table = pd.DataFrame(rows, columns=["Path", *ABOUT, *NAMES])
        table.to_csv(DATA / "CheXpert-v1.0" / f"{split}.csv", index=False)
    torch.manual_seed(0)
    moco = torchvision.models.densenet121(num_classes=128).state_dict(prefix="model.encoder_q.")
    torch.save({"state_dict": moco}, DATA / "moco.pt")


def make():
    """As train_sip.py, with photos of 64 pixels."""
    ours = [tv.Resize(64), tv.CenterCrop(64), tv.ToTensor(), xray.HistogramNormalize()]
    ours = xray.Compose([*ours, xray.TensorToRGB(), xray.RemapLabel(-1, np.nan)])
    settings = {f"{split}_transform": ours for split in ("train", "val", "test")}
    data = cp.plmodules.XrayDataModule("chexpert", DATA, batch_size=8, num_workers=0, **settings)
    return SipModule("densenet121", 14, NAMES, SCORED, DATA / "moco.pt"), {"datamodule": data}


def hand(module, data, record):
    """The logit of the recorded class; a label only where all are known and one is 1."""
    sample = data["datamodule"].val_dataset[record["index"]]
    labels, logits = torch.as_tensor(sample["labels"]), module.model(sample["image"][None])
    one = bool((labels >= 0).all() and labels.sum() == 1)
    facts = {
        "label": record["label"] == (int(labels.argmax()) if one else None),
        "sigmoid": abs(record["confidence"] - float(logits.max().sigmoid())) < 1e-4,
        "name": record["predicted_name"] == NAMES[int(logits.argmax())],
    }
    return logits[0, record["class"]], sample["image"] / sample["image"].max(), facts


write_chexpert()
# Nothing but the names of the classes has to be added.
seen = trial("covid_prognosis", make, hand, lambda module: {}, pl=pl, class_names=NAMES)
assert seen.pictures and seen.as_by_hand and seen.bitwise
print(f"lines added: {ADDED}")
