"""Weights of any origin: what the line says, what the network answers, and what is refused."""

import argparse
import json
import pickle

import pytest
import timm
import torch
import torchvision
from safetensors.torch import save_file
from torch import nn

from litcam.lightning_modules import MAE, Classifier
from litcam.lightning_modules.weights import guessing, load_weights, read_state_dicts

TINY = {"img_size": 32, "patch_size": 8, "depth": 2}
VIT = "vit_tiny_patch16_224"


def vit(num_classes=5, **kwargs):
    return timm.create_model(VIT, num_classes=num_classes, **TINY, **kwargs)


def state(seed=0, num_classes=5):
    """Of a network of random numbers that is told from any other."""
    torch.manual_seed(seed)
    model = vit(num_classes)
    for parameter in model.parameters():
        nn.init.normal_(parameter)
    return model.state_dict()


def same(model, tensors):
    own = model.state_dict()
    return own.keys() == tensors.keys() and all(own[k].equal(v) for k, v in tensors.items())


# What is saved, of which the first network is the one that is to be loaded.
LAYOUTS = {
    "plain": lambda right, wrong: right,
    "timm train.py": lambda right, wrong: {
        "epoch": 3,
        "arch": VIT,
        "state_dict": wrong,
        "optimizer": {"state": {0: {"exp_avg": torch.zeros(2)}}, "param_groups": [{"lr": 0.1}]},
        "version": 2,
        "args": argparse.Namespace(lr=0.1),
        "state_dict_ema": right,
    },
    "torchvision's recipes": lambda right, wrong: {"model": wrong, "model_ema": prefixed(right)},
    "DeiT": lambda right, wrong: {"model": right},
    "DINO": lambda right, wrong: {
        "student": prefixed(wrong, "module.backbone."),
        "teacher": {**prefixed(right, "backbone."), "head.mlp.0.weight": torch.zeros(3)},
        "epoch": 7,
    },
    "distributed and compiled": lambda right, wrong: prefixed(right, "module._orig_mod."),
    "another LightningModule": lambda right, wrong: {
        "pytorch-lightning_version": "2.6.6",
        "state_dict": {**prefixed(right, "net.trunk."), "loss.weight": torch.zeros(5)},
        "optimizer_states": [{"state": {}}],
    },
}


def prefixed(tensors, prefix="module."):
    return {f"{prefix}{key}": value for key, value in tensors.items()}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(layout, tmp_path):
    right, model = state(), vit()
    torch.save(LAYOUTS[layout](right, state(1)), tmp_path / "weights.pth")
    load_weights(model, tmp_path / "weights.pth")
    assert same(model, right)


def test_the_line_says_what_was_loaded_and_left(tmp_path, caplog):
    saved = LAYOUTS["another LightningModule"](state(num_classes=7), None)
    torch.save(saved, tmp_path / "last.ckpt")
    with caplog.at_level("INFO"):
        load_weights(vit(5), tmp_path / "last.ckpt")
    assert caplog.messages == [
        f"30 of 32 tensors loaded from {tmp_path / 'last.ckpt'}; `state_dict`, names after "
        "`net.trunk.`; fresh: head.bias, head.weight; 3 of the file left out"
    ]


@pytest.mark.parametrize("kind", ["safetensors", "bin", "parts", "timm's folder"])
def test_folders(kind, tmp_path):
    right, model = state(), vit()
    if kind == "timm's folder":
        timm.models.save_for_hf(_with(right), tmp_path, model_config={"num_classes": 5})
    elif kind == "safetensors":
        save_file(right, tmp_path / "model.safetensors")
    elif kind == "bin":
        torch.save(right, tmp_path / "pytorch_model.bin")
    else:
        names = {key: f"model-{place % 2}.safetensors" for place, key in enumerate(right)}
        for part in set(names.values()):
            save_file({k: v for k, v in right.items() if names[k] == part}, tmp_path / part)
        index = tmp_path / "model.safetensors.index.json"
        index.write_text(json.dumps({"weight_map": names}))
    load_weights(model, tmp_path)
    assert same(model, right)


def _with(tensors):
    model = vit()
    model.load_state_dict(tensors)
    return model


# torchvision's name, timm's, and arguments of both to be quick
TWINS = [
    ("resnet34", "resnet34"),
    ("vgg16", "vgg16"),
    ("vgg11_bn", "vgg11_bn"),
    ("efficientnet_b0", "efficientnet_b0"),
    ("densenet121", "densenet121"),
    ("convnext_tiny", "convnext_tiny"),
    ("vit_b_32", "vit_base_patch32_224"),
    ("swin_t", "swin_tiny_patch4_window7_224"),
]


@pytest.mark.slow
@pytest.mark.parametrize(("theirs", "ours"), TWINS)
def test_files_of_torchvision_give_torchvisions_answers(theirs, ours, tmp_path, caplog):
    torch.manual_seed(0)
    original = torchvision.models.get_model(theirs, num_classes=10)
    _spread(original)
    torch.save(original.state_dict(), tmp_path / "weights.pth")
    model = timm.create_model(ours, num_classes=10)
    with caplog.at_level("INFO"):
        load_weights(model, tmp_path / "weights.pth")
    images = torch.randn(2, 3, 224, 224)
    with torch.no_grad():
        expected, found = original.eval()(images), model.eval()(images)
    assert expected.std() > 1e-3
    assert (expected - found).abs().max() < 1e-4 * expected.abs().max()
    assert "fresh" not in caplog.text

    # the head of another data set
    other = timm.create_model(ours, num_classes=3)
    load_weights(other, tmp_path / "weights.pth")
    with torch.no_grad():
        features = [each.eval().forward_features(images) for each in (model, other)]
    assert torch.equal(*features)


@torch.no_grad()
def _spread(model):
    """Statistics and scales as after a training: fresh ones are the same everywhere."""
    for name, tensor in model.state_dict().items():
        if not tensor.ndim:
            continue
        if name.endswith("running_var"):
            tensor.uniform_(0.5, 1.5)
        elif name.endswith("running_mean") or tensor.shape[0] == 10:
            tensor.normal_(std=0.1)
        elif name.endswith(("layer_scale", "relative_position_bias_table")):
            tensor.normal_()


def test_a_network_of_torchvisions_that_computes_otherwise_is_refused(tmp_path):
    torch.manual_seed(0)
    original = torchvision.models.mobilenet_v3_large(num_classes=10)
    _spread(original)
    for module in original.modules():  # where eps counts
        if isinstance(module, nn.BatchNorm2d):
            module.running_var.uniform_(0.01, 0.05)
    torch.save(original.state_dict(), file := tmp_path / "weights.pth")
    message = r"torchvision's mobilenet_v3_large: answers .* backbone_args: {bn_eps: 0\.001}"
    with pytest.raises(ValueError, match=message):
        Classifier("mobilenetv3_large_100", 10, weights=str(file))
    module = Classifier(
        "mobilenetv3_large_100", 10, weights=str(file), backbone_args={"bn_eps": 0.001}
    )
    images = torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        expected, found = original.eval()(images), module.eval()(images)
    assert (expected - found).abs().max() < 1e-4 * expected.abs().max()


def test_widths_that_differ_are_no_twins(tmp_path):
    original = torchvision.models.regnet_y_800mf(num_classes=10)
    torch.save(original.state_dict(), file := tmp_path / "weights.pth")
    with pytest.raises(ValueError, match=r"weights .* do not fit regnety_008 \(\d+ missing: .*"):
        Classifier("regnety_008", 10, weights=str(file))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("made", "asked"), [("resnet18", "resnet34"), ("deit_tiny_patch16_224", "resnet18"),
                    ("vit_small_patch16_224", "vit_tiny_patch16_224"), ("regnety_002", "vgg11"),
                    ("mobilenetv3_small_100", "tf_efficientnet_lite0"),
                    ("efficientnet_b0", "mobilenetv3_large_100")]
)  # fmt: skip
def test_another_networks_weights_are_refused_with_the_network_they_fit(
    made, asked, tmp_path, monkeypatch
):
    monkeypatch.setattr(guessing, "SECONDS", 120)
    torch.save(
        timm.create_model(made, num_classes=3).state_dict(), file := tmp_path / "weights.pth"
    )
    with pytest.raises(ValueError, match=f"do not fit {asked} ") as raised:
        load_weights(timm.create_model(asked, num_classes=3), file)
    fitting = str(raised.value).rpartition("they fit ")[2]
    tensors = [timm.create_model(name, num_classes=3).state_dict() for name in (made, fitting)]
    assert tensors[0].keys() == tensors[1].keys()
    assert "\n" not in str(raised.value)


def test_unknown_names_in_the_right_order_are_taken_and_said(tmp_path, caplog):
    model = timm.create_model("resnet10t", num_classes=4)
    original = {k: torch.randn_like(v.float()) for k, v in model.state_dict().items()}
    foreign = {f"m{at}.{key.rpartition('.')[2]}": v for at, (key, v) in enumerate(original.items())}
    torch.save(foreign, tmp_path / "weights.pth")
    with caplog.at_level("INFO"):
        load_weights(model, tmp_path / "weights.pth")
    assert "by the order of its tensors, whose names are unknown" in caplog.text
    kept = model.state_dict()
    assert all(
        kept[key].equal(value) for key, value in original.items() if "num_batches" not in key
    )
    # A scale where a shift is to be fits by accident alone.
    swapped = {key.replace("bias", "scale"): value for key, value in foreign.items()}
    torch.save(swapped, tmp_path / "swapped.pth")
    with pytest.raises(ValueError, match="do not fit resnet10t"):
        load_weights(model, tmp_path / "swapped.pth")


def test_pretraining_goes_on_from_weights(tmp_path):
    right = state(num_classes=0)
    torch.save(right, tmp_path / "weights.pth")
    sizes = {"image_size": 32, "backbone_args": {"patch_size": 8, "depth": 2}}
    file = str(tmp_path / "weights.pth")
    mae = MAE(VIT, weights=file, decoder_dim=32, decoder_depth=1, **sizes)
    assert same(mae.encoder, right)
    # A config's `pretrained: true` asks for no hub where a file is given.
    mae = MAE(VIT, pretrained=True, weights=file, decoder_dim=32, decoder_depth=1, **sizes)
    assert same(mae.encoder, right)


@pytest.mark.parametrize("name", ["mobilenetv3_small_050", "efficientnet_lite0", "resnet10t"])
@pytest.mark.parametrize("linear_probe", [False, True])
def test_a_fresh_head_on_trained_features_begins_near_zero(name, linear_probe, tmp_path):
    torch.save(timm.create_model(name).state_dict(), file := tmp_path / "weights.pth")
    module = Classifier(name, 2, weights=str(file), linear_probe=linear_probe)
    weight, bias = module.backbone.get_classifier().parameters()
    assert not bias.any()
    assert 0.008 < weight.std() < 0.012


class Evil:
    def __reduce__(self):
        return print, ("run",)


def test_files_that_are_no_weights(tmp_path, capsys):
    torch.save(nn.Linear(2, 2), tmp_path / "module.pt")
    torch.save({"epoch": 3}, tmp_path / "numbers.pt")
    torch.save(state(), tmp_path / "whole.pt")
    (tmp_path / "half.pt").write_bytes((tmp_path / "whole.pt").read_bytes()[:2000])
    (tmp_path / "evil.pt").write_bytes(pickle.dumps(Evil()))
    (tmp_path / "text.safetensors").write_text("hello")
    (tmp_path / "empty").mkdir()
    outside = tmp_path / "outside"
    outside.mkdir()
    index = {"weight_map": {"a": "../whole.pt"}}
    (outside / "model.safetensors.index.json").write_text(json.dumps(index))
    for name, error, message in [
        ("none.pt", FileNotFoundError, "there is no such file or folder"),
        ("empty", FileNotFoundError, r"has none of model\.safetensors"),
        ("module.pt", ValueError, "may run code when it is loaded"),
        ("evil.pt", ValueError, "not a readable state dict"),
        ("numbers.pt", ValueError, "hold no tensors"),
        ("half.pt", ValueError, "damaged"),
        ("text.safetensors", ValueError, "not a readable state dict"),
        ("outside", ValueError, r"outside their folder: '\.\./whole\.pt'"),
    ]:
        with pytest.raises(error, match=message) as raised:
            read_state_dicts(tmp_path / name)
        assert name in str(raised.value)
        assert "\n" not in str(raised.value)
    assert not capsys.readouterr().out
