"""Which decoder teaches a CNN more at equal compute: a UNet over its stages, or a transformer.

    python benchmarks/training/decoders.py CIFAR10 [--seeds 3] [--epochs 8]

CIFAR-10 as folders. A small ResNet is pretrained without labels once with each decoder, for as many
floating-point operations (those of ``--epochs`` with the transformer), and then learns 100 labels a
class: a linear probe on its features, and fine-tuning of all of it. Accuracy in per cent on the
validation images, beside the same network from random weights; mean over seeds ± half of the 95 %
interval (Student's t), and the paired difference of the decoders.
"""

import argparse
import copy
import time
from collections.abc import Iterator
from pathlib import Path

import timm
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

from litcam.lightning_modules import MAE
from litcam.lightning_modules.optim import warmup_cosine

BACKBONE = "resnet10t"
SIZES = {"channels": [24, 48, 96, 192], "stem_width": 16, "output_stride": 8, "avg_down": False}
DECODERS = {
    "transformer": {"decoder": "transformer", "decoder_dim": 128, "decoder_depth": 2},
    "unet": {"decoder": "unet", "decoder_dim": 32},
}
LABELS, LABEL_EPOCHS = 100, 20  # a class
STUDENT = {2: 12.71, 3: 4.303, 4: 3.182, 5: 2.776}
AUGMENT = v2.Compose([v2.RandomCrop(32, padding=4), v2.RandomHorizontalFlip()])


def read(folder: Path, per_class: int) -> tuple[Tensor, Tensor]:
    """Normalised images and labels, class by class in turns, so that a prefix is balanced."""
    data = ImageFolder(folder)
    by_class: dict[int, list[int]] = {}
    for at, label in enumerate(data.targets):
        by_class.setdefault(label, []).append(at)
    order = [at for rank in zip(*by_class.values(), strict=True) for at in rank]
    rows = [data[at] for at in order[: per_class * len(by_class)]]
    to_tensor = v2.Compose([v2.ToImage(), v2.ToDtype(torch.float32, scale=True)])
    images = torch.stack([to_tensor(image) for image, _ in rows])
    return (images - 0.5) / 0.25, torch.tensor([label for _, label in rows])


def batches(count: int, size: int, steps: int) -> Iterator[Tensor]:
    done = 0
    while done < steps:
        for ids in torch.randperm(count)[: count // size * size].split(size)[: steps - done]:
            done += 1
            yield ids


def optimise(module: nn.Module, steps: int, lr: float, losses: Iterator[Tensor]) -> None:
    optimizer = torch.optim.AdamW(module.parameters(), lr, betas=(0.9, 0.95), weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, warmup_cosine(steps // 10, steps))
    module.train()
    for loss in losses:
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()


def augmented(images: Tensor) -> Tensor:
    return torch.stack([AUGMENT(image) for image in images])


def pretrain(images: Tensor, decoder: str, epochs: int) -> nn.Module:
    """The encoder after as much compute as these epochs take with the transformer."""
    maes = {
        name: MAE(BACKBONE, 0.6, image_size=32, backbone_args=SIZES, norm_pix_loss=True, **options)
        for name, options in DECODERS.items()
    }
    mae, other = maes[decoder], maes["transformer"]
    steps = epochs * (len(images) // 128)
    steps = round(steps * (1 - mae.decoder_share) / (1 - other.decoder_share))
    before = time.process_time()
    losses = (mae(augmented(images[ids])) for ids in batches(len(images), 128, steps))
    optimise(mae, steps, 2e-3, losses)
    print(
        f"{decoder}: {mae.decoder.describe()}, {mae.decoder_share:.0%} of the compute; {steps} "
        f"steps, {time.process_time() - before:.0f} s of CPU",
        flush=True,
    )
    return mae.encoder


@torch.no_grad()
def encode(encoder: nn.Module, images: Tensor) -> Tensor:
    encoder.eval()
    return torch.cat([encoder(batch) for batch in images.split(200)])


def probe(encoder: nn.Module, train: tuple[Tensor, Tensor], val: tuple[Tensor, Tensor]) -> float:
    """Accuracy of a logistic regression on standardised features."""
    features = encode(encoder, train[0])
    std, mean = torch.std_mean(features, dim=0)
    seen, unseen = ((f - mean) / (std + 1e-6) for f in (features, encode(encoder, val[0])))
    layer = nn.Linear(features.shape[1], 10)
    optimizer = torch.optim.LBFGS(layer.parameters(), max_iter=200, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        penalty = 1e-2 * layer.weight.square().sum()
        loss = F.cross_entropy(layer(seen), train[1]) + penalty
        loss.backward()
        return loss

    optimizer.step(closure)  # type: ignore[arg-type]
    return (layer(unseen).argmax(1) == val[1]).float().mean().item() * 100


def finetune(encoder: nn.Module, train: tuple[Tensor, Tensor], val: tuple[Tensor, Tensor]) -> float:
    network = copy.deepcopy(encoder)
    network.reset_classifier(10)  # type: ignore[operator]
    network.requires_grad_(True)
    images, labels = train
    steps = LABEL_EPOCHS * (len(images) // 50)
    losses = (
        F.cross_entropy(network(augmented(images[ids])), labels[ids])
        for ids in batches(len(images), 50, steps)
    )
    optimise(network, steps, 1e-3, losses)
    return (encode(network, val[0]).argmax(1) == val[1]).float().mean().item() * 100


def told(values: list[float]) -> str:
    found = torch.tensor(values, dtype=torch.float64)
    half = STUDENT[len(values)] * found.std().item() / len(values) ** 0.5
    return f"{found.mean().item():.1f} ± {half:.1f}"


def main() -> None:
    """Prints the table as Markdown."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("root", type=Path)
    parser.add_argument("--seeds", type=int, default=3, choices=list(STUDENT))
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--images", type=int, default=500, help="unlabelled ones a class")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    images, labels = read(asked.root / "train", asked.images)
    train = images[: 10 * LABELS], labels[: 10 * LABELS]
    val = read(asked.root / "val", 200)
    found: dict[str, dict[str, list[float]]] = {}
    for seed in range(asked.seeds):
        for start in ("random weights", *DECODERS):
            torch.manual_seed(seed)
            if start in DECODERS:
                encoder = pretrain(images, start, asked.epochs)
            else:
                encoder = timm.create_model(BACKBONE, num_classes=0, **SIZES)
            row = {"linear probe": probe(encoder, train, val)}
            row["fine-tuning"] = finetune(encoder, train, val)
            print(f"seed {seed}, {start}: {row}", flush=True)
            for name, value in row.items():
                found.setdefault(start, {}).setdefault(name, []).append(value)
    print("| pretrained with | linear probe | fine-tuning |\n|---|---|---|")
    for start, row in found.items():
        print(f"| {start} | " + " | ".join(told(values) for values in row.values()) + " |")
    pairs = zip(found["unet"].values(), found["transformer"].values(), strict=True)
    gains = [[a - b for a, b in zip(*pair, strict=True)] for pair in pairs]
    print("| UNet − transformer | " + " | ".join(map(told, gains)) + " |")


if __name__ == "__main__":
    main()
