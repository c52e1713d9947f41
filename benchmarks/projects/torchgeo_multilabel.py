"""Multi-label classification of 12-band satellite images with torchgeo, with GradCAM.

Repository: https://github.com/torchgeo/torchgeo at 65507dcbc4a5 (MIT).
Used as they are: ClassificationTask(task="multilabel") with timm's ResNet-18 and
BigEarthNetDataModule (12 bands of Sentinel-2, 19 classes), which normalises on the device. Nothing
is changed. Data: patches in BigEarthNet's folders (a GeoTIFF a band, a JSON of labels); red, green
and blue are photos in the sensor's units, up to 2000, and the other bands their brightness.

    LITCAM_TEST_DATA=<folder of photos> python torchgeo_multilabel.py <the checked-out repository>
"""

import json
import sys

import numpy as np
import rasterio
from check import WORK, photos, trial
from PIL import Image

sys.path.insert(0, sys.argv[1])
from torchgeo.datamodules import BigEarthNetDataModule
from torchgeo.datasets import BigEarthNet
from torchgeo.trainers import ClassificationTask

ADDED = 2  # datamodule.class_names =, pixels=
ROOT = WORK / "bigearthnet"
BANDS = ["B01", "B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B09", "B11", "B12"]
KINDS = [["Pastures"], ["Mixed forest", "Water bodies"], ["Vineyards", "Pastures", "Sea and ocean"]]
COLOURS = [3, 2, 1]  # the places of red, green and blue among the bands


def write_patches():
    """Patches of 120 pixels, of one, two and three classes in turn."""
    for split, count in {"train": 24, "val": 12, "test": 4}.items():
        names = [f"{split}-{number}" for number in range(count)]
        for number, (name, (path, _)) in enumerate(zip(names, photos(count), strict=True)):
            folder = ROOT / "BigEarthNet-v1.0" / name
            folder.mkdir(parents=True)
            photo = np.asarray(Image.open(path).convert("RGB").resize((120, 120))) / 255 * 2000
            colours = {BANDS[place]: photo[..., at] for at, place in enumerate(COLOURS)}
            kind = {"driver": "GTiff", "width": 120, "height": 120, "count": 1, "dtype": "uint16"}
            for band in BANDS:
                with rasterio.open(folder / f"{name}_{band}.tif", "w", **kind) as file:
                    file.write(colours.get(band, photo.mean(2)).astype(np.uint16), 1)
            labels = json.dumps({"labels": KINDS[number % 3]})
            (folder / f"{name}_labels_metadata.json").write_text(labels)
        (ROOT / f"bigearthnet-{split}.csv").write_text("\n".join(f"{n},{n}" for n in names))


def make():
    """As torchgeo's tutorials do."""
    task = {"task": "multilabel", "num_labels": 19, "loss": "bce"}
    module = ClassificationTask("resnet18", in_channels=12, **task)
    data = BigEarthNetDataModule(batch_size=6, root=str(ROOT), bands="s2")
    return module, {"datamodule": data}


def hand(module, data, record):
    """The logit of the recorded class; only an image of one class has a label."""
    datamodule = data["datamodule"]
    sample = datamodule.val_dataset[record["index"]]
    logits = module.model(datamodule.aug({"image": sample["image"][None]})["image"])
    classes = sample["label"].nonzero().flatten().tolist()
    probability = float(logits[0, record["class"]].sigmoid())
    facts = {
        "label": record["label"] == (classes[0] if len(classes) == 1 else None),
        "predicted": record["predicted"] == int(logits.argmax()),
        "sigmoid": abs(record["probability"] - probability) < 1e-4,
        "class name": record["class_name"] == BigEarthNet.class_sets[19][record["class"]],
    }
    return logits[0, record["class"]], sample["image"][COLOURS] / 2000, facts


def arguments(module):
    """What has to be added: colours out of twelve bands, 2000 of the sensor's units for white."""
    data = BigEarthNetDataModule(bands="s2")
    mean, std = (v[COLOURS, None, None] for v in (data.mean, data.std))
    return {"pixels": lambda images: (images[:, COLOURS] * std + mean) / 2000}


write_patches()
names = BigEarthNet.class_sets[19]
seen = trial("torchgeo_multilabel", make, hand, arguments, class_names=names)
assert seen.pictures and seen.as_by_hand and seen.bitwise
print(f"lines added: {ADDED}")
