"""CNNs on visible cells alone, against copies whose layers are converted one by one.

The oracle is SparK's encoder (arXiv:2301.03580) done its way: a copy of the timm model in which
every layer has another forward, which multiplies by the up-sampled mask and takes means and
variances as sums over visible positions. Squeeze-and-excitation counts visible positions only as
well, where SparK averages over the zeros of hidden cells too.
"""

import copy
from functools import partial

import pytest
import timm
import torch
from timm.layers import BlurPool2d, LayerNorm2d, SEModule
from timm.layers.grn import GlobalResponseNorm
from timm.models._efficientnet_blocks import SqueezeExcite
from torch import nn
from torch.nn import functional as F

from litcam.lightning_modules.masked.hiding import find_hiding

ATTO = {"depths": (1, 2, 1, 1), "dims": (8, 16, 16, 24)}
NETWORKS = {
    "resnet18": ("resnet18", {}),
    "resnet50": ("resnet50", {"channels": (16, 24, 32, 48)}),
    "average pooling": ("resnet26d", {"channels": (16, 24, 32, 48)}),
    "blur pooling": ("resnetblur50", {"layers": (1, 1, 1, 1), "channels": (16, 24, 32, 48)}),
    "convnext": ("convnext_atto", ATTO),
    "convnextv2": ("convnextv2_atto", ATTO),
    "channels last": ("convnextv2_atto", {**ATTO, "conv_mlp": False}),
    "efficientnet": ("efficientnet_b0", {}),
    "mobilenetv3": ("mobilenetv3_small_100", {}),
    "regnety": ("regnety_002", {}),
    "repvgg": ("repvgg_a0", {}),
}
# images, rows of cells, visible cells of each; a cell is 32 pixels and one pixel at the end
SHAPES = [(2, 2, 2), (3, 3, 4)]


class Mask:
    """Which pixels are visible: the one thing that the converted layers share."""

    def __init__(self, ids_keep, rows):
        self.cells = torch.zeros(len(ids_keep), 1, rows, rows, dtype=torch.float64)
        for number, kept in enumerate(ids_keep.tolist()):
            for cell in kept:
                self.cells[number, 0, cell // rows, cell % rows] = 1

    def like(self, features):
        """Return ones and zeros (batch, 1, height, width) for channels-first features."""
        return F.interpolate(self.cells, features.shape[2:], mode="nearest").to(features.dtype)


def convolve(layer, mask, x):
    x = F.conv2d(
        x, layer.weight, layer.bias, layer.stride, layer.padding, layer.dilation, layer.groups
    )
    return x * mask.like(x)


def blank(layer, mask, x):
    x = type(layer).forward(layer, x)
    return x * mask.like(x)


def batch_norm(layer, mask, x):
    seen = mask.like(x)
    if layer.training:
        count = seen.sum()
        mean = (x * seen).sum(dim=(0, 2, 3)) / count
        centred = (x - mean[:, None, None]) * seen
        variance = (centred**2).sum(dim=(0, 2, 3)) / count
        with torch.no_grad():
            momentum = layer.momentum
            unbiased = variance * count / (count - 1)
            layer.running_mean.copy_((1 - momentum) * layer.running_mean + momentum * mean)
            layer.running_var.copy_((1 - momentum) * layer.running_var + momentum * unbiased)
            layer.num_batches_tracked += 1
    else:
        mean, variance = layer.running_mean, layer.running_var
    scale = layer.weight / torch.sqrt(variance + layer.eps)
    x = (x - mean[:, None, None]) * scale[:, None, None] + layer.bias[:, None, None]
    return getattr(layer, "act", nn.Identity())(x) * seen


def layer_norm(layer, mask, x):
    mean = x.mean(dim=1, keepdim=True)
    variance = ((x - mean) ** 2).mean(dim=1, keepdim=True)
    x = (x - mean) / torch.sqrt(variance + layer.eps)
    return (x * layer.weight[:, None, None] + layer.bias[:, None, None]) * mask.like(x)


def last(forward, layer, mask, x):
    """Run a channels-first forward on channels-last features."""
    return forward(layer, mask, x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


def linear(layer, mask, x):
    x = torch.einsum("bihw,oi->bohw", x, layer.weight) + layer.bias[:, None, None]
    return x * mask.like(x)


def response_norm(layer, mask, x):
    """Global response normalisation (arXiv:2301.00808, section 3.3)."""
    seen = mask.like(x)
    length = torch.sqrt(((x * seen) ** 2).sum(dim=(2, 3), keepdim=True))
    relative = length / (length.mean(dim=1, keepdim=True) + layer.eps)
    changed = layer.weight[:, None, None] * (x * relative) + layer.bias[:, None, None] + x
    return changed * seen


def excite(layer, mask, x):
    seen = mask.like(x)
    squeezed = (x * seen).sum(dim=(2, 3)) / seen.sum(dim=(2, 3))
    inner, act, outer = (
        (layer.conv_reduce, layer.act1, layer.conv_expand)
        if hasattr(layer, "conv_reduce")
        else (layer.fc1, layer.act, layer.fc2)
    )
    squeezed = act(squeezed @ inner.weight[:, :, 0, 0].T + inner.bias)
    gate = layer.gate(squeezed @ outer.weight[:, :, 0, 0].T + outer.bias)
    return x * gate[:, :, None, None]


LAYERS = (
    (nn.Conv2d, convolve),
    (nn.BatchNorm2d, batch_norm),
    (LayerNorm2d, layer_norm),
    (nn.LayerNorm, partial(last, layer_norm)),
    (nn.Linear, partial(last, linear)),
    ((SEModule, SqueezeExcite), excite),
    ((nn.MaxPool2d, nn.AvgPool2d, BlurPool2d), blank),
)


def convert(model, mask):
    """Copy a timm model and give each of its layers the forward above that computes it sparsely."""
    model = copy.deepcopy(model)
    for module in model.modules():
        forward = next((forward for kind, forward in LAYERS if isinstance(module, kind)), None)
        if isinstance(module, GlobalResponseNorm):
            last_is_channels = module.channel_dim == -1
            forward = partial(last, response_norm) if last_is_channels else response_norm
        if forward:
            module.forward = partial(forward, module, mask)
    return model


@pytest.fixture(scope="module")
def timm_models():
    """Make a network once a module, with norms that are not at their start values."""
    made = {}

    def create(case):
        if case not in made:
            torch.manual_seed(3)
            name, options = NETWORKS[case]
            model = timm.create_model(name, num_classes=0, **options)
            with torch.no_grad():
                for module in model.modules():
                    if "Norm" in type(module).__name__ and hasattr(module, "weight"):
                        module.weight.uniform_(0.5, 1.5)
                        module.bias.normal_(0, 0.2)
                    if isinstance(module, nn.BatchNorm2d):
                        module.running_mean.normal_(0, 0.2)
                        module.running_var.uniform_(0.5, 1.5)
            made[case] = model
        return made[case]

    return create


def compute(model, shape, *, training, dtype):
    """Return features, running statistics and gradients of ours, and the same of the oracle."""
    torch.manual_seed(4)
    batch, rows, num_visible = shape
    model = copy.deepcopy(model).to(dtype).train(training)
    order = torch.rand(batch, rows * rows).argsort(dim=1)
    keep, hidden = order[:, :num_visible], order[:, num_visible:]
    # Every cell has a colour of its own: an exchange of cells would show.
    colours = torch.randn(batch, 3, rows, rows).repeat_interleave(32, 2).repeat_interleave(32, 3)
    images = (torch.randn(batch, 3, 32 * rows, 32 * rows) + colours).to(dtype)

    mask = Mask(keep, rows)
    oracle = convert(model, mask)
    maps = oracle.forward_features(images * mask.like(images))
    expected = torch.stack(
        [maps[b, :, cell // rows, cell % rows] for b in range(batch) for cell in keep[b].tolist()]
    ).unflatten(0, (batch, num_visible))
    hiding = find_hiding(model, "")(model, (rows, rows))
    tokens = hiding(model, images, keep, hidden)
    weights = torch.randn(expected.shape).to(dtype)
    (expected * weights).sum().backward()
    (tokens * weights).sum().backward()
    return gather(model, tokens), gather(oracle, expected)


def gather(model, tokens):
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return {"features": tokens.detach(), **dict(model.named_buffers()), **gradients}


def distances(ours, theirs):
    """Return ‖a - b‖ / ‖b‖ by name.

    The gradient of a bias is 0 where the next layers are linear and take the mean away again, so
    each is measured by a millionth of the largest at least.
    """
    assert ours.keys() == theirs.keys()
    largest = max(value.double().norm() for value in theirs.values())
    found = {}
    for name, value in theirs.items():
        assert torch.isfinite(value).all() and ours[name].shape == value.shape
        scale = max(value.double().norm(), 1e-6 * largest)
        found[name] = ((ours[name].double() - value.double()).norm() / scale).item()
    return found


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("shape", SHAPES, ids=["2 of 4 cells", "4 of 9 cells"])
@pytest.mark.parametrize("case", NETWORKS)
def test_features_statistics_and_gradients_are_those_of_the_converted_copy(
    timm_models, case, shape, training
):
    found = distances(*compute(timm_models(case), shape, training=training, dtype=torch.float64))
    worst = max(found, key=found.get)
    assert found[worst] <= 1e-9, f"{worst}: {found[worst]:.1e}"


@pytest.mark.parametrize("case", NETWORKS)
def test_eval_in_float32_agrees_to_one_in_a_hundred_thousand(timm_models, case):
    found = distances(*compute(timm_models(case), SHAPES[1], training=False, dtype=torch.float32))
    worst = max(found, key=found.get)
    assert found[worst] <= 1e-5, f"{worst}: {found[worst]:.1e}"


@pytest.mark.parametrize("case", ["resnet18", "convnextv2", "efficientnet", "regnety", "repvgg"])
def test_training_in_float32_is_as_near_to_float64_as_the_converted_copy(timm_models, case):
    """Normalising by twelve positions multiplies rounding: the copy's own is the measure."""
    model = timm_models(case)
    ours, theirs = compute(model, SHAPES[1], training=True, dtype=torch.float32)
    _, truth = compute(model, SHAPES[1], training=True, dtype=torch.float64)
    found, usual = distances(ours, truth), distances(theirs, truth)
    for name in ["features", *(name for name, _ in model.named_buffers())]:
        assert found[name] <= max(1e-5, 3 * usual[name]), name


def test_gradients_in_float32_agree_where_no_rounding_switches_a_relu():
    torch.manual_seed(3)
    model = timm.create_model("resnet18", num_classes=0, act_layer="gelu")
    found = distances(*compute(model, (3, 3, 6), training=True, dtype=torch.float32))
    worst = max(found, key=found.get)
    assert found[worst] <= 1e-5, f"{worst}: {found[worst]:.1e}"
