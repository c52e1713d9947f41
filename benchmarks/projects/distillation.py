"""Knowledge distillation, a teacher and a student in one module, with GradCAM.

Repository: https://github.com/hazrulakmal/image-classification-KD at b17ebcb678ae (MIT).
Used as they are: DistilledTraining and PetDataModule. Changed: student (ResNet-18) and teacher
(ResNet-34) are given to the module, which has arguments for them, with random weights; nothing is
downloaded. Data: 40 and 8 photos in the folders of Oxford's pets.

    LITCAM_TEST_DATA=<folder of photos> python distillation.py <the checked-out repository>
"""

import shutil
import sys

import torch
import torchvision
from check import WORK, photos, trial

sys.path.insert(0, sys.argv[1])
from src.data import PetDataModule
from src.training import DistilledTraining, replace_classifier

ADDED = 0
ROOT = WORK / "pets"


def write_pets():
    """OxfordIIITPet's folders: images, and lists of name, class, species and breed."""
    images = ROOT / "oxford-iiit-pet" / "images"
    notes = ROOT / "oxford-iiit-pet" / "annotations"
    images.mkdir(parents=True)
    (notes / "trimaps").mkdir(parents=True)
    for split, count in {"trainval": 40, "test": 8}.items():
        rows = []
        for number, (path, kind) in enumerate(photos(count)):
            name = f"{['Abyssinian', 'beagle'][kind]}_{split}{number}"
            shutil.copy(path, images / f"{name}.jpg")
            rows.append(f"{name} {kind + 1} {kind + 1} 1")
        (notes / f"{split}.txt").write_text("\n".join(rows) + "\n")


def make():
    """Module and data, as the project's own script makes them."""
    student = replace_classifier(torchvision.models.resnet18(), 2, 0.5)
    teacher = replace_classifier(torchvision.models.resnet34(), 2, 0.5)
    module = DistilledTraining(student, "resnet18", teacher, num_classes=2)
    data = PetDataModule(str(ROOT), batch_size=8, num_workers=0)
    data.prepare_data = lambda: None
    data.train_transform = data.test_transform = data._transform_dataset()
    return module, {"datamodule": data}


def hand(module, data, record):
    """The student's logit; image and label by the recorded index."""
    dataset = data["datamodule"].data_val.dataset
    image, label = dataset[record["index"]]
    logits = module.model(image[None])
    facts = {
        "student": record["layer"] == "model.layer4",
        "label": (record["label"], record["label_name"]) == (label, dataset.classes[label]),
        "predicted": record["predicted"] == int(logits.argmax()),
    }
    mean, std = torch.tensor([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]])[..., None, None]
    return logits[0, record["class"]], image * std + mean, facts


write_pets()
seen = trial("distillation", make, hand)
assert seen.pictures and seen.as_by_hand and seen.bitwise
print(f"lines added: {ADDED}")
