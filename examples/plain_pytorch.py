"""Maps in a plain PyTorch loop: no Lightning, no callback.

    python examples/plain_pytorch.py

Trains a small network on generated images for half a minute, then evaluates and explains in the
same forward, each image for its predicted and its true class, and writes `plain_pytorch.jpg`.
"""

import timm
import torch
import torch.nn.functional as F
from PIL import Image

from litcam.datamodules import SyntheticDataModule
from litcam.explain import CAM
from litcam.explain.figures import enlarge, overlay, sheet


def main(num_train: int = 2000, num_epochs: int = 4, out: str = "plain_pytorch.jpg") -> float:
    """Trains, evaluates and draws; returns the accuracy."""
    torch.manual_seed(0)
    data = SyntheticDataModule(num_train, num_val=160, batch_size=32)
    data.setup()
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

    network.eval()
    right, rows, titles = 0, [], []
    mean, std = (torch.tensor(value).view(3, 1, 1) for value in (data.mean, data.std))
    with torch.no_grad(), CAM(network) as cam:
        for batch in data.val_dataloader():
            batch = data.on_after_batch_transfer(batch, 0)
            predicted = network(batch["image"]).argmax(1)
            right += int((predicted == batch["label"]).sum())
            # Two classes an image out of the forward that has just happened.
            classes = torch.stack([predicted, batch["label"]], 1)
            heatmaps = cam.heatmaps(classes, (224, 224)).numpy()
            pixels = ((batch["image"] * std + mean).clamp(0, 1) * 255).byte()
            photo = enlarge(pixels[0].permute(1, 2, 0).numpy())
            rows.append([photo, *(overlay(photo, heat) for heat in heatmaps[0])])
            names = [data.class_names[int(number)] for number in classes[0]]
            titles.append([f"true {names[1]}", f"predicted {names[0]}", f"map of {names[1]}"])
    accuracy = right / 160
    Image.fromarray(sheet(rows, titles)).save(out, quality=92)
    print(f"{accuracy:.0%} right; {cam.target_layer.name} explained in {out}")
    return accuracy


if __name__ == "__main__":
    main()
