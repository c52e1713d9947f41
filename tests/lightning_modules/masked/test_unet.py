"""The UNet decoder of a CNN against plain dense computation with masks, and under a Trainer."""

import copy
from types import SimpleNamespace

import lightning.pytorch as pl
import pytest
import timm
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from test_mae import Data
from test_sparse_oracle import Mask, convert, distances
from torch import nn
from torch.nn import functional as F

from litcam.lightning_modules import MAE
from litcam.lightning_modules.masked.decoders import UNetDecoder
from litcam.lightning_modules.masked.hiding import finer_stages
from litcam.lightning_modules.masked.masking import patchify

RESNET = {"channels": (8, 16, 16, 24)}
CONVNEXT = {"depths": (1, 1, 1, 1), "dims": (8, 16, 16, 64)}
# name, arguments, stages whose maps are read (finest first), the last map's channels
NETWORKS = {
    "resnet": ("resnet10t", RESNET, "layer1 layer2 layer3", 24),
    # as wide as the decoder: no projection of the last map
    "convnext": ("convnext_atto", CONVNEXT, "stages.0 stages.1 stages.2", 64),
    "regnety": ("regnety_002", {}, "s1 s2 s3", 368),
    "efficientnet": ("efficientnet_b0", {}, "blocks.1 blocks.2 blocks.4", 1280),
    "mobilenetv3": ("mobilenetv3_small_050", {}, "blocks.0 blocks.1 blocks.3", 288),
    "vgg": ("vgg11_bn", {}, "features.13 features.20 features.27", 512),
    "densenet": (
        "densenet121",
        {},
        "features.denseblock1 features.denseblock2 features.denseblock3",
        1024,
    ),
}


def make(case, **options):
    torch.manual_seed(0)
    name, args, *_ = NETWORKS[case]
    options = {"decoder_dim": 64, "norm_pix_loss": True, "warmup_epochs": 0, **options}
    return MAE(name, 0.5, image_size=64, backbone_args=args, **options)


def spread(mae):
    """Norms and embeddings away from their start values, where an exchange would not show."""
    with torch.no_grad():
        for name, value in mae.named_parameters():
            if "norm" in name or "bn" in name or name.endswith("bias"):
                value.normal_(1.0 if name.endswith("weight") else 0.0, 0.3)
            if name.endswith("mask_token") or "gamma" in name:
                value.normal_(0, 1)
    for module in mae.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.2)
            module.running_var.uniform_(0.5, 1.5)
    return mae


def normalise(norm, x, seen, *, training):
    """BatchNorm by sums over the positions that are seen, or a norm of each position's channels."""
    scale, shift = norm.weight[:, None, None], norm.bias[:, None, None]
    if isinstance(norm, nn.LayerNorm):
        x = x - x.mean(dim=1, keepdim=True)
        return x / torch.sqrt((x * x).mean(dim=1, keepdim=True) + norm.eps) * scale + shift
    mean, variance = norm.running_mean, norm.running_var
    if training:
        count = seen.expand(len(x), 1, *x.shape[2:]).sum()
        mean = (x * seen).sum(dim=(0, 2, 3)) / count
        variance = ((x - mean[:, None, None]) ** 2 * seen).sum(dim=(0, 2, 3)) / count
    return (x - mean[:, None, None]) / torch.sqrt(variance + norm.eps)[
        :, None, None
    ] * scale + shift


def dense_prediction(decoder, maps, mask, *, training):
    """The decoder with masks that are multiplied with, its upsampling a convolution of zeros."""
    everywhere = torch.ones(1, 1, 1, 1, dtype=torch.float64)
    x = 0
    for scale, block in enumerate(decoder.blocks):
        if scale < len(maps):
            part, seen = decoder.densify[scale], mask.like(maps[scale])
            token = part.mask_token[:, None, None]
            dense = normalise(part.norm, maps[scale], seen, training=training) * seen
            dense = dense + token * (1 - seen)
            if isinstance(part.proj, nn.Conv2d):
                pad = 0 if scale == 0 else 1
                dense = F.conv2d(dense, part.proj.weight, part.proj.bias, padding=pad)
            x = x + dense
        up, first, norm, _, second, last = block
        apart = x.new_zeros(*x.shape[:2], 2 * x.shape[2] - 1, 2 * x.shape[3] - 1)
        apart[:, :, ::2, ::2] = x
        x = F.conv2d(F.pad(apart, (2, 2, 2, 2)), up.weight.transpose(0, 1).flip(2, 3), up.bias)
        x = normalise(norm, F.conv2d(x, first.weight, padding=1), everywhere, training=training)
        x = F.conv2d(x.clamp(0, 6), second.weight, padding=1)
        x = normalise(last, x, everywhere, training=training)
    return (
        torch.einsum("bchw,oc->bohw", x, decoder.head.weight[:, :, 0, 0])
        + (decoder.head.bias[:, None, None])
    )


def expected(mae, case, images, noise):
    """Loss of the network with each of its layers converted, its stages' outputs caught."""
    _, _, stages, _ = NETWORKS[case]
    mask = Mask(noise.argsort(dim=1)[:, : mae.num_cells // 2], mae.grid[0])
    encoder, maps = convert(mae.encoder, mask), {}
    for name in stages.split():
        encoder.get_submodule(name).register_forward_hook(
            lambda module, args, out, name=name: maps.update({name: out})
        )
    last = encoder.forward_features(images * mask.like(images))
    decoder = copy.deepcopy(mae.decoder)
    maps = [last, *(maps[name] for name in reversed(stages.split()))]
    pixels = dense_prediction(decoder, maps, mask, training=mae.training)
    true, guess = patchify(images, 32).flatten(2), patchify(pixels, 32).flatten(2)
    true = (true - true.mean(2, keepdim=True)) / (true.var(2, keepdim=True) + 1e-6).sqrt()
    hidden = 1 - mask.cells.flatten(1)
    loss = (((guess - true) ** 2).mean(2) * hidden).sum() / hidden.sum()
    loss.backward()
    return {"loss": loss.detach(), **gradients(SimpleNamespace(encoder=encoder, decoder=decoder))}


def gradients(mae):
    return {
        f"{part}.{name}": value.grad
        for part in ("encoder", "decoder")
        for name, value in getattr(mae, part).named_parameters()
        if value.grad is not None
    }


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("case", ["resnet", "convnext"])
def test_loss_and_gradients_are_those_of_the_dense_computation(case, training):
    mae = spread(make(case)).double().train(training)
    images, noise = torch.randn(2, 3, 64, 64, dtype=torch.float64), torch.rand(2, 4)
    theirs = expected(mae, case, images, noise)
    loss = mae(images, noise)
    loss.backward()
    found = distances({"loss": loss.detach(), **gradients(mae)}, theirs)
    worst = max(found, key=found.get)
    assert found[worst] <= 1e-9, f"{worst}: {found[worst]:.1e}"
    assert sum(name.startswith("decoder.densify") for name in found) == (
        20 if case == "resnet" else 18
    )


@pytest.mark.parametrize("case", ["resnet", "convnext"])
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_hidden_pixels_change_no_prediction_and_visible_ones_do(case, training):
    mae = spread(make(case))
    images, noise = torch.randn(2, 3, 64, 64), torch.rand(2, 4)
    ids = mae._choose(images, noise)

    def predict(changed):
        twin = copy.deepcopy(mae).train(training)
        with torch.no_grad():
            return twin._predict(changed, ids)[0]

    hidden = torch.ones(2, 4).scatter(1, ids[0], 0).view(2, 1, 2, 2).repeat_interleave(32, 2)
    hidden = hidden.repeat_interleave(32, 3)
    before = predict(images)
    assert before.isfinite().all() and before.std() > 1e-3
    noisy = torch.randn_like(images)
    assert torch.equal(before, predict(torch.where(hidden.bool(), 1e4 * noisy, images)))
    assert not torch.allclose(before, predict(torch.where(hidden.bool(), images, noisy)))


@pytest.mark.parametrize(
    "case",
    [
        pytest.param(
            case, marks=[pytest.mark.slow] * (case not in ("resnet", "convnext", "regnety"))
        )
        for case in NETWORKS
    ],
)
def test_a_cnn_gets_it_by_default_over_four_maps_and_every_weight_has_a_gradient(case):
    mae = make(case, decoder_dim=None)
    assert isinstance(mae.decoder, UNetDecoder)
    assert mae.decoder.describe() == f"UNet of width {mae.decoder.dim} over 4 maps"
    images = torch.randn(2, 3, 64, 64)
    seen = mae.hiding(mae.encoder, images, *mae._choose(images, None))
    assert [features.shape[2] for features in seen] == [2, 4, 8, 16]
    assert seen[0].shape[1] == NETWORKS[case][3]
    batch_norm = any(isinstance(m, nn.BatchNorm2d) for m in mae.encoder.modules())
    assert all(isinstance(part.norm, nn.BatchNorm2d) == batch_norm for part in mae.decoder.densify)
    mae(images).backward()
    without = [n for n, p in mae.named_parameters() if p.requires_grad and p.grad is None]
    assert not without
    keys = timm.create_model(NETWORKS[case][0], num_classes=0, **NETWORKS[case][1]).state_dict()
    assert mae.encoder.state_dict().keys() == keys.keys()


def test_whoever_asks_for_a_transformer_gets_it():
    assert make("resnet", decoder="transformer", decoder_depth=2).decoder.kind == "transformer"
    # A depth is the transformer's: configs that give one mean what they meant.
    assert make("resnet", decoder_depth=1).decoder.kind == "transformer"
    strided = {**NETWORKS["resnet"][1], "output_stride": 8}
    mae = MAE("resnet10t", 0.5, image_size=64, backbone_args=strided)
    assert mae.decoder.describe().endswith("over 3 maps")  # strides 8, 4 and 2


BAD = {
    "decoder must be unet or transformer, got 'u-net'": {"decoder": "u-net"},
    "has a block for each doubling of the size, got decoder_depth=2": {
        "decoder": "unet",
        "decoder_depth": 2,
    },
    "backbone vit_tiny_patch16_224 .VisionTransformer. has none; leave decoder out": {
        "decoder": "unet",
        "backbone": "vit_tiny_patch16_224",
    },
}


@pytest.mark.parametrize(("message", "options"), BAD.items(), ids=BAD)
def test_what_cannot_be_is_refused_in_one_line(message, options):
    with pytest.raises(ValueError, match=message) as error:
        MAE(**{"backbone": "resnet10t", "image_size": 64, **options})
    assert "\n" not in str(error.value)


def test_stages_that_are_no_modules_leave_the_transformer():
    with torch.device("meta"):
        assert finer_stages(timm.create_model("hrnet_w18_small", num_classes=0)) == []
    with pytest.raises(ValueError, match="MambaOut puts the channels of its features last"):
        MAE("test_mambaout", 0.5, image_size=64)


def fit(mae, folder, epochs, ckpt_path=None):
    last = ModelCheckpoint(folder, "last", enable_version_counter=False)
    trainer = pl.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        logger=False,
        default_root_dir=folder,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[last],
    )
    trainer.fit(mae, Data(64), ckpt_path=ckpt_path)


def test_a_run_resumes_from_its_checkpoint_and_reconstructs(tmp_path, caplog):
    options = {"scale_lr": False, "lr": 1e-3}
    mae = make("resnet", **options)
    with caplog.at_level("INFO"):
        fit(mae, tmp_path, 2)
    assert f"UNet of width 64 over 4 maps): {mae.decoder_share:.0%} of the compute" in caplog.text
    loaded = MAE.load_from_checkpoint(tmp_path / "last.ckpt", weights_only=True)
    images, noise = Data(64).images[:4], torch.rand(4, 4)
    one, other = (each.eval().reconstruct(images, noise) for each in (mae, loaded))
    assert torch.equal(one.predicted, other.predicted)
    places = ~one.hidden.unsqueeze(1).expand_as(images)
    assert torch.equal(one.predicted[places], images[places])
    assert not torch.equal(one.predicted, images)
    resumed = make("resnet", **options)
    fit(resumed, tmp_path, 3, tmp_path / "last.ckpt")
    for name, value in resumed.decoder.named_parameters():
        assert not torch.equal(value, mae.decoder.get_parameter(name)), name
