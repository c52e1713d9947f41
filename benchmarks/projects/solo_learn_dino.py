"""Self-distillation, a student, a momentum teacher and an online classifier: DINO of solo-learn.

Repository: https://github.com/vturrisi/solo-learn at 9187ea39c2c3 (MIT).
Used as they are: DINO with two ResNet-18, prepare_transforms and the crops of its pretraining.
Changed: settings of its tests with smaller sizes, 96 pixels, no workers. Data: 24 and 12 photos in
folders of six classes.

    LITCAM_TEST_DATA=<folder of photos> python solo_learn_dino.py <the checked-out repository>
"""

import shutil
import sys

import torch
from check import WORK, photos, trial
from omegaconf import OmegaConf
from torch.utils.data import DataLoader
from torchvision import transforms as tv
from torchvision.datasets import ImageFolder

sys.path.insert(0, sys.argv[1])
from solo.data.classification_dataloader import prepare_transforms
from solo.data.pretrain_dataloader import NCropAugmentation, dataset_with_index
from solo.methods import DINO

ADDED = 1  # target=
ROOT, CLASSES = WORK / "photos", 6
CROP = tv.Compose([tv.RandomResizedCrop(96), tv.RandomHorizontalFlip(), tv.ToTensor()])
NORMALIZE = prepare_transforms("imagenet100")[1].transforms[-1]
VAL = tv.Compose([tv.Resize(112), tv.CenterCrop(96), tv.ToTensor(), NORMALIZE])
CFG = {
    "name": "trial",
    "method": "dino",
    "backbone": {"name": "resnet18"},
    "max_epochs": 2,
    "data": {"dataset": "custom", "num_large_crops": 2, "num_small_crops": 0},
    "optimizer": {"name": "sgd", "batch_size": 6, "lr": 0.03, "classifier_lr": 0.03},
    "scheduler": {"name": "none"},
    "momentum": {"base_tau": 0.9, "final_tau": 1.0},
    "method_kwargs": {"proj_output_dim": 32, "proj_hidden_dim": 64, "num_prototypes": 64},
}
CFG["data"]["num_classes"] = CLASSES
CFG["optimizer"]["weight_decay"] = 1e-5
CFG["method_kwargs"] |= {"norm_last_layer": True, "clip_grad": 0, "freeze_last_layer": 0}
CFG["method_kwargs"] |= {"student_temperature": 0.1, "teacher_temperature": 0.07}
CFG["method_kwargs"] |= {"warmup_teacher_temperature": 0.04, "use_bn_in_head": False}
CFG["method_kwargs"] |= {"warmup_teacher_temperature_epochs": 1}


def write_photos():
    """A folder a class."""
    for split, count in {"train": 24, "val": 12}.items():
        for number, (path, kind) in enumerate(photos(count, split)):
            folder = ROOT / split / f"{('cat', 'dog')[kind]}-{number // 2 % 3}"
            folder.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, folder / f"{number}.jpg")


def make():
    """As main_pretrain.py."""
    train = dataset_with_index(ImageFolder)(ROOT / "train", NCropAugmentation(CROP, 2))
    loaders = {"train_dataloaders": DataLoader(train, 6, shuffle=True, drop_last=True)}
    loaders["val_dataloaders"] = DataLoader(ImageFolder(ROOT / "val", VAL), 6)
    return DINO(OmegaConf.create(CFG)), loaders


def hand(module, data, record):
    """The student's features through the online classifier."""
    dataset = data["val_dataloaders"].dataset
    image, label = dataset[record["index"]]
    logits = module.classifier(module.backbone(image[None]))
    facts = {
        "student": record["layer"] == "backbone.layer4",
        "label": (record["label"], record["label_name"]) == (label, dataset.classes[label]),
        "predicted": record["predicted"] == int(logits.argmax()),
    }
    mean, std = (torch.tensor(v)[:, None, None] for v in (NORMALIZE.mean, NORMALIZE.std))
    return logits[0, record["class"]], image * std + mean, facts


def arguments(module):
    """What has to be added."""
    return {"target": lambda output: module.classifier(output["feats"])}


write_photos()
seen = trial("solo_learn_dino", make, hand, arguments)
assert seen.pictures and seen.as_by_hand and seen.bitwise
print(f"lines added: {ADDED}")
