"""Somebody else's project: `GradCAM()` beside a LightningModule that knows nothing of litcam.

    python examples/your_lightning_module.py IMAGE_FOLDER

IMAGE_FOLDER holds `train/<class>` and `val/<class>`. The only line about litcam is the callback.
Afterwards `litcam report lightning_logs/version_0` puts the run on one page.
"""

import sys
from pathlib import Path

import lightning.pytorch as pl
import torch
import torch.nn.functional as F
import torchvision
from lightning.pytorch.loggers import CSVLogger
from torch.utils.data import DataLoader
from torchvision.transforms import v2

from litcam.callbacks import GradCAM


class YourModule(pl.LightningModule):
    """A torchvision ResNet, trained as in any tutorial."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.network = torchvision.models.resnet18(num_classes=num_classes)

    def training_step(self, batch: list[torch.Tensor], batch_idx: int) -> torch.Tensor:
        """Cross-entropy."""
        images, labels = batch
        return F.cross_entropy(self.network(images), labels)

    def validation_step(self, batch: list[torch.Tensor], batch_idx: int) -> None:
        """Accuracy."""
        images, labels = batch
        right = (self.network(images).argmax(1) == labels).float().mean()
        self.log("val/acc", right, prog_bar=True, batch_size=len(labels))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """AdamW."""
        return torch.optim.AdamW(self.parameters(), 1e-3)


def main(folder: Path, max_epochs: int = 2, image_size: int = 128) -> None:
    """Trains on `folder`; heatmaps appear in `lightning_logs/version_0/gradcam` at every epoch."""
    transform = v2.Compose(
        [
            v2.ToImage(),
            v2.Resize((image_size, image_size)),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        ]
    )
    train, val = (
        torchvision.datasets.ImageFolder(str(folder / split), transform)
        for split in ("train", "val")
    )
    trainer = pl.Trainer(max_epochs=max_epochs, logger=CSVLogger("."), callbacks=[GradCAM()])
    trainer.fit(
        YourModule(len(train.classes)),
        DataLoader(train, 32, shuffle=True, drop_last=True),
        DataLoader(val, 32),
    )


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(Path(sys.argv[1]))
