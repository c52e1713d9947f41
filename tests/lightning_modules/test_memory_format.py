"""Channels last in memory, and `torch.compile`, as options of `Classifier`: same results."""

import lightning.pytorch as pl
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from litcam.callbacks import GradCAM
from litcam.commands.explaining.stored import read_network
from litcam.explain import CAM
from litcam.lightning_modules import Classifier

NETWORKS = {
    "resnet10t": {},
    "convnext_atto": {},
    "efficientnet_lite0": {},
    "regnety_002": {},
    "vit_tiny_patch16_224": {"img_size": 64, "depth": 2},
}


def make(name="resnet10t", **options):
    torch.manual_seed(0)
    return Classifier(name, 8, backbone_args=NETWORKS[name], **options)


def batches(num_images=8):
    torch.manual_seed(1)
    images = torch.randn(num_images, 3, 64, 64)
    rows = [{"image": image, "label": at % 8, "index": at} for at, image in enumerate(images)]
    return DataLoader(rows, batch_size=4)


def fit(module, folder):
    """The logged numbers of two epochs, with every validation image explained."""
    trainer = pl.Trainer(
        max_epochs=2,
        accelerator="cpu",
        default_root_dir=folder,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        log_every_n_steps=1,
        callbacks=[GradCAM(num_images=2)],
    )
    trainer.fit(module, batches(), batches())
    trainer.save_checkpoint(folder / "last.ckpt")
    found = trainer.callback_metrics.items()
    return {name: float(value) for name, value in found if "per_second" not in name}


@pytest.mark.parametrize("name", NETWORKS)
def test_convolutions_get_channels_last(name):
    # In float64: with four small images BatchNorm makes much of float32's rounding.
    plain, last = make(name).double(), make(name, channels_last=True).double()
    seen = []

    def look(module, args):
        for tensor in (args[0], module.weight):
            assert tensor.is_contiguous(memory_format=torch.channels_last)
        seen.append(module)

    convolutions = [m for m in last.backbone.modules() if isinstance(m, nn.Conv2d)]
    for module in convolutions:
        module.register_forward_pre_hook(look)
    images, labels = torch.randn(4, 3, 64, 64).double(), torch.tensor([0, 3, 5, 7])
    losses = [nn.functional.cross_entropy(module(images), labels) for module in (plain, last)]
    assert set(seen) == set(convolutions)
    torch.testing.assert_close(*losses)
    for loss in losses:
        loss.backward()
    for mine, theirs in zip(plain.parameters(), last.parameters(), strict=True):
        largest = float(mine.grad.abs().max())
        torch.testing.assert_close(theirs.grad, mine.grad, rtol=1e-6, atol=1e-6 * largest + 1e-9)


@pytest.mark.parametrize("name", NETWORKS)
def test_maps_are_equal(name):
    images, labels = torch.randn(4, 3, 64, 64), torch.tensor([0, 3, 5, 7])
    maps, layers = [], []
    for module in (make(name).eval(), make(name, channels_last=True).eval()):
        with CAM(module) as cam, torch.inference_mode():
            module(images)
        maps.append(cam(labels))
        layers.append((cam.target_layer.name, cam.target_layer.layout))
    assert layers[0] == layers[1]
    assert maps[0].max() > 0
    torch.testing.assert_close(maps[1], maps[0], rtol=1e-4, atol=1e-5 * float(maps[0].max()))


def test_a_run_is_the_same(tmp_path):
    plain = fit(make(warmup_epochs=0), tmp_path)
    module = make(warmup_epochs=0, channels_last=True)
    last = fit(module, tmp_path / "last")
    assert {"val/loss", "val/gradcam/sparseness"} <= plain.keys()
    assert last == pytest.approx(plain, rel=1e-3)
    # Also what the optimiser has written.
    kept = [m.weight for m in module.backbone.modules() if isinstance(m, nn.Conv2d)]
    assert all(weight.is_contiguous(memory_format=torch.channels_last) for weight in kept)


@pytest.mark.slow
def test_a_compiled_run_is_the_same(tmp_path, monkeypatch):
    # What it compiles to is torch's business; ours is where it is put and that maps are made.
    compiled, compile_in_place = [], nn.Module.compile

    def compile(module, **kwargs):  # noqa: A001
        compiled.append(module)
        compile_in_place(module, backend="aot_eager")

    monkeypatch.setattr(nn.Module, "compile", compile)
    plain = fit(make(warmup_epochs=0), tmp_path)
    module = make(warmup_epochs=0, compile=True)
    found = fit(module, tmp_path / "compiled")
    assert compiled == [module.backbone]
    assert found["val/loss"] == pytest.approx(plain["val/loss"], rel=1e-3)
    assert list((tmp_path / "compiled/gradcam").rglob("*.jpg"))
    # Its checkpoint is anybody's, and what `litcam explain` takes out of it is not compiled.
    stored = read_network(tmp_path / "compiled/last.ckpt").network
    assert stored.state_dict().keys() == module.backbone.state_dict().keys()
    assert stored._compiled_call_impl is None
