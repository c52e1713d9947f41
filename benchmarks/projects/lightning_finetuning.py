"""Cats and dogs of Lightning's own fine-tuning example, with GradCAM.

Repository: https://github.com/Lightning-AI/pytorch-lightning at 7f0c3436cd3f (Apache-2.0),
examples/pytorch/domain_templates/computer_vision_fine_tuning.py.
Used as they are: TransferLearningModel (ResNet-50, one logit), MilestonesFinetuning, which
unfreezes parts of it as training goes on, and CatDogImageDataModule. Changed: random weights and no
download; milestones after epochs 1 and 2 of 3; images of 96 instead of 224 pixels. Data: 24 and 12
photos.

    LITCAM_TEST_DATA=<folder of photos> python lightning_finetuning.py <the checked-out repository>
"""

import shutil
import sys
import types
from pathlib import Path

import torch
import torchvision
from check import WORK, photos, trial

ADDED = 0
DATA = WORK / "cats_and_dogs"
FOLDER = Path(sys.argv[1], "examples", "pytorch", "domain_templates")
code = (FOLDER / "computer_vision_fine_tuning.py").read_text().replace("224, 224", "96, 96")
example = types.ModuleType("computer_vision_fine_tuning")
exec(compile(code, example.__name__, "exec"), example.__dict__)
example.download_and_extract_archive = lambda **_: None
example.get_torchvision_model = lambda name, weights: torchvision.models.get_model(name)


def write_photos():
    """As the archive that it downloads."""
    for split, count in {"train": 24, "validation": 12}.items():
        for path, kind in photos(count, "train" if split == "train" else "val"):
            folder = DATA / "cats_and_dogs_filtered" / split / ("cats", "dogs")[kind]
            folder.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, folder)


def make():
    """Module and data, as its command line makes them."""
    module = example.TransferLearningModel(milestones=(1, 2), batch_size=6)
    return module, {"datamodule": example.CatDogImageDataModule(dl_path=DATA, batch_size=6)}


def hand(module, data, record):
    """Its one logit speaks for dogs, and its negative for cats."""
    dataset = data["datamodule"].val_dataloader().dataset
    image, label = dataset[record["index"]]
    logit = module(image[None])[0, 0]
    facts = {
        "label": (record["label"], record["label_name"]) == (label, dataset.classes[label]),
        "predicted": record["predicted"] == int(logit > 0),
        "sigmoid": abs(record["confidence"] - float(logit.abs().sigmoid())) < 1e-4,
    }
    mean, std = torch.tensor([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]])[..., None, None]
    return logit if record["class"] else -logit, image * std + mean, facts


write_photos()
stages = [lambda: example.MilestonesFinetuning((1, 2))]
seen = trial("lightning_finetuning", make, hand, max_epochs=3, callbacks=stages)
assert seen.pictures and seen.as_by_hand and seen.bitwise
print(f"lines added: {ADDED}")
