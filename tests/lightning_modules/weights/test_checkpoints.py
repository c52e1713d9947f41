"""Encoders from files: into any head and image size, or refused by name."""

import numpy as np
import pytest
import timm
import torch
from scipy.interpolate import RectBivariateSpline

from litcam.lightning_modules import MAE, Classifier
from litcam.lightning_modules.weights import load_weights
from litcam.lightning_modules.weights.saving import save_encoder

SWIN = {"embed_dim": 16, "depths": (1, 1, 1, 1), "num_heads": (1, 1, 2, 2)}
# name, arguments of the encoder, arguments of the classifier at another image size
FAMILIES = {
    "cnn": ("resnet10t", {"channels": (8, 16, 16, 24)}, {"channels": (8, 16, 16, 24)}),
    "vit": (
        "vit_tiny_patch16_224",
        {"img_size": 32, "patch_size": 8, "depth": 2},
        {"img_size": 48, "patch_size": 8, "depth": 2},
    ),
    "swin": (
        "swin_tiny_patch4_window7_224",
        {"img_size": 32, "window_size": 2, **SWIN},
        {"img_size": 96, "window_size": 3, **SWIN},
    ),
    "convnext": (
        "convnext_atto",
        {"depths": (1, 1, 1, 1), "dims": (8, 8, 16, 16)},
        {"depths": (1, 1, 1, 1), "dims": (8, 8, 16, 16)},
    ),
}


@pytest.fixture(params=FAMILIES)
def family(request):
    torch.manual_seed(0)
    return FAMILIES[request.param]


@pytest.mark.parametrize("num_classes", [0, 7, 1000])
def test_encoder_goes_into_any_head_and_size(family, num_classes, tmp_path, caplog):
    name, small, large = family
    encoder = timm.create_model(name, num_classes=num_classes, **small)
    for key, value in encoder.state_dict().items():
        if "pos_embed" in key or "relative_position_bias_table" in key:
            value.fill_(0.5)  # what any interpolation leaves as it is
    file = save_encoder(encoder, tmp_path / "encoder.safetensors")
    with caplog.at_level("INFO"):
        module = Classifier(name, 7, weights=str(file), backbone_args=large)
    heads = (encoder.pretrained_cfg["classifier"],)
    for key, value in module.backbone.state_dict().items():
        source = encoder.state_dict().get(key)
        if key.startswith(heads):
            if num_classes == 7:  # a head of the same size is one to go on with
                assert source.equal(value)
            else:
                assert source is None or source.shape != value.shape
        elif source.shape == value.shape:
            assert torch.equal(source, value), key
        else:
            assert "pos_embed" in key or "relative_position_bias_table" in key
            torch.testing.assert_close(value, torch.full_like(value, 0.5), atol=1e-4, rtol=0)
    own = len(module.backbone.state_dict())
    loaded = own if num_classes == 7 else own - 2
    assert f"{loaded} of {own} tensors loaded from {file}" in caplog.text
    assert ("fresh: " in caplog.text) == (num_classes != 7)


def test_same_size_gives_the_same_features(family, tmp_path):
    name, small, _ = family
    encoder = timm.create_model(name, num_classes=0, **small).eval()
    file = save_encoder(encoder, tmp_path / "encoder.safetensors")
    backbone = Classifier(name, 5, weights=str(file), backbone_args=small).backbone.eval()
    images = torch.randn(2, 3, 32, 32)
    assert torch.equal(encoder.forward_features(images), backbone.forward_features(images))


@pytest.mark.parametrize("pools", [("token", "avg"), ("avg", "token")])
def test_another_pooling_keeps_its_fresh_norm(pools, tmp_path, caplog):
    name, small, _ = FAMILIES["vit"]
    encoder = timm.create_model(name, num_classes=0, global_pool=pools[0], **small)
    file = save_encoder(encoder, tmp_path / "encoder.safetensors")
    with caplog.at_level("INFO"):
        Classifier(name, 5, weights=str(file), backbone_args={**small, "global_pool": pools[1]})
    fresh = "fc_norm.weight" if pools[1] == "avg" else "norm.weight"
    assert f" {fresh}" in caplog.text


def test_partial_and_foreign_files_are_refused_with_names(tmp_path):
    name, small, _ = FAMILIES["cnn"]
    model = timm.create_model(name, num_classes=5, **small)
    tensors = model.state_dict()
    before = {key: value.clone() for key, value in tensors.items()}
    torch.save({k: v for k, v in tensors.items() if k != "layer1.0.conv1.weight"}, tmp_path / "a")
    torch.save({**tensors, "decoder.weight": torch.zeros(1)}, tmp_path / "b")
    torch.save({**tensors, "layer1.0.conv1.weight": torch.zeros(2, 2)}, tmp_path / "c")
    for file, message in [
        ("a", r"1 missing: layer1\.0\.conv1\.weight"),
        ("b", r"1 unexpected: decoder\.weight"),
        ("c", r"1 misshapen: layer1\.0\.conv1\.weight \(2, 2\) for \(8, 64, 3, 3\)"),
    ]:
        with pytest.raises(ValueError, match=message):
            load_weights(model, tmp_path / file)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_another_architecture_is_refused(tmp_path):
    name, small, _ = FAMILIES["cnn"]
    file = save_encoder(timm.create_model(name, **small), tmp_path / "encoder.safetensors")
    for other in ("vit", "swin", "convnext"):
        with pytest.raises(ValueError, match="do not fit") as raised:
            Classifier(FAMILIES[other][0], 5, weights=str(file), backbone_args=FAMILIES[other][1])
        assert "\n" not in str(raised.value)


def test_swins_bias_table_is_resampled_along_the_right_axis(tmp_path):
    """A bias that grows with the vertical distance still does, and with nothing else."""
    name, small, large = FAMILIES["swin"]
    encoder = timm.create_model(name, num_classes=0, **small)
    table = encoder.layers[0].blocks[0].attn.relative_position_bias_table  # 3 × 3 distances
    with torch.no_grad():
        table.copy_(torch.arange(3.0).repeat_interleave(3)[:, None].expand_as(table))
    file = save_encoder(encoder, tmp_path / "encoder.safetensors")
    backbone = Classifier(name, 5, weights=str(file), backbone_args=large).backbone
    attention = backbone.layers[0].blocks[0].attn
    grown = attention.relative_position_bias_table.detach().view(5, 5, -1)[..., 0]
    assert (grown.diff(dim=0) > -1e-4).all()
    assert grown[:, 0].tolist()[::2] == pytest.approx([0, 1, 2], abs=1e-3)
    torch.testing.assert_close(grown, grown[:, :1].expand(5, 5))


def test_a_swin_pretrained_with_windows_of_6_goes_on_with_7(tmp_path):
    """Distances of the small window are spread geometrically until they span the large one."""
    small = {"embed_dim": 16, "depths": (1, 1, 1, 1), "num_heads": (1, 2, 2, 4)}
    name = FAMILIES["swin"][0]
    mae = MAE(name, image_size=192, backbone_args={"window_size": 6, **small})
    file = save_encoder(mae.encoder, tmp_path / "encoder.safetensors")
    backbone = Classifier(name, 5, weights=str(file), backbone_args=small).backbone
    (growth,) = (r.real for r in np.roots([1, 1, 1, 1, 1 - 6]) if r.real > 0 and abs(r.imag) < 1e-9)
    ahead = np.cumsum(growth ** np.arange(5))  # 1 to 6 in five steps
    known, wanted = np.concatenate([-ahead[::-1], [0], ahead]), np.arange(-6, 7)
    for stage, heads in enumerate(small["num_heads"]):
        key = f"layers.{stage}.blocks.0.attn.relative_position_bias_table"
        table = mae.encoder.get_parameter(key).detach().view(11, 11, heads)
        found = backbone.get_parameter(key).detach().view(13, 13, heads)
        for head in range(heads):
            spline = RectBivariateSpline(known, known, table[..., head].numpy(), kx=1, ky=1)
            expected = torch.from_numpy(spline(wanted, wanted)).float()
            torch.testing.assert_close(found[..., head], expected, atol=1e-4, rtol=0)
    kept = {k: v for k, v in mae.encoder.state_dict().items() if "bias_table" not in k}
    assert all(torch.equal(value, backbone.state_dict()[key]) for key, value in kept.items())
