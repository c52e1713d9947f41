"""`litcam explain`: one figure, every heatmap a file, and a line for whatever is left out."""

import json
from pathlib import Path

import lightning as L
import numpy as np
import pytest
import torch
from PIL import Image

from litcam.commands.cli.config_files import CONFIGS
from litcam.commands.explaining.models import load_model
from litcam.commands.explaining.photos import read_photo
from litcam.datamodules import SyntheticDataModule
from litcam.datamodules.pixels.transforms import normalize
from litcam.explain import CAM, guided_gradcam
from litcam.explain.comparison import explain_photos
from litcam.lightning_modules import Classifier
from litcam.train import main

SMALL = ["test_resnet", "test_vit"]


@pytest.fixture
def photo(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pixels = np.random.default_rng(0).integers(0, 256, (120, 160, 3), dtype=np.uint8)
    Image.fromarray(pixels).save("photo.jpg")
    return "photo.jpg"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """The checkpoint of a run on generated images, whose classes it knows by name."""
    folder = tmp_path_factory.mktemp("run")
    trainer = L.Trainer(
        max_steps=1,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        limit_val_batches=0,
        log_every_n_steps=1,
    )
    data = SyntheticDataModule(num_train=64, num_val=8, image_size=32, batch_size=64)
    trainer.fit(Classifier("test_resnet", 8, warmup_epochs=0), data)
    trainer.save_checkpoint(folder / "last.ckpt")
    return folder / "last.ckpt", data.class_names


def size_of(file):
    with Image.open(file) as image:
        return image.size


def record():
    return json.loads(Path("explained/explain.json").read_text())


def test_photos_by_models_by_classes_by_methods(photo, capsys):
    main(["explain", photo, "--models", *SMALL, "--classes", "cat", "7", "predicted"])
    out = capsys.readouterr().out
    assert "6 heatmaps: explained/figure.png" in out
    found = record()
    assert [(at["model"], at["asked"]) for at in found] == [
        (model, name) for model in SMALL for name in ("cat", "7", "predicted")
    ]
    assert found[0]["class"] in range(281, 286)
    assert found[1]["class"] == 7
    assert not found[0]["trained"]
    for at in found:
        assert size_of(f"explained/{at['file']}")[0] >= 160
    width, height = size_of("explained/figure.png")
    assert width > 3 * height / 2


def test_the_heatmap_is_cams(photo):
    main(["explain", photo, "--models", "test_resnet", "--classes", "3"])
    (at,) = record()
    model = load_model("test_resnet", pretrained=False)
    from litcam.commands.explaining.photos import read_photo
    from litcam.datamodules.pixels.transforms import normalize

    image = read_photo(Path(photo), model.image_size, model.config)[None]
    with CAM(model.network) as cam, torch.no_grad():
        logits = model.network(normalize(image, model.config))
    assert at["probability"] == pytest.approx(float(logits.softmax(1)[0, 3]), rel=1e-5)
    assert at["map_max"] == pytest.approx(float(cam([3]).max()), rel=1e-4)


def test_a_checkpoint_knows_its_classes(photo, checkpoint):
    path, names = checkpoint
    main(["explain", photo, "--models", str(path), "--classes", names[2], "predicted"])
    first, second = record()
    assert (first["class"], first["class_name"], first["trained"]) == (2, names[2], True)
    assert second["class_name"] in names


def test_what_cannot_be_explained_is_left_out_and_said(photo, capsys):
    Image.new("L", (20, 30), 80).save("small.png")
    Path("broken.jpg").write_bytes(b"nonsense")
    photos = [photo, "small.png", "broken.jpg"]
    models = ["test_resnet", "resnet43", "none.ckpt"]
    main(["explain", *photos, "--models", *models, "--classes", "zebraa", "zebra"])
    out = capsys.readouterr().out
    assert "resnet43" in out
    assert "none.ckpt does not exist" in out
    assert "broken.jpg" in out
    assert "no class 'zebraa'; did you mean zebra" in out
    assert [at["photo"] for at in record()] == [photo, "small.png"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["photo.jpg"], "missing: --models"),
        (["--models", "test_resnet"], "missing: a photo"),
        (["nothing.jpg", "--models", "test_resnet"], "photo nothing.jpg does not exist"),
        (["photo.jpg", "--models", "test_resnet", "--methods", "gradcan"], "mean gradcam"),
        (["photo.jpg", "--models", "test_resnet", "--clases", "3"], "--classes"),
        (["photo.jpg", "--models", "nothing"], "nothing could be explained"),
        (["photo.jpg", "--models", "encoder.safetensors"], "nothing could be explained"),
        (["photo.jpg", "--config", "paper/swinn.yaml"], "paper/swin.yaml"),
    ],
)
def test_a_mistake_is_one_line(photo, capsys, words, said):
    Path("encoder.safetensors").write_bytes(b"")
    with pytest.raises(SystemExit) as end:
        main(["explain", *words])
    assert end.value.code == 2
    assert said in capsys.readouterr().err


def test_a_checkpoint_never_runs_code(photo, capsys):
    class Evil:
        def __reduce__(self):
            return Path.touch, (Path("pwned"),)

    torch.save({"hyper_parameters": {}, "state_dict": Evil()}, "evil.ckpt")
    with pytest.raises(SystemExit):
        main(["explain", photo, "--models", "evil.ckpt"])
    assert "evil.ckpt is not a checkpoint of litcam" in capsys.readouterr().out
    assert not Path("pwned").exists()


def test_a_title_tells_who_chose_the_class_and_that_a_map_is_zero(photo, monkeypatch):
    from litcam.commands import explain

    told = []

    class Kept(explain.Results):
        def write(self):
            told.extend(row.cells for row in self._rows)
            return super().write()

    def load(name, pretrained):
        model = load_model(name, pretrained=False)
        model.network.get_classifier().weight.data[3].zero_()
        return model

    monkeypatch.setattr(explain, "Results", Kept)
    monkeypatch.setattr(explain, "load_model", load)
    main(["explain", photo, "--models", "test_resnet", "--classes", "predicted", "3"])
    (row,) = told
    titles = {column[0]: text.split("\n") for column, (_, text) in row.items()}
    assert titles["predicted"][0].startswith("predicted: ")
    assert not titles["3"][0].startswith("3: ")
    assert "nothing" not in titles["predicted"][1]
    assert titles["3"][1].endswith(": nothing, the map is 0")


@pytest.mark.parametrize(
    "config",
    sorted(path.name for path in CONFIGS.glob("paper/*.yaml") if "\nmodels:" in path.read_text()),
)
def test_the_figures_of_the_paper(photo, config, monkeypatch, capsys):
    from litcam.commands import explain

    monkeypatch.setattr(explain, "load_model", lambda name, pretrained: small(name))
    main(["explain", photo, "--config", f"paper/{config}", "--pretrained"])
    assert record() and "left out" not in capsys.readouterr().out


def test_models_on_one_class_stand_side_by_side(photo, monkeypatch):
    from litcam.commands import explain

    monkeypatch.setattr(explain, "load_model", lambda name, pretrained: small(name))
    other = Path("other.jpg")
    other.write_bytes(Path(photo).read_bytes())
    main(["explain", photo, "other.jpg", "--models", "one", "two", "three", "--classes", "cat"])
    width, height = size_of("explained/figure.png")
    # A photo and three maps in each of two rows.
    assert (width - 4) % 4 == 0 and (height - 4) % 2 == 0 and width > height
    assert [fact["model"] for fact in record()] == ["one", "one", "two", "two", "three", "three"]


def small(name):
    """A small network of the same name; the real ones are made by other tests."""
    model = load_model("test_resnet", pretrained=False)
    model.name = name
    return model


def test_guided_grad_cam_beside_the_heatmap(photo, capsys):
    """Where there are ReLUs; where there are none, a line says so and the heatmap stays."""
    main(["explain", photo, "--models", *SMALL, "--methods", "gradcam", "guided_gradcam"])
    out = capsys.readouterr().out
    assert "3 heatmaps" in out
    assert out.count("VisionTransformer calls no ReLU") == 1
    assert [at["method"] for at in record()] == ["gradcam", "guided_gradcam", "gradcam"]
    model = load_model(SMALL[0], pretrained=False)
    image = normalize(read_photo(Path(photo), model.image_size, model.config)[None], model.config)
    number = record()[1]["class"]
    explained = explain_photos(
        CAM(model.network),
        image,
        [str(number)],
        ["guided_gradcam"],
        resolves=[lambda wanted, probabilities: (int(wanted), "")],
    )
    expected = guided_gradcam(model.network, image, number).abs().amax(1)
    expected = expected.clamp(max=float(np.quantile(expected, 0.99)))
    torch.testing.assert_close(explained[0][0][0].heatmap, (expected / expected.max())[0])
    assert record()[1]["map_max"] == pytest.approx(float(expected.max()))
