"""Contrastive pretraining with an online classifier: SimCLR of lightly, with GradCAM.

Repository: https://github.com/lightly-ai/lightly at e8d317fc5a87 (MIT).
Used as they are: SimCLR of benchmarks/imagenet/resnet50 (ResNet-50), LightlyDataset and transforms,
put together as main.py does, with its two validation loaders. Changed: 96 instead of 224 pixels; no
workers; and under Lightning 2.6 the kNN classifier, a module in the module, fails in its own
`log_dict`, so that this logs nothing. Data: 24 and 12 photos in folders of six classes.

    LITCAM_TEST_DATA=<folder of photos> python lightly_simclr.py <the checked-out repository>
"""

import shutil
import sys

import pytorch_lightning
import torch
from check import WORK, photos, trial

sys.path.insert(0, sys.argv[1])
sys.path.insert(0, f"{sys.argv[1]}/benchmarks/imagenet/resnet50")
from lightly.data import LightlyDataset
from lightly.transforms import SimCLRTransform
from lightly.transforms.utils import IMAGENET_NORMALIZE
from simclr import SimCLR
from torch.utils.data import DataLoader
from torchvision.transforms import v2

ADDED = 1  # target=
ROOT, CLASSES = WORK / "photos", 6
VAL = [v2.Resize(112), v2.CenterCrop(96), v2.ToTensor(), v2.Normalize(**IMAGENET_NORMALIZE)]


def write_photos():
    """Its top-5 accuracy wants more than five classes."""
    for split, count in {"train": 24, "val": 12}.items():
        for number, (path, kind) in enumerate(photos(count, split)):
            folder = ROOT / split / f"{('cat', 'dog')[kind]}-{number // 2 % 3}"
            folder.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, folder / f"{number}.jpg")


def load(split, transform, **settings):
    """A loader of one split."""
    dataset = LightlyDataset(str(ROOT / split), transform=transform)
    return DataLoader(dataset, batch_size=6, **settings)


def make():
    """As main.py: of the two validation loaders the first has the kNN's training images."""
    module = SimCLR(batch_size_per_device=6, num_classes=CLASSES, knn_k=3, knn_t=0.1)
    # A place that it never writes, of torch.empty, and that is to be compared.
    module.criterion.memory_bank.bank_ptr.zero_()
    module.knn_classifier.log_dict = lambda *args, **kwargs: None
    train = load("train", SimCLRTransform(input_size=96), shuffle=True, drop_last=True)
    loaders = [load(split, v2.Compose(VAL)) for split in ("train", "val")]
    return module, {"train_dataloaders": train, "val_dataloaders": loaders}


def hand(module, data, record):
    """The backbone's features through the online classifier."""
    loader = data["val_dataloaders"][int(record["key"][-1])]
    image, label, _ = loader.dataset[record["index"]]
    features = module.backbone(image[None]).flatten(1)
    logits = module.online_classifier.classification_head(features)
    name = loader.dataset.dataset.classes[label]
    facts = {
        "label": (record["label"], record["label_name"]) == (label, name),
        "predicted": record["predicted"] == int(logits.argmax()),
    }
    mean, std = (torch.tensor(IMAGENET_NORMALIZE[k])[:, None, None] for k in ("mean", "std"))
    return logits[0, record["class"]], image * std + mean, facts


def arguments(module):
    """What has to be added."""
    head = module.online_classifier.classification_head
    return {"target": lambda features: head(features.flatten(1))}


write_photos()
# Its schedule warms up for 10 epochs and refuses fewer.
ten = {"max_epochs": 10, "limit_train_batches": 1, "check_val_every_n_epoch": 5}
seen = trial("lightly_simclr", make, hand, arguments, pl=pytorch_lightning, **ten)
assert seen.pictures and seen.as_by_hand and seen.bitwise
print(f"lines added: {ADDED}")
