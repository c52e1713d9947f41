"""Loss and gradients of MAE and SimMIM beside the authors' own code, in float64.

python benchmarks/training/authors.py --mae DIR --simmim DIR [--small]

DIR is a checkout of facebookresearch/mae or microsoft/SimMIM. Both are run from their own sources,
with what today's timm and NumPy no longer have put back.
"""

import argparse
import sys
from functools import partial
from typing import Any
from unittest.mock import patch

import numpy as np
import timm.layers
import torch
from timm.models import vision_transformer
from torch import Tensor, nn

from litcam.lightning_modules import MAE, optim
from litcam.lightning_modules.masked.masking import choose_cells, enlarge, visible_map

SWIN = "swin_base_patch4_window7_224"
Pairs = list[tuple[str, str, Any]]


class OldBlock(vision_transformer.Block):
    """timm 0.3's block."""

    def __init__(self, dim: int, heads: int, ratio: float, *, qk_scale: None, **options: Any):
        super().__init__(dim, heads, ratio, **options)


def compare_mae(folder: str, *, small: bool) -> None:
    """Put the weights of ours into theirs, and hide the same patches."""
    sys.path.insert(0, folder)
    with patch.object(vision_transformer, "Block", OldBlock):
        from models_mae import MaskedAutoencoderViT
    size: dict[str, Any] = {"patch_size": 16, "embed_dim": 768, "depth": 12, "num_heads": 12}
    if small:
        size |= {"img_size": 64, "patch_size": 8, "embed_dim": 96, "depth": 3, "num_heads": 3}
    ours = MAE(backbone_args=size, norm_pix_loss=True, decoder_dim=512, decoder_depth=8).double()
    norm = partial(nn.LayerNorm, eps=1e-6)
    with patch.object(np, "float", float, create=True):
        theirs = MaskedAutoencoderViT(**size, norm_layer=norm, norm_pix_loss=True).double()
    pairs: Pairs = [(f"encoder.{name}", name, _same) for name in ours.encoder.state_dict()]
    for name in ours.decoder.state_dict():
        other = name if name == "mask_token" else f"decoder_{name.replace('head.', 'pred.')}"
        pairs.append((f"decoder.{name}", other, _same))
    images, noise = draw(ours)
    copy(ours, theirs, pairs)
    with patch.object(torch, "rand", lambda *args, **kwargs: noise):
        loss = theirs(images)[0]
    report("MAE", ours, theirs, (ours(images, noise), loss), pairs)


def compare_simmim(folder: str, *, small: bool) -> None:
    """The same for a Swin; PixelShuffle has another order of channels than ours."""
    sys.path.insert(0, folder)
    sys.modules["timm.models.layers"] = timm.layers
    from models.simmim import SimMIM, SwinTransformerForSimMIM

    size: dict[str, Any] = {"embed_dim": 128, "depths": (2, 2, 18, 2), "num_heads": (4, 8, 16, 32)}
    if small:
        size |= {"embed_dim": 32, "depths": (2, 2, 2, 2), "num_heads": (2, 2, 4, 4)}
    size["window_size"] = 6
    ours = MAE(SWIN, 0.6, image_size=192, backbone_args=size, loss="l1").double()
    swin = SwinTransformerForSimMIM(img_size=192, num_classes=0, drop_path_rate=0.0, **size)
    theirs = SimMIM(swin, 32).double()
    order = torch.arange(32 * 32 * 3).view(-1, 3).T.flatten()
    pairs: Pairs = [
        ("hiding.mask_token", "encoder.mask_token", lambda w: w[None, None]),
        ("decoder.head.weight", "decoder.0.weight", lambda w: w[order, :, None, None]),
        ("decoder.head.bias", "decoder.0.bias", lambda w: w[order]),
    ]
    for name in ours.encoder.state_dict():
        parts = name.split(".")
        if "downsample" in name:  # theirs is at the end of the stage before
            parts[1] = str(int(parts[1]) - 1)
        pairs.append((f"encoder.{name}", f"encoder.{'.'.join(parts)}", _same))
    images, noise = draw(ours)
    copy(ours, theirs, pairs)
    visible = visible_map(choose_cells(noise, 0.6)[0], ours.grid)
    losses = ours(images, noise), theirs(images, (~enlarge(visible, (48, 48))).long())
    report("SimMIM", ours, theirs, losses, pairs)


def _same(weight: Tensor) -> Tensor:
    return weight


def draw(ours: MAE) -> tuple[Tensor, Tensor]:
    """Two images, and noise for their masks."""
    images = torch.randn(2, 3, ours.image_size, ours.image_size, dtype=torch.float64)
    return images, torch.rand(2, ours.num_cells)


def copy(ours: MAE, theirs: nn.Module, pairs: Pairs) -> None:
    """Give theirs the weights of ours; every one of theirs that is trained gets one."""
    state = ours.state_dict()
    theirs.load_state_dict({to: change(state[of]) for of, to, change in pairs}, strict=False)
    trained = {name for name, weight in theirs.named_parameters() if weight.requires_grad}
    left = trained - {to for _, to, _ in pairs}
    if left:
        raise SystemExit(f"not compared: {sorted(left)}")


def report(
    name: str, ours: MAE, theirs: nn.Module, losses: tuple[Tensor, Tensor], pairs: Pairs
) -> None:
    """Print the largest relative difference of loss and gradients, and what is decayed."""
    for each in losses:
        each.backward()
    mine, other = dict(ours.named_parameters()), dict(theirs.named_parameters())
    gradients = [
        (of, change(mine[of].grad), other[to].grad)
        for of, to, change in pairs
        if of in mine and mine[of].requires_grad
    ]
    worst = max((distance(one, two), of) for of, one, two in gradients)
    groups = optim.parameter_groups(ours, 1.0)
    decayed = sum(w.numel() for g in groups if g["weight_decay"] for w in g["params"])
    loss = distance(*losses)
    print(f"{name}: loss {loss:.1e}, gradient {worst[0]:.1e} ({worst[1]}), {decayed:,} decayed")


def distance(one: Tensor, two: Tensor) -> float:
    """Of norms."""
    return ((one - two).norm() / two.norm()).item()


def main() -> None:
    """Compare with what is there."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--mae", help="checkout of facebookresearch/mae")
    parser.add_argument("--simmim", help="checkout of microsoft/SimMIM")
    parser.add_argument("--small", action="store_true", help="small networks, in seconds")
    args = parser.parse_args()
    torch.manual_seed(0)
    if args.mae:
        compare_mae(args.mae, small=args.small)
    if args.simmim:
        compare_simmim(args.simmim, small=args.small)


if __name__ == "__main__":
    main()
