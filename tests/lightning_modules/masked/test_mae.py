"""MAE under a Trainer: what it logs, writes, resumes and refuses, for CNN, ViT and Swin."""

import argparse
import json
import logging
import math

import lightning.pytorch as pl
import pytest
import timm
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from safetensors.torch import load_file
from torch.utils.data import DataLoader

from litcam.lightning_modules import MAE, Classifier
from litcam.lightning_modules.masked.masking import gather_cells, patchify
from litcam.lightning_modules.steps import finite
from litcam.lightning_modules.steps.finite import NonFiniteError
from litcam.lightning_modules.weights import load_weights

SWIN = {"embed_dim": 8, "depths": (1, 1, 1, 1), "num_heads": (1, 1, 2, 2)}
VIT = {"patch_size": 8, "depth": 2, "embed_dim": 64, "num_heads": 2}
# name, image size, arguments; four cells each
FAMILIES = {
    "cnn": ("resnet10t", 32, {"channels": (8, 8, 16, 24), "output_stride": 16}),
    "vit": ("vit_tiny_patch16_224", 16, VIT),
    "swin": ("swin_tiny_patch4_window7_224", 64, SWIN),
}


@pytest.fixture(params=FAMILIES)
def family(request):
    return FAMILIES[request.param]


def make(family, **options):
    name, image_size, args = family
    torch.manual_seed(0)
    options = {"mask_ratio": 0.5, "warmup_epochs": 0, "scale_lr": False, "lr": 1e-3, **options}
    if not name.startswith("swin"):
        options = {"decoder_dim": 64, "decoder_depth": 1, **options}
    return MAE(name, image_size=image_size, backbone_args=args, **options)


class Data(pl.LightningDataModule):
    """Seeded smooth images, shuffled by epoch and seed, as dicts or tuples."""

    mean, std = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)

    def __init__(self, image_size, *, batch_size=4, pairs=False):
        super().__init__()
        torch.manual_seed(1)
        small = torch.randn(12, 3, 4, 4)
        self.images = torch.nn.functional.interpolate(small, size=image_size, mode="bilinear")
        self.batch_size, self.pairs = batch_size, pairs

    def loader(self, order):
        items = [
            (self.images[i], i % 3)
            if self.pairs
            else {"image": self.images[i], "label": i % 3, "index": i}
            for i in order
        ]
        return DataLoader(items, batch_size=self.batch_size)

    def train_dataloader(self):
        epoch = self.trainer.current_epoch
        return self.loader(torch.randperm(12, generator=torch.Generator().manual_seed(epoch)))

    def val_dataloader(self):
        return self.loader(range(12))


def fit(mae, data, folder, *, epochs=1, ckpt_path=None, callbacks=(), **options):
    last = ModelCheckpoint(
        folder / "checkpoints", "last", enable_version_counter=False, save_on_exception=True
    )
    trainer = pl.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        logger=False,
        default_root_dir=folder,
        enable_progress_bar=False,
        enable_model_summary=False,
        reload_dataloaders_every_n_epochs=1,
        callbacks=[last, *callbacks],
        **options,
    )
    trainer.fit(mae, data, ckpt_path=ckpt_path)
    return trainer


def test_a_fit_logs_and_says_what_it_does(family, tmp_path, caplog):
    mae = make(family)
    with caplog.at_level(logging.INFO):
        trainer = fit(mae, Data(mae.image_size), tmp_path)
    names = {"train/loss", "val/loss", "val/psnr", "val/explained_variance"}
    assert names <= trainer.callback_metrics.keys()
    assert f"MAE hides 2 of 4 cells of {mae.cell_size}x{mae.cell_size} pixels" in caplog.text
    assert f"{mae.decoder_share:.0%} of the compute" in caplog.text


@pytest.mark.parametrize("norm_pix_loss", [False, True])
def test_the_metrics_are_those_of_the_hidden_pixels(norm_pix_loss, tmp_path):
    mae = make(FAMILIES["vit"], norm_pix_loss=norm_pix_loss)
    data = Data(16, batch_size=5)
    noises, forward = [], mae._choose
    mae._choose = lambda images, noise: noises.append(noise) or forward(images, noise)
    trainer = pl.Trainer(
        accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False
    )
    found = trainer.validate(mae, data, verbose=False)[0]
    noise = torch.cat(noises)
    hidden = noise.argsort(1)[:, 2:]
    with torch.no_grad():
        seen = mae.reconstruct(data.images, noise)
    true, guess = (
        gather_cells(patchify(images, 8).flatten(2), hidden).double().unflatten(2, (64, 3))
        for images in (data.images, seen.predicted)
    )
    assert seen.borrowed == norm_pix_loss
    error = ((guess - true) / 4).square()  # in pixels: std is a quarter
    variance = (true / 4).flatten(0, 2).var(dim=0, correction=0)
    psnr = -10 * math.log10(error.mean())
    assert found["val/psnr"] == pytest.approx(psnr, abs=1e-3)
    explained = 1 - error.mean() / variance.mean()
    assert found["val/explained_variance"] == pytest.approx(explained.item(), abs=1e-4)
    each = -10 * error.mean((1, 2, 3)).log10()
    torch.testing.assert_close(seen.psnr.double(), each, atol=1e-3, rtol=0)
    if norm_pix_loss:
        mean, std = true.mean((2, 3), keepdim=True), true.var((2, 3), keepdim=True).sqrt()
        error = (guess - true) / std
        assert found["val/loss"] == pytest.approx(error.square().mean().item(), rel=1e-3)
        assert mean.shape == std.shape
    else:
        assert found["val/loss"] == pytest.approx(16 * error.mean().item(), rel=1e-5)


def test_the_validation_does_not_depend_on_the_batches(family, tmp_path):
    mae, losses = make(family).eval(), []
    for batch_size in (3, 5):
        trainer = pl.Trainer(
            accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False
        )
        data = Data(mae.image_size, batch_size=batch_size)
        losses.append(trainer.validate(mae, data, verbose=False)[0])
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


class Watched(MAE):
    """Keeps the mask of every training image."""

    def training_step(self, batch, batch_idx):
        self._now = [(self.current_epoch, int(index)) for index in batch["index"]]
        return super().training_step(batch, batch_idx)

    def forward(self, images, noise=None):
        hidden = noise.argsort(1)[:, 2:].sort(1).values.tolist()
        self.masks = getattr(self, "masks", {}) | dict(zip(self._now, hidden, strict=True))
        return super().forward(images, noise)


def test_a_resumed_run_draws_the_masks_it_would_have_drawn(tmp_path):
    def run(folder, epochs, ckpt_path=None):
        torch.manual_seed(0)
        mae = Watched(FAMILIES["vit"][0], 0.5, image_size=16, backbone_args=VIT, scale_lr=False)
        fit(mae, Data(16), tmp_path / folder, epochs=epochs, ckpt_path=ckpt_path)
        return mae

    whole = run("whole", 4)
    run("parts", 2)
    torch.rand(100)
    rest = run("parts", 4, tmp_path / "parts/checkpoints/last.ckpt")
    assert rest.masks == {key: mask for key, mask in whole.masks.items() if key[0] >= 2}
    # Another epoch, another mask; images have masks of their own.
    assert len({tuple(whole.masks[epoch, 0]) for epoch in range(4)}) > 1
    assert len({tuple(whole.masks[0, index]) for index in range(12)}) > 1


def test_runs_of_neighbouring_seeds_share_no_masks(tmp_path, monkeypatch):
    masks = {}
    for seed in (0, 1):
        monkeypatch.setenv("PL_GLOBAL_SEED", str(seed))
        mae = Watched(FAMILIES["vit"][0], 0.5, image_size=16, backbone_args=VIT, scale_lr=False)
        fit(mae, Data(16), tmp_path / str(seed), epochs=2)
        masks[seed] = mae.masks
    shared = sum(masks[0][1, index] == masks[1][0, index] for index in range(12))
    assert shared < 8  # of 12 with six masks each, all of them where seed and epoch are added


def test_tuples_of_images_and_labels_train_as_well(family, tmp_path):
    mae = make(family)
    before = {key: value.clone() for key, value in mae.state_dict().items()}
    fit(mae, Data(mae.image_size, pairs=True), tmp_path)
    assert any(
        not value.equal(before[key])
        for key, value in mae.encoder.state_dict().items()
        for key in [f"encoder.{key}"]
    )


def test_the_encoder_goes_on(family, tmp_path, caplog):
    name, _, args = family
    mae = make(family)
    fit(mae, Data(mae.image_size), tmp_path)
    folder = tmp_path / "checkpoints"
    file = folder / "encoder.safetensors"
    own = mae.encoder.state_dict()
    assert load_file(file).keys() == own.keys()
    assert load_file(folder / "decoder.safetensors").keys() == mae.decoder.state_dict().keys()
    facts = json.loads((folder / "encoder.json").read_text())
    assert facts["backbone"] == name
    assert facts["mean"] == [0.5, 0.5, 0.5]
    assert (facts["mask_ratio"], facts["cell_size"]) == (0.5, mae.cell_size)

    # by timm alone
    sizes = {} if "resnet" in name else {"img_size": mae.image_size}
    overlay = {"file": str(file), "num_classes": 0}
    plain = timm.create_model(
        name, pretrained=True, num_classes=7, pretrained_cfg_overlay=overlay, **sizes, **args
    )
    assert all(plain.state_dict()[key].equal(value) for key, value in own.items())

    # by litcam, at twice the size, from the file and from the checkpoint
    sizes = {} if "resnet" in name else {"img_size": 2 * mae.image_size}
    for source in (file, folder / "last.ckpt"):
        with caplog.at_level(logging.INFO):
            module = Classifier(name, 7, weights=str(source), backbone_args={**sizes, **args})
        total = len(module.backbone.state_dict())
        assert f"{len(own)} of {total} tensors loaded from {source}" in caplog.text
        loaded = module.backbone.state_dict()
        same = [key for key, value in own.items() if loaded[key].shape == value.shape]
        assert len(same) > len(own) // 2
        assert all(loaded[key].equal(own[key]) for key in same)

    with pytest.raises(ValueError, match=r"weights .* do not fit resnet18"):
        Classifier("resnet18", 7, weights=str(file))


@pytest.mark.parametrize("kind", ["encoder", "everything", "simmim"])
def test_checkpoints_in_the_layout_of_the_authors_load(kind, tmp_path):
    vit = timm.create_model(FAMILIES["vit"][0], img_size=16, num_classes=0, **VIT)
    tensors = dict(vit.state_dict())
    if kind == "everything":
        extra = "mask_token decoder_pos_embed decoder_embed.weight decoder_blocks.0.norm1.weight"
        tensors |= {key: torch.zeros(3) for key in extra.split()}
    if kind == "simmim":
        tensors = {f"encoder.{key}": value for key, value in tensors.items()}
        tensors |= {"encoder.mask_token": torch.zeros(3), "decoder.0.weight": torch.zeros(3)}
    file = tmp_path / "pretrained.pth"
    torch.save({"model": tensors, "args": argparse.Namespace(lr=1.0)}, file)
    other = timm.create_model(FAMILIES["vit"][0], img_size=16, num_classes=3, **VIT)
    load_weights(other, file)
    assert all(other.state_dict()[key].equal(value) for key, value in vit.state_dict().items())


def test_the_checkpoint_is_enough_on_its_own(family, tmp_path):
    mae = make(family)
    fit(mae, Data(mae.image_size), tmp_path)
    loaded = MAE.load_from_checkpoint(tmp_path / "checkpoints/last.ckpt", weights_only=True)
    assert loaded.hparams == mae.hparams
    for key, value in mae.state_dict().items():
        assert loaded.state_dict()[key].equal(value), key


class Poison(pl.Callback):
    """Makes the gradient of one step infinite."""

    def on_after_backward(self, trainer, pl_module):
        if trainer.global_step == 4:
            next(p for p in pl_module.parameters() if p.grad is not None).grad[0] = math.inf


@pytest.mark.parametrize("kind", ["mae", "classifier"])
def test_a_step_that_is_not_finite_is_not_taken(kind, tmp_path):
    data = Data(16)
    options = {"warmup_epochs": 0, "scale_lr": False, "lr": 0.25}
    if kind == "mae":
        module = make(FAMILIES["vit"], **options)
    else:
        args = {"img_size": 16, **VIT}
        module = Classifier(FAMILIES["vit"][0], 3, backbone_args=args, **options)
    with pytest.raises(NonFiniteError) as error:
        fit(module, data, tmp_path, epochs=3, callbacks=[Poison()])
    line = str(error.value)
    assert "not finite at step 4" in line
    assert "learning rate 0." in line
    assert "images " in line
    assert "\n" not in line
    kept = torch.load(tmp_path / "checkpoints/last.ckpt", weights_only=True)
    assert kept["global_step"] == 4
    assert all(v.isfinite().all() for v in kept["state_dict"].values() if v.is_floating_point())


@pytest.mark.parametrize("every", [50, 3], ids=["at the end of the epoch", "before"])
def test_on_an_accelerator_such_a_step_is_left_out_and_told_later(every, tmp_path, monkeypatch):
    """With the CPU in its place: its fused AdamW skips on a flag, too."""
    monkeypatch.setattr(finite, "WAITS_FOR_NOTHING", ())
    monkeypatch.setattr(finite, "LOOK_EVERY", every)
    taken = []

    class Watches(pl.Callback):
        def on_before_optimizer_step(self, trainer, pl_module, optimizer):
            self.before = [p.detach().clone() for p in pl_module.parameters()]

        def on_train_batch_end(self, trainer, pl_module, *args):
            pairs = zip(self.before, pl_module.parameters(), strict=True)
            taken.append(any(not torch.equal(*pair) for pair in pairs))

    module = make(FAMILIES["vit"], warmup_epochs=0, scale_lr=False, lr=0.25)
    with pytest.raises(NonFiniteError) as error:
        fit(module, Data(16), tmp_path, epochs=3, callbacks=[Poison(), Watches()])
    line = str(error.value)
    assert "not finite at step 4 (loss" in line and "images " in line and "\n" not in line
    late = {50: 6, 3: 5}[every]
    assert f"it was left out, and the run stops at step {late}" in line
    assert taken == ([True] * 4 + [False, True])[:late]
    assert all(p.isfinite().all() for p in module.parameters())


BAD = {
    "mask_ratio must be in": {"mask_ratio": 1.5},
    "leaves no visible cell": {"mask_ratio": 0.99},
    "leaves no hidden cell": {"mask_ratio": 1e-17},
    "decoder_dim must be a multiple of 32": {"decoder_dim": 33},
    "decoder_depth must be": {"decoder_depth": -1},
    "needs an encoder that puts out tokens of hidden cells": {"decoder_depth": 0},
    "loss must be l2 or l1": {"loss": "l3"},
    "must be a multiple of the patch size 8": {"image_size": 20},
    "ViT, Swin or CNN": {
        "backbone": "mixer_s32_224",
        "image_size": None,
        "backbone_args": {},
    },
    "multiple of the stride 32": {"backbone": "resnet18", "image_size": 40, "backbone_args": {}},
    "1 cells of 32x32": {"backbone": "resnet18", "image_size": 32, "backbone_args": {}},
    "close: resnet51q": {"backbone": "resnet51"},
}


@pytest.mark.parametrize(("message", "options"), BAD.items(), ids=BAD)
def test_what_cannot_be_is_refused_in_one_line(message, options):
    with pytest.raises(ValueError, match=message) as error:
        MAE(**{"backbone": FAMILIES["vit"][0], "image_size": 16, "backbone_args": VIT, **options})
    assert "\n" not in str(error.value)


def test_images_of_another_size_are_refused(family):
    mae = make(family)
    with pytest.raises(ValueError, match=r"got 48x48; pass image_size=48 to MAE, or"):
        mae(torch.zeros(1, 3, 48, 48))
