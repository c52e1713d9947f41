"""Hugging Face's image classifiers, called as `model(pixel_values=images).logits`."""

import pytest
import torch
from torch import nn

from litcam.explain import CAM, find_target_layer

transformers = pytest.importorskip("transformers")

SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
VIT = {**SMALL, "intermediate_size": 64, "image_size": 64, "patch_size": 16}
SWIN = {"image_size": 64, "embed_dim": 16, "depths": [1, 1, 2], "num_heads": [1, 2, 2]}
SWIN = {**SWIN, "window_size": 4}
CNN = {"hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 1, 2]}
RESNET = {**CNN, "embedding_size": 8}
HEADS = {"num_attention_heads": [1, 1, 2, 2]}
HIERA = {"embed_dim": 16, "image_size": [64, 64], "patch_stride": [2, 2], "depths": [1, 1, 1, 2]}
HIERA = {**HIERA, "num_heads": [1, 2, 2, 2]}
BIT = {"hidden_sizes": [16, 16, 32, 32], "embedding_size": 16, "num_groups": 8}

# What transformers calls it, what is made of it, the layer read in its source, the grid at 64.
TABLE = [
    ("ViT", VIT, "vit.layers.1.layernorm_before", (4, 4)),
    ("DeiT", VIT, "deit.layers.1.layernorm_before", (4, 4)),
    ("Beit", VIT, "beit.layers.1", (4, 4)),
    ("Dinov2", VIT, "dinov2.layernorm", (4, 4)),
    ("Swin", SWIN, "swin.layernorm", (4, 4)),
    ("Swinv2", SWIN, "swinv2.layernorm", (4, 4)),
    ("ConvNext", CNN, "convnext.encoder.stages.3", (2, 2)),
    ("ConvNextV2", CNN, "convnextv2.encoder.stages.3", (2, 2)),
    ("ResNet", RESNET, "resnet.encoder.stages.3", (2, 2)),
    ("RegNet", {**RESNET, "groups_width": 8}, "regnet.encoder.stages.3", (2, 2)),
    ("MobileNetV2", {"depth_multiplier": 0.35}, "mobilenet_v2.conv_1x1", (2, 2)),
    ("Segformer", {**CNN, **HEADS}, "segformer.stages.3", (2, 2)),
    ("PoolFormer", CNN, "norm", (2, 2)),
    ("Bit", {**CNN, **BIT}, "bit.norm", (2, 2)),
    ("Hiera", HIERA, "hiera.encoder.stages.3", (4, 4)),  # gives a tuple
]


def make(name, sizes):
    torch.manual_seed(0)
    config = getattr(transformers, f"{name}Config")(**sizes, num_labels=5)
    return getattr(transformers, f"{name}ForImageClassification")(config).eval()


@pytest.mark.parametrize(("name", "sizes", "layer", "grid"), TABLE, ids=[row[0] for row in TABLE])
def test_the_layer_and_its_map(name, sizes, layer, grid):
    """By keyword; the answer is the plain one to the bit, the map that of autograd by hand."""
    network, images = make(name, sizes), torch.randn(2, 3, 64, 64)
    found = find_target_layer(_ByPosition(network), images)
    assert (found.name.removeprefix("network."), found.grid) == (layer, grid)
    with torch.no_grad():
        plain = network(pixel_values=images).logits
        with CAM(network) as cam:
            logits = network(pixel_values=images).logits
    assert torch.equal(plain, logits)
    kept = {}

    def keep(module, args, output):
        first, *rest = output if isinstance(output, tuple) else (output,)
        kept["leaf"] = first.detach().requires_grad_()
        return (kept["leaf"].clone(), *rest) if rest else kept["leaf"].clone()

    handle = network.get_submodule(layer).register_forward_hook(keep)
    scores = network(pixel_values=images).logits
    handle.remove()
    (gradient,) = torch.autograd.grad(scores[:, 3].sum(), kept["leaf"])
    features, gradient = (
        t if t.ndim == 4 else t[:, -grid[0] * grid[1] :].mT.unflatten(2, grid)
        for t in (kept["leaf"].detach(), gradient)
    )
    by_hand = (features * gradient.mean((2, 3), keepdim=True)).sum(1).relu()
    torch.testing.assert_close(cam([3, 3]), by_hand, rtol=1e-4, atol=1e-8)


class _ByPosition(nn.Module):
    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, images):
        return self.network(pixel_values=images)
