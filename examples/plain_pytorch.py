"""Maps and their metrics in a plain PyTorch loop: no Lightning, no callback.

    python examples/plain_pytorch.py

Trains a small network on generated images for half a minute, then evaluates, explains and measures
in the same forward, each image for its predicted and its true class. Writes `plain_pytorch.jpg`.
"""

import timm
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn

from litcam.datamodules import SyntheticDataModule
from litcam.explain import CAM, EnergyInside, PointingGame, scale_maps
from litcam.explain.figures import enlarge, overlay, sheet


def train(data: SyntheticDataModule, num_epochs: int) -> nn.Module:
    """A small ResNet that names the pattern of an object."""
    options = {"channels": (24, 48, 96, 192), "stem_width": 16, "output_stride": 8}
    network = timm.create_model("resnet10t", num_classes=8, avg_down=False, **options)
    optimizer = torch.optim.AdamW(network.parameters(), 2e-3)
    for _ in range(num_epochs):
        for batch in data.train_dataloader():
            batch = data.on_after_batch_transfer(batch, 0)
            loss = F.cross_entropy(network(batch["image"]), batch["label"])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return network.eval()


def evaluate(network: nn.Module, data: SyntheticDataModule, out: str) -> None:
    """Prints how right the network is and where its maps lie; draws an image of every batch."""
    right, rows, titles = [], [], []
    pointing, energy = PointingGame(), EnergyInside()
    mean, std = (torch.tensor(value).view(3, 1, 1) for value in (data.mean, data.std))
    with torch.no_grad(), CAM(network) as cam:
        for batch in data.val_dataloader():
            batch = data.on_after_batch_transfer(batch, 0)
            predicted = network(batch["image"]).argmax(1)
            right.append(predicted == batch["label"])
            # Two classes an image out of the forward that has just happened: (batch, 2, h, w).
            classes = torch.stack([predicted, batch["label"]], 1)
            maps = cam(classes)
            for metric in (pointing, energy):
                metric.update(maps[:, 1], batch["mask"])
            heatmaps = scale_maps(maps[0], (224, 224)).numpy()
            pixels = ((batch["image"][0] * std + mean).clamp(0, 1) * 255).byte()
            photo = enlarge(pixels.permute(1, 2, 0).numpy())
            rows.append([photo, *(overlay(photo, heat) for heat in heatmaps)])
            names = [data.class_names[int(number)] for number in classes[0]]
            titles.append([f"true {names[1]}", f"predicted {names[0]}", f"map of {names[1]}"])
    Image.fromarray(sheet(rows, titles)).save(out, quality=92)
    accuracy = torch.cat(right).float().mean()
    print(f"{accuracy:.0%} right; {cam.target_layer.name} explained in {out}")
    for name, metric in (("pointing game", pointing), ("energy inside", energy)):
        # `chance` is what a map without any preference would get on these objects.
        print(f"{name} {metric.compute():.3f}, by chance {metric.chance:.3f}")


def main(num_train: int = 2000, num_epochs: int = 4, out: str = "plain_pytorch.jpg") -> None:
    """Trains and evaluates."""
    torch.manual_seed(0)
    data = SyntheticDataModule(num_train, num_val=160, batch_size=32)
    data.setup()
    evaluate(train(data, num_epochs), data, out)


if __name__ == "__main__":
    main()
