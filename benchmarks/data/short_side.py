"""What `litcam convert --short_side 256` changes for a network trained on whole photos.

    litcam convert DIR WHOLE && litcam convert DIR SMALL --short_side 256
    python benchmarks/data/short_side.py WHOLE SMALL  # --weights FILE without a network

Photos of ImageNet's classes (folders named n01440764 and so on), a timm network, top-1 in per cent:
on the crop of evaluation, and on the same random training crops (8 to 100 % of the area) of both,
several of each photo. Training crops are where small photos lose: a crop of 8 % is enlarged. The
difference is given with its standard error over photos. It says nothing of a network *trained* on
the small ones.
"""

import argparse
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import timm
import torch
from lightning.pytorch import seed_everything
from timm.data import ImageNetInfo
from torch import Tensor

from litcam.datamodules import ImageNetDataModule


def open_data(root: Path, model: str) -> ImageNetDataModule:
    seed_everything(0, verbose=False)
    data = ImageNetDataModule(root, 50, backbone=model)
    data.setup("fit")
    return data


def right(network: torch.nn.Module, data: ImageNetDataModule, batches: Any) -> dict[int, float]:
    """Share of a photo's crops that are classified rightly, by the photo's place."""
    labels = ImageNetInfo().label_names()
    classes = torch.tensor([labels.index(name) for name in data.classes])
    hits: dict[int, list[float]] = {}
    with torch.inference_mode():
        for batch in batches:
            batch = data.on_after_batch_transfer(batch, 0)
            found: Tensor = network(batch["image"]).argmax(1) == classes[batch["label"]]
            for index, hit in zip(batch["index"].tolist(), found.tolist(), strict=True):
                hits.setdefault(index, []).append(float(hit))
    return {index: sum(of) / len(of) for index, of in hits.items()}


def training_crops(data: ImageNetDataModule, epochs: int) -> Iterator[Any]:
    loader: Any = data.train_dataloader()
    for epoch in range(epochs):
        loader.set_epoch(epoch)
        yield from loader


def main() -> None:
    """Prints the table as Markdown."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("whole", type=Path)
    parser.add_argument("small", type=Path)
    parser.add_argument("--model", default="tf_efficientnet_lite0.in1k")
    parser.add_argument("--weights", default="", help="a file for MODEL, instead of the network's")
    parser.add_argument("--crops", type=int, default=5, help="random crops of each photo")
    options = parser.parse_args()
    logging.disable(logging.WARNING)
    overlay = {"pretrained_cfg_overlay": {"file": options.weights}} if options.weights else {}
    network = timm.create_model(options.model, pretrained=True, **overlay).eval()
    data = [open_data(root, options.model) for root in (options.whole, options.small)]
    print("| crops | photos | whole | small | small - whole |\n|---|---|---|---|---|")
    for name in ("evaluation", "training"):
        whole, small = (
            right(
                network,
                at,
                at.val_dataloader() if name == "evaluation" else training_crops(at, options.crops),
            )
            for at in data
        )
        both = sorted(whole.keys() & small.keys())
        pairs = 100 * torch.tensor([[whole[at], small[at]] for at in both])
        change = pairs[:, 1] - pairs[:, 0]
        error = change.std() / len(both) ** 0.5
        means = " | ".join(f"{value:.1f}" for value in pairs.mean(0).tolist())
        print(f"| {name} | {len(both)} | {means} | {change.mean():+.1f} ± {error:.1f} |")


if __name__ == "__main__":
    main()
