"""Networks, data and LightningModules that know nothing of litcam."""

import lightning.pytorch as pl
import timm
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

CALM = {
    "accelerator": "cpu",
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "log_every_n_steps": 1,
}
SIZE = 32


def SmallCNN(num_classes=3):  # noqa: N802
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(inplace=True),
        nn.Conv2d(8, 12, 3, stride=2, padding=1),
        nn.BatchNorm2d(12),
        nn.ReLU(inplace=True),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Dropout(0.3),
        nn.Linear(12, num_classes),
    )


class SmallTransformer(nn.Module):
    """PyTorch's own layers, whose inference fast path grad mode switches off."""

    def __init__(self, num_classes=3):
        super().__init__()
        self.patches = nn.Conv2d(3, 16, 8, stride=8)
        layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(16, num_classes)

    def forward(self, images):
        tokens = self.patches(images).flatten(2).transpose(1, 2)
        return self.head(self.encoder(tokens).mean(1))


def make_vit():
    sizes = {"img_size": SIZE, "patch_size": 8, "depth": 2, "embed_dim": 24, "num_heads": 2}
    return timm.create_model("vit_tiny_patch16_224", num_classes=3, drop_rate=0.1, **sizes)


def make_swin():
    sizes = {"img_size": SIZE, "patch_size": 2, "window_size": 2, "embed_dim": 16}
    depths = {"depths": (1, 1, 1), "num_heads": (1, 2, 2)}
    return timm.create_model("swin_tiny_patch4_window7_224", num_classes=3, **sizes, **depths)


NETWORKS = {
    "cnn": SmallCNN,
    "vit": make_vit,
    "swin": make_swin,
    "transformer": SmallTransformer,
}


def make_images(num, size=SIZE, num_classes=3):
    """Normalised images with a bright square whose place tells the class, and their labels."""
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(num, 3, size, size, generator=generator) * 0.3
    labels = torch.arange(num) % num_classes
    for image, label in zip(images, labels, strict=True):
        start = int(label) * size // num_classes
        image[:, start : start + size // num_classes, : size // 2] += 2
    return images, labels


class Pictures(TensorDataset):
    """With class names, as torchvision's folders have them."""

    classes = ("ant", "bee", "cat")

    def __init__(self, num=10):
        super().__init__(*make_images(num))


class Named(Dataset):
    """Gives dicts, under whatever names."""

    def __init__(self, num=10, image="image", label="label", index=""):
        self.images, self.labels = make_images(num)
        self.names = image, label, index

    def __len__(self):
        return len(self.images)

    def __getitem__(self, place):
        image, label, index = self.names
        told = {index: torch.tensor(place)} if index else {}
        return {image: self.images[place], label: self.labels[place], **told}


class Stranger(pl.LightningModule):
    """Holds its network in `net` and calls it directly."""

    def __init__(self, net=None, num_images=10, batch_size=4):
        super().__init__()
        self.net = net if net is not None else SmallCNN()
        self.num_images, self.batch_size = num_images, batch_size

    def classify(self, batch):
        images, labels = batch
        return self.net(images), labels

    def training_step(self, batch, batch_idx):
        return F.cross_entropy(*self.classify(batch))

    def validation_step(self, batch, batch_idx, dataloader_idx=0):
        logits, labels = self.classify(batch)
        self.log("val/loss", F.cross_entropy(logits, labels), batch_size=len(labels))
        accuracy = (logits.argmax(1) == labels).float().mean()
        self.log("val/acc", accuracy, batch_size=len(labels))

    def test_step(self, batch, batch_idx):
        self.classify(batch)

    def configure_optimizers(self):
        trained = [parameter for parameter in self.parameters() if parameter.requires_grad]
        return torch.optim.AdamW(trained, lr=0.01)

    def loader(self, **kwargs):
        return DataLoader(Pictures(self.num_images), self.batch_size, **kwargs)

    def train_dataloader(self):
        return DataLoader(Pictures(12), self.batch_size, shuffle=True)

    def val_dataloader(self):
        return self.loader()

    def test_dataloader(self):
        return self.loader()


def make_trainer(*callbacks, **kwargs):
    return pl.Trainer(callbacks=list(callbacks), **{**CALM, "max_epochs": 2, **kwargs})


def read_lines(folder):
    import json

    file = folder / "images.jsonl"
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def count_hooks(module):
    kinds = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return sum(len(getattr(part, kind)) for part in module.modules() for kind in kinds)
