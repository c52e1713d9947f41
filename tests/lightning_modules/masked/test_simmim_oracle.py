"""SimMIM's loss (arXiv:2111.09886) for Swin and Swin V2, put together by hand.

The mask token is blended into the patch embeddings, the stages are called one by one, and the head
is a 1 × 1 convolution with a pixel shuffle, its channels in PixelShuffle's order.
"""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from litcam.lightning_modules import MAE

SMALL = {"embed_dim": 16, "depths": (2, 2, 2, 1), "num_heads": (1, 2, 2, 4)}
# Two blocks a stage: the second one's windows are shifted.
FAMILIES = {
    "swin": ("swin_tiny_patch4_window7_224", {"img_size": 96, "window_size": 3, **SMALL}),
    "swinv2": ("swinv2_tiny_window8_256", {"img_size": 96, "window_size": 3, **SMALL}),
    "window divides nothing": (
        "swin_tiny_patch4_window7_224",
        {"img_size": 96, "window_size": 4, **SMALL},
    ),
}


@pytest.fixture(params=FAMILIES, scope="module")
def made(request):
    torch.manual_seed(2)
    name, args = FAMILIES[request.param]
    module = MAE(name, 0.6, backbone_args=args, loss="l1")
    with torch.no_grad():
        for weight in module.parameters():
            weight.add_(torch.randn_like(weight) * 0.1)
    return module


@pytest.fixture
def mae(made):
    return copy.deepcopy(made)


class Oracle(nn.Module):
    """SimMIM with its own copies of the weights."""

    def __init__(self, mae, cell=32):
        super().__init__()
        self.encoder = copy.deepcopy(mae.encoder)
        self.token = nn.Parameter(mae.hiding.mask_token.detach().clone()[None, None])
        head = mae.decoder.head
        pixels = torch.arange(cell * cell * 3).view(cell, cell, 3)
        # PixelShuffle wants channel, row, column; a row of our head is row, column, channel.
        self.order = torch.stack([pixels[..., c] for c in range(3)]).flatten()
        self.shuffle = nn.Conv2d(head.in_features, 3 * cell * cell, 1)
        self.shuffle.weight.data = head.weight.detach()[self.order, :, None, None].clone()
        self.shuffle.bias.data = head.bias.detach()[self.order].clone()
        self.cell = cell

    def forward(self, images, mask):
        """Take mask (batch, rows, columns), 1 where hidden."""
        fine = F.interpolate(mask[:, None], scale_factor=self.cell // 4, mode="nearest")
        weight = torch.permute(fine, (0, 2, 3, 1))
        patches = self.encoder.patch_embed(images)
        features = patches * (1 - weight) + self.token * weight
        for stage in self.encoder.layers:
            features = stage(features)
        features = self.encoder.norm(features).permute(0, 3, 1, 2)
        predicted = F.pixel_shuffle(self.shuffle(features), self.cell)
        pixels = F.interpolate(mask[:, None], scale_factor=self.cell, mode="nearest")
        error = F.l1_loss(images, predicted, reduction="none")
        return (error * pixels).sum() / (pixels.sum() + 1e-5) / 3


def masked(noise, ratio, rows):
    """Write 1 into all but the cells of smallest noise."""
    mask = torch.ones_like(noise)
    for number, row in enumerate(noise.tolist()):
        for cell in sorted(range(len(row)), key=row.__getitem__)[: int(len(row) * (1 - ratio))]:
            mask[number, cell] = 0
    return mask.view(len(noise), rows, -1)


def distance(ours, theirs):
    return ((ours - theirs).norm() / theirs.norm()).item()


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize(("dtype", "close"), [(torch.float32, 1e-5), (torch.float64, 1e-7)])
def test_loss_and_every_gradient_are_simmims(mae, batch, dtype, close):
    mae = mae.to(dtype)
    images, noise = torch.randn(batch, 3, 96, 96).to(dtype), torch.rand(batch, 9)
    oracle = Oracle(mae)
    loss = mae(images, noise)
    loss.backward()
    expected = oracle(images, masked(noise, 0.6, 3).to(dtype))
    expected.backward()
    assert abs(loss.item() - expected.item()) <= 1e-6

    head, shuffle = mae.decoder.head, oracle.shuffle
    pairs = {
        "mask token": (mae.hiding.mask_token.grad, oracle.token.grad.flatten()),
        "head": (head.weight.grad[oracle.order], shuffle.weight.grad.flatten(1)),
        "bias": (head.bias.grad[oracle.order], shuffle.bias.grad),
    }
    for name, weight in mae.encoder.named_parameters():
        assert weight.requires_grad
        pairs[name] = (weight.grad, oracle.encoder.get_parameter(name).grad)
    for name, (ours, theirs) in pairs.items():
        assert distance(ours, theirs) <= close, f"{name}: {distance(ours, theirs):.1e}"


def test_no_path_is_dropped_while_pretraining_unless_asked_for(mae):
    """SimMIM's configuration; timm's Swin would drop up to 10 % of its residual branches."""
    images, noise = torch.randn(2, 3, 96, 96), torch.rand(2, 9)
    assert mae.training
    assert torch.equal(mae(images, noise), mae(images, noise))
    name, args = FAMILIES["swin"]
    asked = MAE(name, 0.6, backbone_args={**args, "drop_path_rate": 0.5})
    assert asked.encoder.layers[3].blocks[-1].drop_path1.drop_prob == 0.5


def test_swin_defaults_to_simmims_linear_decoder(mae):
    assert mae.decoder.depth == 0
    assert [name for name, _ in mae.decoder.named_parameters()] == ["head.weight", "head.bias"]
    assert [name for name, _ in mae.hiding.named_parameters()] == ["mask_token"]
    assert mae.grid == (3, 3) and mae.cell_size == 32


def test_l2_is_the_same_with_squares(mae):
    images, noise = torch.randn(2, 3, 96, 96), torch.rand(2, 9)
    mae.hparams["loss"] = "l2"
    oracle, mask = Oracle(mae), masked(noise, 0.6, 3)
    seen = mae.reconstruct(images, noise)
    assert torch.equal(seen.hidden[:, ::32, ::32].float(), mask)
    hidden = seen.hidden[:, None].expand_as(images)
    expected = F.mse_loss(seen.predicted[hidden], images[hidden])
    assert abs(mae(images, noise).item() - expected.item()) <= 1e-6
    # The picture that reconstruct() puts together is the pixel shuffle's.
    error = (images - seen.predicted).abs()[hidden].mean()
    assert abs(error.item() - oracle(images, mask).item()) <= 1e-6
