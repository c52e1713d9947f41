"""A small ViT that knows cats from dogs, made in minutes on one core: for methods.py.

    python benchmarks/maps/small_vit.py PETS WEIGHTS --out small_vit.pth

Four blocks of a ViT with a class token (192 wide, 3 heads, 14x14 tokens) on the features, at stride
16, of an EfficientNet-Lite0 that knows ImageNet and is not trained further: timm's hybrid ViT, the
family of `vit_*_r26_s32_*`. A ViT of pixels alone learns nothing worth explaining of 900 photos.
PETS holds `train/<class>` and `val/<class>`; WEIGHTS is a state dict of tf_efficientnet_lite0.
The features of each photo and its mirror image are computed once.
"""

import argparse
from functools import partial
from pathlib import Path

import timm
import torch
import torch.nn.functional as F
from timm.models.vision_transformer import VisionTransformer
from timm.models.vision_transformer_hybrid import HybridEmbed
from torch import Tensor, nn

from litcam.datamodules.pixels.data_config import data_config
from litcam.datamodules.pixels.decode import decode
from litcam.datamodules.pixels.transforms import eval_transform, normalize

STEM = "tf_efficientnet_lite0"


def make_vit(weights: Path | None = None) -> VisionTransformer:
    """The network; its stem with `weights`, or random."""
    stem = timm.create_model(STEM, features_only=True, out_indices=(3,))
    if weights is not None:
        # Nothing is missing; what follows stride 16 is left out.
        found, own = torch.load(weights, weights_only=True), stem.state_dict()
        stem.load_state_dict({key: value for key, value in found.items() if key in own})
    embed = partial(HybridEmbed, backbone=stem.eval())
    vit = VisionTransformer(
        patch_size=1, embed_dim=192, depth=4, num_heads=3, num_classes=2, embed_layer=embed
    )
    vit.pretrained_cfg = timm.get_pretrained_cfg(STEM).to_dict() | {"num_classes": 2}
    return vit


def trained() -> VisionTransformer:
    """The network of `small_vit.pth` in the current folder, for `small_vit:trained`."""
    vit = make_vit()
    vit.load_state_dict(torch.load("small_vit.pth", weights_only=True))
    return vit.eval()


def read_photos(folder: Path) -> tuple[Tensor, Tensor]:
    """Images `(n, 3, 224, 224)` as the network takes them, and their classes in sorted order."""
    config = data_config(STEM)
    transform = eval_transform(224, config)
    images, labels = [], []
    for label, kind in enumerate(sorted(at for at in folder.iterdir() if at.is_dir())):
        for file in sorted(kind.iterdir()):
            images.append(transform(decode(file.read_bytes(), file.name)))
            labels.append(label)
    return normalize(torch.stack(images), config), torch.tensor(labels)


@torch.no_grad()
def find_features(stem: nn.Module, images: Tensor) -> Tensor:
    """`(n, 112, 14, 14)`."""
    return torch.cat([stem(part)[-1] for part in images.split(32)])


def train(vit: VisionTransformer, folder: Path, epochs: int) -> None:
    """Trains the blocks, prints the accuracy on the validation photos."""
    stem, vit.patch_embed.backbone = vit.patch_embed.backbone, nn.Identity()
    images, labels = read_photos(folder / "train")
    views = torch.stack([find_features(stem, images), find_features(stem, images.flip(3))])
    tests, truth = read_photos(folder / "val")
    features = find_features(stem, tests)
    steps = epochs * -(-len(labels) // 32)
    optimiser = torch.optim.AdamW(vit.parameters(), lr=5e-4, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 5e-4, total_steps=steps)
    for epoch in range(epochs):
        vit.train()
        for rows in torch.randperm(len(labels)).split(32):
            chosen = views[torch.randint(2, (len(rows),)), rows]
            loss = F.cross_entropy(vit(chosen), labels[rows], label_smoothing=0.1)
            optimiser.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(vit.parameters(), 1.0)
            optimiser.step()
            schedule.step()
        vit.eval()
        with torch.no_grad():
            right = (vit(features).argmax(1) == truth).float().mean()
        print(f"epoch {epoch + 1}: loss {loss.item():.3f}, right {float(right):.3f}", flush=True)
    vit.patch_embed.backbone = stem


def main() -> None:
    """Trains it and writes its state dict."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("pets", type=Path)
    parser.add_argument("weights", type=Path)
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--out", type=Path, default=Path("small_vit.pth"))
    options = parser.parse_args()
    torch.manual_seed(0)
    vit = make_vit(options.weights)
    train(vit, options.pets, options.epochs)
    torch.save(vit.state_dict(), options.out)


if __name__ == "__main__":
    main()
