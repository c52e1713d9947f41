"""`litcam export`: a run as timm's folder, read back by timm and by litcam itself."""

import json
import os
import re
import shutil
import sys
from pathlib import Path

import pytest
import timm
import torch
import yaml
from lightning.pytorch import Trainer, seed_everything
from lightning.pytorch.callbacks import EMAWeightAveraging, ModelCheckpoint
from safetensors.torch import load_file

from litcam.callbacks import GradCAM, Reconstructions, SafeCSVLogger
from litcam.commands.explaining.models import load_model
from litcam.datamodules import ImageNetDataModule
from litcam.datamodules.pixels.data_config import DataConfig
from litcam.datamodules.pixels.decode import decode
from litcam.datamodules.pixels.transforms import eval_transform, normalize
from litcam.lightning_modules import MAE, Classifier
from litcam.train import main

ODD = ["a | <b> `c`", 'Köter "Ωmega"\\*']
SMALL_VIT = {"img_size": 32, "patch_size": 8, "depth": 2}
SMALL_SWIN = {
    "window_size": 2, "embed_dim": 16, "depths": [1, 1, 1, 1],
    "num_heads": [1, 1, 2, 2],
}  # fmt: skip
ENCODERS = {
    "cnn": ("resnet10t", {"channels": [8, 16, 16, 24], "output_stride": 8}),
    "vit": ("vit_tiny_patch16_224", {"patch_size": 8, "depth": 2}),
    "swin": (
        "swin_tiny_patch4_window7_224",
        {**SMALL_SWIN, "patch_size": 2},
    ),
}


def pets():
    folder = os.environ.get("LITCAM_TEST_DATA", "")
    if not folder:
        pytest.skip("LITCAM_TEST_DATA is not set: no real photos here")
    return Path(folder) / "pets"


def train(module, folder, *callbacks, epochs=1, monitor="val/loss", **data):
    """A run of a few steps on real photos, as `litcam fit` leaves it but for its config."""
    seed_everything(0)
    logger = SafeCSVLogger(folder, name="experiment", version="version_0")
    place = Path(folder, "experiment", "version_0")
    checkpoints = place / "checkpoints"
    best = ModelCheckpoint(checkpoints, monitor=monitor, filename="best-{epoch:03d}")
    last = ModelCheckpoint(checkpoints, filename="last", enable_version_counter=False)
    images = ImageNetDataModule(
        pets(), image_size=32, batch_size=8, num_workers=0, images_per_class=8, **data
    )
    trainer = Trainer(
        accelerator="cpu", max_epochs=epochs, limit_val_batches=2, logger=logger,
        callbacks=[best, last, *callbacks], enable_progress_bar=False, enable_model_summary=False,
        log_every_n_steps=1,
    )  # fmt: skip
    trainer.fit(module, images)
    return place


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    module = Classifier("vit_tiny_patch16_224", 2, backbone_args=SMALL_VIT, warmup_epochs=0)
    callbacks = EMAWeightAveraging(decay=0.5), GradCAM(num_images=4)
    run = train(module, tmp_path_factory.mktemp("runs"), *callbacks, epochs=2, crop_pct=0.8)
    (run / "config.yaml").write_text("data: {root: /some/where/pets}\nnote: '``` <b>'\n")
    return run


@pytest.fixture
def run(trained, tmp_path):
    return Path(shutil.copytree(trained, tmp_path / "run"))


@pytest.fixture(scope="module")
def images():
    """Eight real photos, as a network of 32 pixels with ImageNet's mean and std takes them."""
    config = DataConfig((0.485, 0.456, 0.406), (0.229, 0.224, 0.225), 0.8, "bicubic")
    files = sorted((pets() / "val" / "cat").iterdir())[:4]
    files += sorted((pets() / "val" / "dog").iterdir())[:4]
    transform = eval_transform(32, config)
    photos = [transform(decode(file.read_bytes(), file.name)) for file in files]
    return normalize(torch.stack(photos), config)


def averaged(checkpoint):
    """The backbone's tensors, where Lightning's EMA puts the average."""
    stored = torch.load(checkpoint, weights_only=True)
    return {
        key.removeprefix("backbone."): value
        for key, value in stored["state_dict"].items()
        if key.startswith("backbone.")
    }


def read_back(folder):
    return timm.create_model(f"local-dir:{folder}", pretrained=True).eval()


@torch.inference_mode()
def test_timm_gives_the_logits_of_the_checkpoint(run, images, capsys):
    main(["export", str(run)])
    out = capsys.readouterr().out
    assert "averaged weights (EMA)" in out and "best val/loss" in out
    network = read_back(run / "exported")
    (best,) = run.glob("checkpoints/best-*.ckpt")
    original = timm.create_model("vit_tiny_patch16_224", num_classes=2, **SMALL_VIT).eval()
    original.load_state_dict(averaged(best))
    assert network(images).equal(original(images))
    raw = torch.load(best, weights_only=True)["current_model_state"]
    assert not raw["backbone.head.weight"].equal(network.head.weight)
    assert network.pretrained_cfg["label_names"] == ["cat", "dog"]
    told = timm.data.resolve_model_data_config(network)
    assert tuple(told["mean"]) == (0.485, 0.456, 0.406)
    assert tuple(told["std"]) == (0.229, 0.224, 0.225)
    assert (told["input_size"], told["crop_pct"], told["interpolation"]) == (
        (3, 32, 32), 0.8, "bicubic",
    )  # fmt: skip
    source = ("license", "tag", "url", "hf_hub_id")  # of timm's own weights, which these are not
    assert not any(network.pretrained_cfg.get(name) for name in source)


@torch.inference_mode()
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # transformers' own
def test_transformers_gives_them_as_well(run, images):
    transformers = pytest.importorskip("transformers")
    main(["export", str(run)])
    made = transformers.AutoModelForImageClassification.from_pretrained(run / "exported").eval()
    assert made(pixel_values=images).logits.equal(read_back(run / "exported")(images))
    assert made.config.id2label == {0: "cat", 1: "dog"}


def test_timms_own_transform_makes_the_same_images(run, images):
    from PIL import Image

    main(["export", str(run)])
    config = timm.data.resolve_model_data_config(read_back(run / "exported"))
    transform = timm.data.create_transform(**config)
    files = sorted((pets() / "val" / "cat").iterdir())[:4]
    theirs = torch.stack([transform(Image.open(file).convert("RGB")) for file in files])
    # Pillow and torch round differently; another crop, size or mean is ten times further.
    assert (theirs - images[:4]).abs().mean() < 0.02


def test_litcam_draws_the_same_map(run, capsys):
    main(["export", str(run)])
    photo = str(sorted((pets() / "val" / "dog").iterdir())[0])
    (best,) = run.glob("checkpoints/best-*.ckpt")
    main(["explain", photo, "--models", str(best), str(run / "exported")])
    first, second = json.loads(Path("explained/explain.json").read_text())
    names = ("class_name", "probability", "map_max", "layer", "grid")
    assert [first[name] for name in names] == [second[name] for name in names]
    drawn = [Path("explained", each["file"]).read_bytes() for each in (first, second)]
    assert drawn[0] == drawn[1]


def test_the_card_tells_what_the_run_knows(run, capsys):
    main(["export", str(run)])
    text = (run / "exported" / "README.md").read_text()
    front = yaml.safe_load(text.split("---")[1])
    assert front["library_name"] == "timm" and "license" not in front
    rows = [line.split(",") for line in (run / "metrics.csv").read_text().splitlines()]
    (best,) = run.glob("checkpoints/best-*.ckpt")
    step = torch.load(best, weights_only=True)["global_step"] - 1
    places = {name: rows[0].index(name) for name in ("step", "val/loss", "val/ece")}
    (row,) = (r for r in rows[1:] if r[places["step"]] == str(step) and r[places["val/loss"]])
    assert f"| loss | {float(row[places['val/loss']]):.4g} |" in text
    assert f"| calibration error (15 bins) | {float(row[places['val/ece']]):.4g} |" in text
    assert "0. cat\n1. dog\n" in text
    assert "root: …/pets" in text and "/some/where" not in text
    assert re.search(r"^````yaml$", text, re.MULTILINE)  # longer than the config's own
    pictures = re.findall(r"!\[\]\((pictures/\d\.jpg)\)", text)
    assert len(pictures) == 4
    assert all((run / "exported" / picture).stat().st_size < 60_000 for picture in pictures)


def test_the_cards_own_code_runs(run, capsys, monkeypatch):
    main(["export", str(run), "--out", str(run / 'my "net"')])
    monkeypatch.chdir(run)
    shutil.copyfile(sorted((pets() / "val" / "dog").iterdir())[0], "photo.jpg")
    code = re.search(
        "```python\n(.+?)```", (run / 'my "net"' / "README.md").read_text(), re.DOTALL
    )[1]
    space = {}
    exec(code, space)
    assert space["names"] == ["cat", "dog"]
    assert space["probabilities"].shape == (1, 2)


def test_without_pictures_and_from_a_checkpoint_alone(run, tmp_path, capsys):
    shutil.copyfile(run / "checkpoints/last.ckpt", tmp_path / "alone.ckpt")
    main(["export", "alone.ckpt", "--out", "net"])
    assert sorted(path.name for path in Path("net").iterdir()) == [
        "README.md", "config.json", "model.safetensors",
    ]  # fmt: skip
    text = Path("net/README.md").read_text()
    assert "## Measured" not in text and "## How it was made" not in text
    main(["export", str(run), "--no_pictures", "--out", "bare"])
    assert (
        not Path("bare/pictures").exists() and "pictures/" not in Path("bare/README.md").read_text()
    )


def test_names_with_odd_characters(run, capsys):
    last = run / "checkpoints/last.ckpt"
    stored = torch.load(last, weights_only=True)
    stored["hyper_parameters"]["option_of_an_older_litcam"] = 0.9
    torch.save({**stored, "class_names": ODD}, last)
    main(["export", str(run), "--ckpt_path", "last"])
    assert read_back(run / "exported").pretrained_cfg["label_names"] == ODD
    assert load_model(str(run / "exported"), pretrained=False).classes == ODD
    text = (run / "exported/README.md").read_text()
    assert "0. a \\| &lt;b> \\`c\\`\n" in text


def test_a_folder_that_is_there_is_kept(run, capsys):
    main(["export", str(run), "--out", "net"])
    Path("net/README.md").write_text("mine")
    Path("net/notes.txt").write_text("mine as well")
    before = Path("net/config.json").read_bytes()
    with pytest.raises(SystemExit):
        main(["export", str(run), "--out", "net"])
    assert "folder" in (line := capsys.readouterr().err) and "add --overwrite" in line
    assert Path("net/README.md").read_text() == "mine"
    main(["export", str(run), "--out", "net", "--overwrite", "--no_pictures"])
    assert "The README.md that was there is" in capsys.readouterr().out
    assert Path("net/README.old.md").read_text() == "mine"
    assert Path("net/notes.txt").read_text() == "mine as well"
    assert Path("net/config.json").read_bytes() == before
    assert not Path("net/pictures").exists()  # of the older export
    Path("photos").mkdir()
    Path("photos/README.md").write_text("mine")
    with pytest.raises(SystemExit):
        main(["export", str(run), "--out", "photos", "--overwrite"])
    assert "holds no export" in capsys.readouterr().err
    assert [path.name for path in Path("photos").iterdir()] == ["README.md"]


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["rum"], "run rum does not exist; did you mean run?"),
        (["run/checkpoints/lost.ckpt"], "did you mean run/checkpoints/last.ckpt"),
        (["run", "--ckpt_path", "bset.ckpt"], "--ckpt_path bset.ckpt does not exist, nor in run"),
        (["run", "--ckpt_path", "half.ckpt"], "half.ckpt is damaged, or no checkpoint; the newest"),
        (["run/checkpoints/half.ckpt"], "is damaged"),
        (["empty"], "run empty has no checkpoint: it is on its way to its first one"),
        (["run/config.yaml"], "config.yaml is damaged, or no checkpoint"),
        (["run", "--out", "run/config.yaml"], "is a file; give a folder"),
        (["run", "--onx"], "option '--onx' does not exist; did you mean --onnx"),
        (["--onnx"], "the following arguments are required: run; see `litcam export --help`"),
    ],
)
def test_a_mistake_is_one_line(run, words, line, capsys):
    Path("empty/checkpoints").mkdir(parents=True)
    Path("empty/metrics.csv").write_text("epoch,step\n")
    whole = (run / "checkpoints/last.ckpt").read_bytes()
    (run / "checkpoints/half.ckpt").write_bytes(whole[: len(whole) // 2])
    before = sorted(Path().rglob("*"))
    with pytest.raises(SystemExit) as ended:
        main(["export", *words])
    said = capsys.readouterr().err
    assert ended.value.code == 2 and len(said.splitlines()) == 1
    assert line in said
    assert sorted(Path().rglob("*")) == before


@torch.inference_mode()
@pytest.mark.parametrize("family", ENCODERS)
def test_an_encoder_of_a_pretraining(family, images, tmp_path, capsys):
    backbone, options = ENCODERS[family]
    with torch.inference_mode(False):
        small = {"decoder_dim": 32, "decoder_depth": 1, "image_size": 32}
        module = MAE(backbone, backbone_args=options, **small)
        run = train(module, tmp_path, Reconstructions(num_images=2))
    main(["export", str(run)])
    network = read_back(run / "exported")
    assert network.num_classes == 0
    module.eval()
    assert network(images).equal(module.encoder(images))
    text = (run / "exported/README.md").read_text()
    assert "image-feature-extraction" in text and "% hidden" in text
    main(["export", str(run / "checkpoints/encoder.safetensors"), "--out", "again"])
    folders = run / "exported", Path("again")
    first, second = (load_file(folder / "model.safetensors") for folder in folders)
    assert first.keys() == second.keys()
    assert all(first[key].equal(second[key]) for key in first)


# Of the paper; as small as their arguments make them, which the folder has to keep.
NETWORKS = {
    "resnet34": {},
    "vgg16": {"mlp_ratio": 0.01},
    "mobilenetv3_large_100": {},
    "regnety_008": {},
    "efficientnet_b0": {},
    "vit_base_patch16_224": {"img_size": 32, "depth": 2, "global_pool": "avg"},
    "swin_base_patch4_window7_224": {"img_size": 32, "window_size": 2, "depths": [1, 1, 1, 1]},
}


def checkpoint_of(module, file):
    stored = {"state_dict": module.state_dict(), "hyper_parameters": dict(module.hparams)}
    facts = {"epoch": 3, "global_step": 40, "image_size": 32, "class_names": ["cat", "dog"]}
    torch.save({**stored, **facts}, file)


@torch.no_grad()
@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
def test_the_networks_of_the_paper(name, images, capsys):
    module = Classifier(name, 2, backbone_args=NETWORKS[name], channels_last=True)
    module.train()(images)  # statistics of BatchNorm that are not those of a fresh network
    checkpoint_of(module, "a.ckpt")
    main(["export", "a.ckpt", "--out", "net"])
    network = read_back("net")
    plain = Classifier(name, 2, backbone_args=NETWORKS[name]).eval()
    plain.load_state_dict(module.state_dict())
    assert network(images).equal(plain(images))
    assert "epoch 3" in capsys.readouterr().out
    again = Classifier(name, 2, weights="net", backbone_args=NETWORKS[name]).eval()
    assert again(images).equal(plain(images))


@torch.no_grad()
@pytest.mark.slow
@pytest.mark.parametrize("family", ENCODERS)
def test_onnx_gives_the_same_logits(family, images, capsys):
    runtime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    name, options = ENCODERS[family]
    sized = {} if family == "cnn" else {"img_size": 32}
    module = Classifier(name, 2, backbone_args={**options, **sized})
    module.train()(images)
    checkpoint_of(module, "a.ckpt")
    main(["export", "a.ckpt", "--out", "net", "--onnx"])
    last = capsys.readouterr().out.splitlines()[-1]
    assert "8 images of noise" in last
    assert last.removeprefix("ONNX: ") in Path("net/README.md").read_text()
    session = runtime.InferenceSession("net/model.onnx", providers=["CPUExecutionProvider"])
    expected = module.eval().backbone(images)
    for count in (8, 1, 3):
        (found,) = session.run(None, {"images": images[:count].numpy()})
        torch.testing.assert_close(torch.from_numpy(found), expected[:count], rtol=0, atol=1e-5)


@pytest.mark.slow
def test_onnx_is_compared_on_the_runs_own_photos(run, capsys):
    pytest.importorskip("onnxruntime")
    main(["export", str(run), "--onnx"])
    last = capsys.readouterr().out.splitlines()[-1]
    found = re.search(r"over 4 photos of the run they differ from PyTorch's by (\S+) at most", last)
    assert float(found[1]) < 1e-5
    main(["export", str(run), "--overwrite"])
    assert not (run / "exported/model.onnx").exists()  # whose weights might be older


def test_onnx_without_its_packages_is_one_line(run, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)  # as Python marks what is not there
    with pytest.raises(SystemExit):
        main(["export", str(run), "--onnx"])
    assert "pip install onnx onnxscript onnxruntime" in capsys.readouterr().err
    assert not (run / "exported").exists()
