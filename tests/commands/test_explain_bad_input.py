"""`litcam explain` and what comes its way: one line each, and the rest of the work is done."""

import json
import re
import time
from pathlib import Path

import lightning as L
import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from litcam.commands.explaining import results as explain_results
from litcam.commands.explaining.models import load_model, name_models
from litcam.lightning_modules import Classifier
from litcam.train import main

RGB = np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)
PHOTO = Image.fromarray(RGB)


@pytest.fixture
def explain(capsys):
    """Runs the command; gives its lines, what was recorded, and the exit code."""

    def explain(*words, out="explained"):
        code = 0
        try:
            main(["explain", *map(str, words), "--out", out])
        except SystemExit as end:
            code = end.code
        said = capsys.readouterr()
        assert "Traceback" not in said.err
        file = Path(out, "explain.json")
        record = json.loads(file.read_text()) if file.is_file() else []
        for at in record:
            with Image.open(Path(out, at["file"])) as image:
                image.verify()
        assert not list(Path().rglob("*.partial"))
        return (said.out + said.err).splitlines(), record, code

    return explain


def with_transparency():
    image = PHOTO.convert("P")
    image.info["transparency"] = 0
    return image


PHOTOS = {
    "20_pixels.png": PHOTO.resize((20, 20)),
    "1_pixel.png": PHOTO.resize((1, 1)),
    "strip.png": PHOTO.resize((900, 3)),
    "grey.jpg": PHOTO.convert("L"),
    "16_bit.png": Image.fromarray(RGB[..., 0].astype(np.uint16) * 257),
    "transparent.png": PHOTO.convert("RGBA"),
    "grey_transparent.png": PHOTO.convert("LA"),
    "palette.png": with_transparency(),
    "cmyk.jpg": PHOTO.convert("CMYK"),
    "still.gif": PHOTO.convert("P"),
    "really_a_png.jpg": PHOTO,
}


@pytest.mark.parametrize("name", PHOTOS)
def test_any_photo(name, explain):
    PHOTOS[name].save(name, "PNG" if name.startswith("really") else None)
    lines, record, code = explain(name, "--models", "test_resnet")
    assert lines == ["1 heatmaps: explained/figure.png"]
    assert record[0]["photo"] == name
    assert code == 0


def test_an_animated_gif_is_its_first_frame(explain):
    other = PHOTO.rotate(90)
    PHOTO.save("moving.gif", save_all=True, append_images=[other, other])
    PHOTO.save("still.gif")
    lines, record, _ = explain("moving.gif", "still.gif", "--models", "test_resnet")
    assert lines == ["2 heatmaps: explained/figure.png"]
    assert record[0]["map_max"] == record[1]["map_max"]


def test_20_megapixels(explain):
    image = Image.new("RGB", (5000, 4000), "teal")
    ImageDraw.Draw(image).ellipse((1000, 1000, 3000, 3000), fill="orange")
    image.save("large.jpg", quality=50)
    start = time.monotonic()
    lines, _, _ = explain("large.jpg", "--models", "test_resnet")
    assert lines == ["1 heatmaps: explained/figure.png"]
    assert time.monotonic() - start < 30
    with Image.open("explained/figure.png") as figure:
        assert figure.width < 1000


def test_what_is_no_photo_is_left_out_once(explain):
    PHOTO.save("whole.jpg", quality=95)
    Path("text.jpg").write_text("hello")
    Path("empty.jpg").write_bytes(b"")
    Path("truncated.jpg").write_bytes(Path("whole.jpg").read_bytes()[:300])
    Path("empty").mkdir()
    photos = ["text.jpg", "empty.jpg", "truncated.jpg", "empty", "none.jpg", "whole.jpg"]
    lines, record, code = explain(*photos, "--models", "test_resnet", "test_vit")
    assert [at["photo"] for at in record] == ["whole.jpg", "whole.jpg"]
    for name in photos[:-1]:
        assert len([line for line in lines if name in line.replace(":", " ").split()]) == 1, lines
    assert len(lines) == 6
    assert code == 0


def test_a_folder_of_nothing_else(explain):
    Path("empty").mkdir()
    lines, record, code = explain("empty", "--models", "test_resnet")
    assert lines == ["litcam: folder empty holds no images"]
    assert (record, code) == ([], 2)
    assert not Path("explained").exists()


@pytest.fixture
def own_classes():
    """A checkpoint that knows three classes."""
    module = Classifier("test_resnet", 3)
    torch.save(
        {
            "state_dict": module.state_dict(),
            "hyper_parameters": dict(module.hparams),
            "class_names": ["cat", "dog", "10"],
            "image_size": 64,
        },
        "pets.ckpt",
    )
    return "pets.ckpt"


def test_models_with_different_classes_share_a_grid(own_classes, explain):
    PHOTO.save("a.png")
    models = [own_classes, "test_resnet"]
    classes = ["cat", "zebra", "10", "catt"]
    lines, record, code = explain("a.png", "--models", *models, "--classes", *classes)
    assert "left out: pets has no class 'zebra'; give a number, or predicted" in lines
    assert "left out: pets has no class 'catt'; did you mean cat?" in lines
    assert any("test_resnet has no class 'catt'; did you mean" in line for line in lines)
    found = [(at["model"], at["asked"], at["class"]) for at in record]
    # The class of that name, not of that number.
    assert found[:2] == [("pets", "cat", 0), ("pets", "10", 2)]
    assert [at[1] for at in found[2:]] == ["cat", "zebra", "10"]
    assert found[4][2] == 10
    with Image.open("explained/figure.png") as figure:
        pixels = np.asarray(figure)
    assert pixels.shape[1] == 4 * (224 + 4) + 4
    # No column for what no model has, and an empty cell for what one of them lacks.
    assert (pixels[60:200, 2 * 228 + 4 : 3 * 228] == 255).all()
    assert code == 0


def test_a_checkpoints_own_size_and_classes(own_classes):
    model = load_model(own_classes, pretrained=False)
    assert model.image_size == (64, 64)
    assert model.trained
    assert list(model.classes) == ["cat", "dog", "10"]


def test_true_is_the_folder_of_the_photo(own_classes, explain):
    for folder in ("cat", "dog", "10", "horse", "n02123045"):
        Path(folder).mkdir()
        PHOTO.save(Path(folder, "x.png"))
    photos = ["cat/x.png", "dog/x.png", "10/x.png", "horse/x.png"]
    lines, record, _ = explain(*photos, "--models", own_classes, "--classes", "true")
    assert [at["class_name"] for at in record] == ["cat", "dog", "10"]
    (line,) = [line for line in lines if line.startswith("left out")]
    assert "the photo's folder is 'horse', and pets has no such class" in line
    _, record, _ = explain(
        "n02123045/x.png", "cat/x.png", "--models", "test_resnet", "--classes", "true"
    )
    assert record[0]["class_name"] == "tabby cat"
    assert record[1]["class"] in range(281, 286)


class Evil:
    def __reduce__(self):
        return Path.touch, (Path("pwned"),)


class Stranger(L.LightningModule):
    def __init__(self):
        super().__init__()
        self.net = torch.nn.Linear(2, 2)


STRANGE = {
    "plain.pth": (torch.nn.Linear(2, 2).state_dict(), "has no state_dict"),
    "module.ckpt": (
        {"state_dict": Stranger().state_dict(), "hyper_parameters": {}},
        "of another LightningModule",
    ),
    "backbone.ckpt": (
        {"state_dict": {"backbone.x": torch.ones(1)}, "hyper_parameters": {"size": 3}},
        "of another LightningModule",
    ),
    "whole.pt": (torch.nn.Linear(2, 2), "may run code"),
    "evil.ckpt": ({"state_dict": Evil(), "hyper_parameters": {}}, "may run code"),
    "evil_options.ckpt": ({"state_dict": {}, "hyper_parameters": {"a": Evil()}}, "may run code"),
    "tensor.pt": (torch.ones(2), "it holds a Tensor"),
}


@pytest.mark.parametrize("name", STRANGE)
def test_a_file_of_another_program(name, explain):
    stored, reason = STRANGE[name]
    torch.save(stored, name)
    PHOTO.save("a.png")
    lines, record, code = explain("a.png", "--models", name, "test_resnet")
    assert len(lines) == 2
    assert lines[0].startswith(f"left out: model {name} is not a checkpoint of litcam (")
    assert reason in lines[0]
    assert [at["model"] for at in record] == ["test_resnet"]
    assert code == 0
    assert not Path("pwned").exists()


@pytest.mark.parametrize("name", ["text.ckpt", "text.safetensors", "text.pth"])
def test_a_file_that_is_no_model(name, explain):
    Path(name).write_text("hello")
    PHOTO.save("a.png")
    lines, record, code = explain("a.png", "--models", name)
    assert len(lines) == 2
    assert lines[0].startswith("left out: ")
    assert name in lines[0]
    assert (record, code) == ([], 2)


@pytest.mark.parametrize("out", ["a.png", "a.png/deeper"])
def test_a_place_that_cannot_be_written(out, explain):
    PHOTO.save("a.png")
    lines, _, code = explain("a.png", "--models", "test_resnet", out=out)
    assert len(lines) == 1
    assert "a.png is a file; choose another folder" in lines[0]
    assert code == 2


def test_a_full_disk_is_one_line(explain, monkeypatch):
    def full(*args, **options):
        raise OSError(28, "No space left on device")

    PHOTO.save("a.png")
    monkeypatch.setattr(explain_results.Image.Image, "save", full)
    lines, _, code = explain("a.png", "--models", "test_resnet")
    assert len(lines) == 1
    assert "cannot be written (No space left on device)" in lines[0]
    assert code == 2


def test_files_of_one_name_do_not_overwrite_each_other(explain):
    for folder in ("a", "b"):
        Path(folder).mkdir()
        PHOTO.save(Path(folder, "x.png"))
    PHOTO.save("a/x.jpg")
    photos = ["a", "b", "a/x.png", "./a/x.png"]
    _, record, _ = explain(*photos, "--models", "test_resnet", "test_resnet", "--classes", "1", "1")
    assert [at["photo"] for at in record] == ["a/x.jpg", "a/x.png", "b/x.png"]
    files = [at["file"] for at in record]
    assert len(set(files)) == 3
    assert len(list(Path("explained/heatmaps").iterdir())) == 3


def test_models_of_one_name_differ(own_classes, explain):
    PHOTO.save("a.png")
    files = [
        f"runs/pets/version_{version}/checkpoints/{name}.ckpt"
        for version, name in ((0, "last"), (1, "last"), (1, "best"))
    ]
    for file in files:
        Path(file).parent.mkdir(parents=True, exist_ok=True)
        Path(file).write_bytes(Path(own_classes).read_bytes())
    _, record, _ = explain("a.png", "--models", *files)
    titles = [at["model"] for at in record]
    assert titles == ["pets/version_0", "pets/version_1/last", "pets/version_1/best"]
    assert len({at["file"] for at in record}) == 3
    assert list(name_models(files[:1]).values()) == ["pets"]
    arms = [f"runs/sweeps/pets/seed={seed}/checkpoints/last.ckpt" for seed in (0, 1)]
    for arm in arms:
        Path(arm).parent.mkdir(parents=True)
        Path(arm).touch()
    assert list(name_models(arms[:1]).values()) == ["seed=0"]
    assert list(name_models(arms).values()) == ["seed=0", "seed=1"]


def test_a_model_that_fails_does_not_take_the_others_along(explain, monkeypatch):
    from litcam.commands import explain as command

    def load(name, pretrained):
        if name == "test_vit":
            raise KeyError("what a stranger's code raises")
        model = load_model(name, pretrained=pretrained)
        if name == "test_convnext":
            monkeypatch.setattr(model.network, "forward", lambda images: 1 / 0)
        return model

    monkeypatch.setattr(command, "load_model", load)
    PHOTO.save("a.png")
    lines, record, code = explain("a.png", "--models", "test_vit", "test_convnext", "test_resnet")
    assert lines[:2] == [
        'left out: KeyError: "what a stranger\'s code raises"',
        "left out: test_convnext on a.png: ZeroDivisionError: division by zero",
    ]
    assert [at["model"] for at in record] == ["test_resnet"]
    assert code == 0


@pytest.mark.parametrize("at", [0, 2])
def test_ctrl_c_keeps_what_was_done(at, explain, monkeypatch):
    from litcam.commands import explain as command

    done = []

    def stopping(*args, **kwargs):
        if len(done) == at:
            raise KeyboardInterrupt
        done.append(1)
        return explain_photos(*args, **kwargs)

    explain_photos = command.explain_photos
    monkeypatch.setattr(command, "explain_photos", stopping)
    monkeypatch.setattr(command, "ON_CPU", 1)
    for name in ("a", "b", "c"):
        PHOTO.save(f"{name}.png")
    lines, record, code = explain("a.png", "b.png", "c.png", "--models", "test_resnet")
    assert lines[-1] == "stopped: the rest was not explained"
    assert [at["photo"] for at in record] == ["a.png", "b.png"][:at]
    assert Path("explained/figure.png").exists() == bool(at)
    assert code == 130


def test_a_folder_of_many_photos_has_a_figure_one_can_open(explain, monkeypatch):
    monkeypatch.setattr(explain_results, "MAX_ROWS", 2)
    Path("many").mkdir()
    for name in "abc":
        PHOTO.save(Path("many", f"{name}.png"))
    lines, record, _ = explain("many", "--models", "test_resnet")
    assert lines == ["3 heatmaps: explained/figure.png (the first 2 rows; 1 more are only files)"]
    assert len(record) == 3


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("models: [", "it is not YAML"),
        ("- resnet34", "must hold options"),
        ("modles: x", "models"),
        ("1: x", "has to be a word"),
        ("pretrained: maybe", "must be true or false"),
        ("models: [null]", "must be a word"),
        ("models: [a]\nmodels: [b]", "stands twice"),
    ],
)
def test_a_config_with_a_mistake(text, said, explain):
    PHOTO.save("a.png")
    Path("mine.yaml").write_text(text)
    lines, _, code = explain("a.png", "--config", "mine.yaml")
    assert len(lines) == 1
    assert said in lines[0]
    assert code == 2


def test_a_config_with_one_word_where_several_may_stand(explain):
    PHOTO.save("a.png")
    Path("mine.yaml").write_text("models: test_resnet\nclasses: 7\nphotos: a.png\n")
    _, record, _ = explain("--config", "mine.yaml")
    assert [at["class"] for at in record] == [7]


@pytest.mark.parametrize(
    ("device", "said"),
    [
        ("cuda:3", r"device 'cuda:3' is not here: there are 0 CUDA devices; leave --device out"),
        ("cudda", r"device 'cudda' does not exist; did you mean cuda\?"),
        ("gpu", r"device 'gpu' does not exist; did you mean cuda\?"),
        ("meta", r"device 'meta' is not here: there are 0 meta devices"),
        ("x", r"device 'x' does not exist; did you mean auto, cpu, cuda, mps, xpu\?"),
    ],
)
def test_a_device_that_is_not_here(explain, device, said):
    if torch.cuda.is_available():
        pytest.skip("there is one here")
    PHOTO.save("a.png")
    lines, record, code = explain("a.png", "--models", "test_resnet", "--device", device)
    assert len(lines) == 1
    assert re.search(said, lines[0])
    assert (record, code) == ([], 2)


def test_the_device_is_found_or_given(explain):
    PHOTO.save("a.png")
    best = torch.accelerator.current_accelerator(check_available=True)
    for words, device in (((), best or "cpu"), (("--device", "cpu"), "cpu")):
        _, record, _ = explain("a.png", "--models", "test_resnet", *words)
        assert [at["device"].partition(":")[0] for at in record] == [str(device)]
    Path("some.yaml").write_text("device: cuda:99")
    lines, _, code = explain("a.png", "--models", "test_resnet", "--config", "some.yaml")
    assert "device 'cuda:99' is not here" in lines[0]
    assert code == 2


def test_a_layer_is_looked_for_once_a_model(explain, monkeypatch):
    from litcam.explain.forward import recording

    looked = []

    def find_layer(*args, **kwargs):
        looked.append(1)
        return original(*args, **kwargs)

    original = recording.find_layer
    monkeypatch.setattr(recording, "find_layer", find_layer)
    for name in ("a", "b", "c"):
        PHOTO.save(f"{name}.png")
    models = ["test_resnet", "test_vit"]
    _, record, _ = explain("a.png", "b.png", "c.png", "--models", *models)
    assert len(record) == 6
    assert len(looked) == 2
