"""`litcam explain` of encoders, which know no classes, and of what `litcam fit` wrote."""

import json
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import wandb
from lightning.pytorch import Trainer
from PIL import Image

from litcam.commands.explaining.models import load_model
from litcam.datamodules import ImageNetDataModule
from litcam.datamodules.pixels.data_config import DataConfig
from litcam.explain import CAM
from litcam.explain.comparison import explain_photos
from litcam.lightning_modules import MAE, Classifier
from litcam.lightning_modules.weights.saving import read_facts, save_encoder
from litcam.train import main

CHANNELS = '{"channels": [8, 16, 16, 24], "output_stride": 8}'
SMALL = [
    "--trainer.logger.offline=true",
    "--trainer.max_epochs=1",
    "--trainer.enable_progress_bar=false",
    "--data.num_train=8",
    "--data.num_val=8",
    "--data.batch_size=4",
    "--data.image_size=32",
    f"--model.backbone_args={CHANNELS}",
]


@pytest.fixture(autouse=True)
def photo():
    pixels = np.random.default_rng(0).integers(0, 256, (48, 48, 3), dtype=np.uint8)
    Image.fromarray(pixels).save("photo.png")


def record():
    return json.loads(Path("explained/explain.json").read_text())


def explain(*words):
    main(["explain", "photo.png", "--models", *map(str, words)])


@pytest.mark.slow
def test_what_fit_wrote_can_be_explained(capsys):
    fit = ["--model.decoder_dim=32", "--model.image_size=32"]
    main(["fit", "--config", "demo_pretrain.yaml", *SMALL, *fit])
    wandb.finish()
    main(["fit", "--config", "demo.yaml", *SMALL])
    (encoder,) = Path("runs").glob("*/version_0/checkpoints/encoder.safetensors")
    (pretrained,) = encoder.parent.glob("*.ckpt")
    trained = Path("runs/demo/version_0/checkpoints/last.ckpt")
    capsys.readouterr()
    explain(encoder, pretrained, trained, "--methods", "eigencam", "gradcam", "--classes", "true",
            "predicted")  # fmt: skip
    lines = capsys.readouterr().out.splitlines()
    assert len([line for line in lines if "gradcam explain a class" in line]) == 2, lines
    found = record()
    assert [at["class_name"] for at in found[:2]] == ["no class", "no class"]
    # The checkpoint and the file beside it are the same network.
    assert found[0]["map_max"] == pytest.approx(found[1]["map_max"], rel=1e-5)
    assert found[0]["model"] != found[1]["model"]
    assert [at["method"] for at in found[2:]] == ["eigencam", "gradcam"]
    assert found[2]["class_name"] in load_model(str(trained), pretrained=False).classes
    assert load_model(str(trained), pretrained=False).image_size == (32, 32)
    encoder.rename("moved.safetensors")
    explain("moved.safetensors", "--methods", "eigencam")
    assert record()[0]["map_max"] == found[0]["map_max"]


def test_an_encoder_is_explained_by_its_activations_alone(capsys):
    torch.manual_seed(0)
    network = timm.create_model("test_vit", num_classes=0, img_size=64).eval()
    facts = {"backbone": "test_vit", "image_size": 64, "mean": [0.1] * 3, "std": [0.3] * 3}
    file = save_encoder(network, "encoder.safetensors", facts)
    assert read_facts(file) == facts
    explain(file, "test_vit", "--methods", "gradcam", "eigencam", "--classes", "3")
    out = capsys.readouterr().out
    assert (
        "left out: encoder: methods gradcam explain a class, and an encoder knows none; use "
        "eigencam, or fine-tune it first\n"
    ) in out
    first, *rest = record()
    assert (first["class"], first["probability"], first["asked"]) == (None, None, "")
    assert first["layer"].startswith("blocks")
    assert first["grid"] == [4, 4]
    assert [(at["model"], at["method"]) for at in rest] == [
        ("test_vit", "gradcam"),
        ("test_vit", "eigencam"),
    ]
    model = load_model(str(file), pretrained=False)
    assert model.config.mean == (0.1, 0.1, 0.1)
    assert torch.equal(model.network.state_dict()["pos_embed"], network.state_dict()["pos_embed"])


def test_an_encoder_with_gradient_methods_only_is_refused(capsys):
    save_encoder(
        timm.create_model("test_resnet", num_classes=0),
        "e.safetensors",
        {"backbone": "test_resnet"},
    )
    with pytest.raises(SystemExit) as end:
        explain("e.safetensors")
    assert end.value.code == 2
    assert "use eigencam, or fine-tune it first" in capsys.readouterr().out


def test_an_encoder_that_does_not_tell_its_network(capsys):
    network = timm.create_model("test_resnet", num_classes=0)
    save_encoder(network, "mute.safetensors")
    save_encoder(network, "wrong.safetensors", {"backbone": "test_vit"})
    save_encoder(network, "told.safetensors")
    Path("told.json").write_text('{"backbone": "test_resnet", "image_size": 96}')
    explain("mute.safetensors", "wrong.safetensors", "told.safetensors", "--methods", "eigencam")
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3
    assert "does not tell which network it is of; fine-tune it first" in lines[0]
    assert "wrong.safetensors" in lines[1]
    assert "do not fit" in lines[1]
    assert [at["model"] for at in record()] == ["told"]


@pytest.mark.parametrize("name", ["test_resnet", "test_vit"])
def test_all_methods_and_classes_come_out_of_one_forward(name):
    torch.manual_seed(0)
    network, image = timm.create_model(name).eval(), torch.randn(1, 3, 160, 160)
    calls = []
    hook = network.register_forward_hook(lambda *args: calls.append(1))
    methods = ["gradcam", "hirescam", "eigencam"]
    ((cells, problems),) = explain_photos(
        CAM(network), image, ["4", "7"], methods, resolves=[lambda word, _: (int(word), word)]
    )
    hook.remove()
    assert len(calls) == 1
    assert not problems
    assert [(c.number, c.method) for c in cells] == [(n, m) for n in (4, 7) for m in methods]
    for cell in cells:
        with CAM(network, cell.method) as cam, torch.no_grad():
            network(image)
        assert torch.equal(cell.heatmap, cam.heatmaps([cell.number])[0])


def test_another_method_of_the_same_forward():
    network = timm.create_model("test_resnet").eval()
    with CAM(network) as cam, torch.no_grad():
        network(torch.randn(2, 3, 64, 64))
    assert torch.equal(cam([1, 2], method="gradcam"), cam([1, 2]))
    assert not torch.equal(cam([1, 2], method="eigencam"), cam([1, 2]))
    assert cam.heatmaps([1, 2], (8, 8), method="eigencam").shape == (2, 8, 8)
    with pytest.raises(ValueError, match="did you mean gradcam"):
        cam([1, 2], method="gradcan")


def test_slow_methods_without_a_bar_of_their_own(capfd):
    explain("test_resnet", "--methods", "gradcam", "scorecam", "ablationcam", "--classes", "3")
    captured = capfd.readouterr()
    assert captured.out == "3 heatmaps: explained/figure.png\n"
    assert "it/s" not in captured.err
    assert [at["method"] for at in record()] == ["gradcam", "scorecam", "ablationcam"]
    assert len({at["layer"] for at in record()}) == 1


def test_weights_of_another_number_of_classes_keep_their_own():
    assert not load_model("vit_small_patch16_224.dino", pretrained=False).has_classes
    model = load_model("vit_tiny_patch16_224.augreg_in21k", pretrained=False)
    assert model.network.num_classes == len(model.classes) == 21843


@pytest.mark.parametrize("module", ["Classifier", "MAE"])
def test_a_checkpoint_tells_how_its_images_were_made(module, photos):
    """Not as timm's tag of the network has it: with another crop, and with what the data say."""
    options = {"backbone_args": {"patch_size": 8, "depth": 1}}
    if module == "MAE":
        made = MAE(
            "vit_tiny_patch16_224", image_size=32, decoder_dim=32, decoder_depth=1, **options
        )
    else:
        options["backbone_args"]["img_size"] = 32
        made = Classifier("vit_tiny_patch16_224", 2, **options)
    data = ImageNetDataModule(photos, image_size=32, batch_size=4, crop_pct=0.8, num_workers=0)
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = Trainer(accelerator="cpu", limit_val_batches=1, enable_checkpointing=False, **quiet)
    trainer.validate(made, data, verbose=False)
    trainer.save_checkpoint("a.ckpt")
    config = load_model("a.ckpt", pretrained=False).config
    assert config == DataConfig((0.485, 0.456, 0.406), (0.229, 0.224, 0.225), 0.8, "bicubic")
