"""Binary segmentation of pets: the notebook of segmentation_models.pytorch, with GradCAM.

Repository: https://github.com/qubvel-org/segmentation_models.pytorch at 500661635763 (MIT).
Used as they are: PetModel (FPN, ResNet-34) out of examples/binary_segmentation_intro.ipynb, and the
datasets of the notebook. Changed: random weights, so that neither they nor their mean and std,
which are ImageNet's, are downloaded; batches of 9; no workers. Data: 60 photos in Oxford's folders,
and for its trimaps an ellipse in the middle.

    LITCAM_TEST_DATA=<folder of photos> python smp_pets.py <the checked-out repository>
"""

import json
import sys
from pathlib import Path

import numpy as np
import pytorch_lightning
import torch
from check import WORK, photos, trial
from PIL import Image
from torch.utils.data import DataLoader

sys.path.insert(0, sys.argv[1])
import segmentation_models_pytorch as smp
from segmentation_models_pytorch.datasets import SimpleOxfordPetDataset

ADDED = 2  # target=, target_layer=
DATA = WORK / "pets"
NORM = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
smp.encoders.get_preprocessing_params = lambda name: NORM


def write_pets():
    """Every tenth of them is validated."""
    (DATA / "images").mkdir(parents=True)
    (DATA / "annotations" / "trimaps").mkdir(parents=True)
    names = []
    for number, (path, kind) in enumerate(photos(60)):
        names.append(f"{('cat', 'dog')[kind]}_{number}")
        image = Image.open(path).convert("RGB")
        image.save(DATA / "images" / f"{names[-1]}.jpg")
        y, x = np.ogrid[-1 : 1 : image.height * 1j, -1 : 1 : image.width * 1j]
        trimap = Image.fromarray(np.where(x**2 + y**2 < 0.4, 1, 2).astype(np.uint8))
        trimap.save(DATA / "annotations" / "trimaps" / f"{names[-1]}.png")
    (DATA / "annotations" / "trainval.txt").write_text("\n".join(f"{n} 1 1 1" for n in names))


def make():
    """As the notebook, whose cell of the module is run with the names that it imports."""
    notebook = Path(sys.argv[1], "examples", "binary_segmentation_intro.ipynb")
    cells = ["".join(cell["source"]) for cell in json.loads(notebook.read_text())["cells"]]
    space = {"pl": pytorch_lightning, "torch": torch, "smp": smp, "T_MAX": 12}
    space["lr_scheduler"] = torch.optim.lr_scheduler
    exec(next(cell for cell in cells if "class PetModel" in cell), space)
    module = space["PetModel"](
        "FPN", "resnet34", in_channels=3, out_classes=1, encoder_weights=None
    )
    train, valid = (SimpleOxfordPetDataset(str(DATA), mode) for mode in ("train", "valid"))
    loaders = {"train_dataloaders": DataLoader(train, batch_size=9, shuffle=True)}
    return module, loaders | {"val_dataloaders": DataLoader(valid, batch_size=9)}


def hand(module, data, record):
    """How much pet the network sees, the mean of its logits."""
    image = torch.tensor(data["val_dataloaders"].dataset[record["index"]]["image"])
    return module(image[None]).mean(), image / 255, {"view": record["key"].endswith("target")}


def arguments(module):
    """What has to be added."""
    return {
        "target": lambda output: output.mean((1, 2, 3)),
        "target_layer": "model.encoder.layer4",
    }


write_pets()
seen = trial("smp_pets", make, hand, arguments, pl=pytorch_lightning)
assert seen.pictures and seen.as_by_hand and seen.bitwise
print(f"lines added: {ADDED}")
