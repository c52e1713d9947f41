"""Networks with several feature maps beside each other, or several parts in one."""

import pytest
import timm
import torch
from timm.models.vision_transformer import ParallelThingsBlock
from torch import nn

from litcam.explain import CAM, find_target_layer

SMALL_VIT = {"img_size": 64, "patch_size": 16, "embed_dim": 32, "depth": 2, "num_heads": 2}
SMALL_SWIN = {
    "img_size": 64, "window_size": 4, "embed_dim": 24, "depths": (2, 2), "num_heads": (2, 4)
}  # fmt: skip


class Streams(nn.Module):
    """Two convolutions of the same images that meet in the head only."""

    def __init__(self, joined):
        super().__init__()
        self.stem, self.joined = nn.Conv2d(3, 8, 3), joined
        self.left, self.right = nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 1)
        self.head = nn.Linear(16, 5)

    def forward(self, x):
        x = self.stem(x)
        right = self.right(x if self.joined else x.detach())
        return self.head(torch.cat([self.left(x), right], 1).mean((2, 3)))


def test_maps_side_by_side_are_left_for_where_they_part():
    assert find_target_layer(Streams(joined=True), torch.randn(2, 3, 16, 16)).name == "stem"


def test_maps_side_by_side_that_never_met_are_refused():
    words = r"side by side, and none shows it all: left \(14, 14\), right \(14, 14\); pass one"
    with pytest.raises(ValueError, match=words):
        find_target_layer(Streams(joined=False), torch.randn(2, 3, 16, 16))
    network = Streams(joined=False)
    with CAM(network, target_layer="left") as cam, torch.no_grad():
        network(torch.randn(2, 3, 16, 16))
    assert cam([0, 0]).shape == (2, 14, 14)


def test_attention_side_by_side_in_a_block():
    options = {**SMALL_VIT, "block_fn": ParallelThingsBlock}
    network = timm.create_model("vit_base_patch16_224", num_classes=5, **options)
    # Two attentions read the patches, each after a norm of its own: what both read is before.
    assert find_target_layer(network, torch.randn(2, 3, 64, 64)).name == "blocks.0"


def test_windows_are_no_grid():
    network = timm.create_model("swin_base_patch4_window7_224", num_classes=5, **SMALL_SWIN).eval()
    with CAM(network, target_layer="layers.0.blocks.0.attn") as cam, torch.no_grad():
        network(torch.randn(2, 3, 64, 64))
    with pytest.raises(RuntimeError, match=r"\(32, 16, 24\): not one entry for each of 2 images"):
        cam([0, 0])
