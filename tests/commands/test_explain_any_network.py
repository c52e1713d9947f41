"""`litcam explain --models` with networks and weights of any origin."""

import json
from pathlib import Path

import pytest
import timm
import torch
from PIL import Image

from litcam.commands.explaining.models import load_model
from litcam.lightning_modules import Classifier
from litcam.train import main

OWN = """
import torch
from torch import nn

def small():
    return nn.Sequential(nn.Conv2d(3, 8, 3, 2), nn.ReLU(), nn.Conv2d(8, 8, 3, 2), nn.ReLU(),
                         nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4))

def number():
    return 3
"""


@pytest.fixture(autouse=True)
def photo():
    noise = torch.randint(0, 255, (80, 80, 3), dtype=torch.uint8)
    Image.fromarray(noise.numpy()).save("photo.png")


def explain(*models, capsys):
    main(["explain", "photo.png", "--models", *models, "--out", "out"])
    return capsys.readouterr().out, json.loads(Path("out/explain.json").read_text())


def test_a_network_by_name_with_weights_of_a_file(capsys):
    network = timm.create_model("resnet10t", num_classes=5)
    torch.save({"state_dict": {f"model.{k}": v for k, v in network.state_dict().items()}}, "a.pth")
    made = load_model("resnet10t=a.pth", pretrained=False)
    assert made.trained
    assert made.has_classes
    own = made.network.state_dict()
    assert all(own[key].equal(value) for key, value in network.state_dict().items())
    out, record = explain("resnet10t=a.pth", capsys=capsys)
    assert "86 of 86 tensors loaded from a.pth; `state_dict`, names after `model.`" in out
    assert [cell["layer"] for cell in record] == ["layer4"]


def test_a_folder_as_timm_writes_them(capsys):
    network = timm.create_model("test_resnet", num_classes=3)
    network.pretrained_cfg["mean"] = (0.1, 0.2, 0.3)
    timm.models.save_for_hf(network, "net", model_config={"label_names": ["cat", "dog", "owl"]})
    made = load_model("net", pretrained=False)
    assert made.classes == ["cat", "dog", "owl"]
    assert made.config.mean == (0.1, 0.2, 0.3)
    assert made.network.get_classifier().weight.equal(network.get_classifier().weight)


@pytest.mark.filterwarnings("ignore")  # transformers' own, of its image processors
def test_a_folder_of_transformers(capsys):
    transformers = pytest.importorskip("transformers")
    config = transformers.ViTConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64,
        image_size=32, patch_size=8, id2label={0: "cat", 1: "dog"}, label2id={"cat": 0, "dog": 1},
    )  # fmt: skip
    transformers.ViTForImageClassification(config).save_pretrained("net")
    processor = transformers.ViTImageProcessor(size={"height": 32, "width": 32})
    processor.save_pretrained("net")
    _, record = explain("net", capsys=capsys)
    (cell,) = record
    assert cell["class_name"] in ("cat", "dog")
    assert cell["layer"].endswith("layernorm_before") or "norm" in cell["layer"]
    assert load_model("net", pretrained=False).image_size == (32, 32)


def test_ones_own_function(capsys):
    Path("nets_of_mine.py").write_text(OWN)
    _, record = explain("nets_of_mine:small", capsys=capsys)
    assert record[0]["class_name"].startswith("class ")


def test_a_checkpoint_with_an_equals_sign_is_a_file(capsys):
    """As ModelCheckpoint calls the best one."""
    module = Classifier("resnet10t", 3)
    stored = {"state_dict": module.state_dict(), "hyper_parameters": dict(module.hparams)}
    torch.save(stored, "best-epoch=003.ckpt")
    _, record = explain("best-epoch=003.ckpt", capsys=capsys)
    assert record[0]["model"] == "best-epoch=003"


@pytest.mark.parametrize(
    ("model", "line"),
    [
        ("resnet10t=none.pth", "weights none.pth: there is no such file or folder"),
        ("resnet10t=", "model resnet10t= lacks a file"),
        ("resnet10x=a.pth", "timm has no backbone 'resnet10x'; close: resnet10t"),
        ("empty", "the folder has no config.json of timm or transformers; write NAME=empty"),
        ("broken", "is no JSON object"),
        ("nowhere_to_be_found:small", "cannot import 'nowhere_to_be_found'"),
        ("more_nets:smal", "function of more_nets 'smal' does not exist; did you mean small"),
        ("more_nets:number", "gives int, not a torch.nn.Module"),
    ],
)
def test_what_is_no_network_is_one_line(model, line, capsys):
    Path("more_nets.py").write_text(OWN)
    Path("empty").mkdir()
    Path("broken").mkdir()
    Path("broken/config.json").write_text("[3")
    with pytest.raises(SystemExit):
        main(["explain", "photo.png", "--models", model])
    told = capsys.readouterr()
    assert line in told.out
    assert "Traceback" not in told.out + told.err
