"""The target layer in every family of timm and torchvision, against a table made by hand."""

import os
from pathlib import Path

import pytest
import timm
import torch
import torchvision
from families import TIMM, TORCHVISION, WHY
from torch import nn

from litcam.explain import CAM, find_target_layer

PAGE = Path(__file__).parents[2] / "docs" / "target_layers.md"
IDS = [f"{row.module}-{row.model}" for row in TIMM + TORCHVISION]
BEGIN, END = "<!-- begin: table -->\n", "<!-- end: table -->\n"
# What timm itself warns about in making some of these.
NOISE = ["ignore:.*torch.meshgrid.*:UserWarning", "ignore:.*Overwriting .* in registry.*"]

# These give NCHW, but cut it into windows or tokens on the way.
WINDOWED = {
    "byoanet", "davit", "edgenext", "gcvit", "maxvit", "maxxvit", "nextvit", "pvt_v2",
    "swin_transformer_v2_cr", "tiny_vit", "vision_transformer_sam",
}  # fmt: skip

pytestmark = [pytest.mark.filterwarnings(line) for line in NOISE]


def make(row):
    """A network with random weights, none of them all zero: those would stop the gradient."""
    torch.manual_seed(0)
    create = timm.create_model if row in TIMM else torchvision.models.get_model
    network = create(row.model, num_classes=10, **row.options).eval()
    for parameter in network.parameters():
        if not parameter.any():
            nn.init.normal_(parameter, std=0.02)
    return network


# Those of the paper, and one of each kind of answer; the others are slow tests.
QUICK = {
    "coat", "convnext", "deit", "efficientnet", "eva", "mlp_mixer", "mobilenetv3", "regnet",
    "resnet", "swin_transformer", "vision_transformer", "vision_transformer_relpos",
}  # fmt: skip


def mark(row):
    return pytest.param(row, marks=[] if row.module in QUICK else pytest.mark.slow)


@pytest.mark.parametrize("row", [mark(row) for row in TIMM + TORCHVISION], ids=IDS)
def test_right_or_refused(row):
    network, images = make(row), torch.randn(2, 3, *row.size)
    if not row.layer:
        with pytest.raises(ValueError, match="several feature maps side by side") as error:
            find_target_layer(network, images)
        assert "pass one of them as target_layer" in str(error.value)
        return
    found = find_target_layer(network, images)
    assert (found.name, found.layout.kind, found.grid) == (row.layer, row.kind, row.grid)
    with CAM(network, target_layer=found) as cam, torch.no_grad():
        network(images)
    maps = cam([0, 1])
    assert maps.shape == (2, *row.grid)
    assert maps.isfinite().all()
    # Before the ReLU, which may leave nothing of one class.
    recorded = cam._recording.activations
    (gradient,) = torch.autograd.grad(cam.logits[:, 0].sum(), recorded)
    activations, gradient = (found.layout.to_maps(x.detach()) for x in (recorded, gradient))
    signed = (activations * gradient.mean((2, 3), keepdim=True)).sum(1)
    assert (signed.amax((1, 2)) > signed.amin((1, 2))).all()
    if row.kind != "NCHW" or row.module in WINDOWED:
        assert_order(network, found, row.size)


def assert_order(network, layer, size):
    """New pixels in one cell change that cell of the layer more than they change others.

    Told by several cells, and against the grid mirrored, turned and transposed. Convolutions
    cannot change the order; windows, unrolled tokens and hidden states can.
    """
    (rows, columns), (height, width) = layer.grid, size
    order = torch.randperm(rows * columns)[:8].tolist()
    cells = [divmod(place, columns) for place in order]
    images = torch.randn(1, 3, *size).repeat(len(cells) + 1, 1, 1, 1)
    for image, (i, j) in zip(images[1:], cells, strict=True):
        box = image[:, i * height // rows : (i + 1) * height // rows,
                    j * width // columns : (j + 1) * width // columns]  # fmt: skip
        box += torch.randn_like(box)
    seen = []
    hook = layer.module.register_forward_hook(lambda module, args, output: seen.append(output))
    with torch.no_grad():
        calibrate(network, size)
        seen.clear()
        network(images)
    hook.remove()
    maps = layer.layout.to_maps(seen[0])
    change = (maps[1:] - maps[:1]).square().mean(1).sqrt()
    change = change / change.mean(0, keepdim=True)
    here = sum(float(c[cell]) for c, cell in zip(change, cells, strict=True)) / len(cells)
    wrong = {"left to right": change.flip(2), "upside down": change.flip(1)}
    if rows == columns:
        wrong |= {"transposed": change.mT, "turned": change.rot90(1, (1, 2))}
    for how, other in wrong.items():
        there = sum(float(c[cell]) for c, cell in zip(other, cells, strict=True)) / len(cells)
        assert here > there, f"the grid fits better {how}: {here:.2f} against {there:.2f}"
    assert here > 1.05, f"cells do not answer to their own pixels: {here:.2f}"


def calibrate(network, size):
    """Statistics of real activations for batch norm, which random weights lack."""
    norms = [m for m in network.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    for norm in norms:
        norm.momentum = 1.0
        norm.train()
    network(torch.randn(4, 3, *size))
    for norm in norms:
        norm.eval()


def test_no_family_is_missing():
    missing = set(timm.list_modules()) - {row.module for row in TIMM}
    assert not missing, f"new in timm {timm.__version__}, add to tests/explain/families.py: " + (
        ", ".join(sorted(missing))
    )


def test_no_family_of_torchvision_is_missing():
    models = torchvision.models.list_models(module=torchvision.models)
    modules = {torchvision.models.get_model_builder(model).__module__ for model in models}
    missing = {module.split(".")[-1] for module in modules} - {row.module for row in TORCHVISION}
    assert not missing, f"add to tests/explain/families.py: {', '.join(sorted(missing))}"


def test_refusals_are_few():
    refused = {row.module for row in TIMM + TORCHVISION if not row.layer}
    assert len(refused) < 3
    assert {row.why for row in TIMM + TORCHVISION} == set(WHY)


def table():
    """The table of docs/target_layers.md."""
    lines = []
    for title, rows in (("timm module", TIMM), ("torchvision", TORCHVISION)):
        lines += [
            f"| {title} | model | layer | grid | images | why |",
            "|---|---|---|---|---|---|",
        ]
        for row in rows:
            layer = f"`{row.layer}`" if row.layer else "refused"
            grid = "×".join(map(str, row.grid)) or "–"
            size = "×".join(map(str, row.size))
            lines.append(
                f"| {row.module} | {row.model} | {layer} | {grid} | {size} | {WHY[row.why]} |"
            )
        lines.append("")
    return "\n".join(lines)


def test_the_page_has_the_same_table():
    text = PAGE.read_text()
    before, rest = text.split(BEGIN)
    written, after = rest.split(END)
    if os.environ.get("LITCAM_WRITE_DOCS"):
        PAGE.write_text(before + BEGIN + table() + END + after)
        return
    command = f"LITCAM_WRITE_DOCS=1 python -m pytest -k same_table {Path(__file__).name}"
    for line in table().splitlines():
        assert line in written, f"docs/target_layers.md lacks this row; to write it: {command}"
    assert written == table(), f"docs/target_layers.md has other rows; to write it: {command}"
