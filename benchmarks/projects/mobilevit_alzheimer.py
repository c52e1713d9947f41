"""A Hugging Face MobileViT that rates slices of MRI, with GradCAM.

Repository: https://github.com/HenriSmidt/Alzheimer_Detection at 94aa5481f216 (its README names no
licence: nothing of it is kept here).
Used as they are: MobileViTLightning, MRIImageDataModule (three neighbouring slices are the
channels) and get_transform with the checkpoint's image processor. Changed: the checkpoint is a
small random MobileViT; its `utils`, which logs in to W&B, is left out but for get_best_device; its
data module is one of pytorch_lightning and its module one of lightning, hence loaders are passed.
Data: 64 photos in grey, three slices each.

    LITCAM_TEST_DATA=<folder of photos> python mobilevit_alzheimer.py <the checked-out repository>
"""

import sys
import types

import pandas as pd
import torch
from check import WORK, photos, trial
from PIL import Image
from transformers import MobileViTConfig, MobileViTForImageClassification, MobileViTImageProcessor

sys.path.insert(0, sys.argv[1])
sys.modules["utils"] = types.ModuleType("utils")
sys.modules["utils"].get_best_device = lambda: torch.device("cpu")
from dataset import MRIImageDataModule, get_transform  # noqa: E402
from models.mobilevit_lightning import MobileViTLightning  # noqa: E402

ADDED = 0
ROOT = WORK / "slices"
RATINGS = [0.0, 0.5, 1.0, 2.0]
CHECKPOINT = str(ROOT / "checkpoint")


def write_slices():
    """A photo a patient, of one of four ratings, each slice with and without a mask; a network."""
    ROOT.mkdir()
    rows = []
    for number, (path, _) in enumerate(photos(64)):
        photo = Image.open(path).convert("L").resize((128, 128))
        patient = {"ID": f"OAS{number}", "CDR": RATINGS[number % 4], "Age": 60 + number % 30}
        for slice_number in (86, 87, 88):
            file = ROOT / f"{number}-{slice_number}.png"
            photo.save(file)
            rows += 2 * [{**patient, "slice_number": slice_number, "path": str(file)}]
    pd.DataFrame(rows).to_csv(ROOT / "table.csv", index=False)
    torch.manual_seed(0)
    sizes = {"hidden_sizes": [32, 48, 64], "neck_hidden_sizes": [8, 16, 24, 32, 48, 64, 128]}
    small = MobileViTConfig(image_size=128, initializer_range=0.1, **sizes)
    MobileViTForImageClassification(small).save_pretrained(CHECKPOINT)
    crop = {"height": 128, "width": 128}
    processor = MobileViTImageProcessor(size={"shortest_edge": 128}, crop_size=crop)
    processor.save_pretrained(CHECKPOINT)


def make():
    """As the notebook model_training.ipynb."""
    module = MobileViTLightning(CHECKPOINT, num_labels=4, lr=1e-3)
    transform = get_transform("mobilevit-s", CHECKPOINT)
    data = MRIImageDataModule(str(ROOT / "table.csv"), transform, batch_size=4)
    data.setup()
    loaders = {"train_dataloaders": data.train_dataloader()}
    return module, loaders | {"val_dataloaders": data.val_dataloader()}


def hand(module, data, record):
    """The logit of the recorded class; the processor gives pixels as they are."""
    item = data["val_dataloaders"].dataset[record["index"]]
    logits = module.model(item["inputs"][None]).logits
    facts = {
        "label": record["label"] == int(item["labels"]),
        "predicted": record["predicted"] == int(logits.argmax()),
    }
    return logits[0, record["class"]], item["inputs"], facts


write_slices()
seen = trial("mobilevit_alzheimer", make, hand)
assert seen.pictures and seen.as_by_hand and seen.bitwise
print(f"lines added: {ADDED}")
