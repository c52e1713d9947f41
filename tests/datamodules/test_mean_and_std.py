"""Photos are normalised as those were that the weights were trained on; what is said wins."""

import lightning.pytorch as pl
import pytest
import torch
from timm.models import save_for_hf

from litcam.datamodules import ImageNetDataModule
from litcam.lightning_modules import Classifier
from litcam.lightning_modules.weights.saving import save_encoder

HALVES = (0.5, 0.5, 0.5)
IMAGENET = (0.485, 0.456, 0.406)
TINY = {"channels": (8, 8, 8, 16)}
LAYOUTS = ("encoder.safetensors", "timm's folder", "checkpoint")


class Seen(pl.Callback):
    """The validation's images."""

    def __init__(self):
        self.images = []

    def on_validation_batch_start(self, trainer, module, batch, *args):
        self.images.append(batch["image"].clone())


def data(photos, **options):
    options = {"image_size": 32, "num_workers": 0, "batch_size": 8, **options}
    return ImageNetDataModule(photos, backbone="resnet10t", **options)


def trainer(folder, seen):
    return pl.Trainer(
        accelerator="cpu", devices=1, max_steps=1, limit_val_batches=1, num_sanity_val_steps=0,
        callbacks=[seen], logger=False, enable_progress_bar=False, enable_model_summary=False,
        enable_checkpointing=False, default_root_dir=folder,
    )  # fmt: skip


def make(weights=""):
    torch.manual_seed(0)
    return Classifier("resnet10t", 2, backbone_args=TINY, weights=str(weights))


def images(photos, run, module, **options):
    """The first photos as they are validated with ``mean`` and ``std``."""
    seen = Seen()
    data_of_run = data(photos, **options)
    getattr(trainer(".", seen), run)(module, datamodule=data_of_run)
    return seen.images[0], data_of_run


def save(layout, folder, photos):
    """Weights that were trained on images of mean and std 0.5."""
    module = make()
    if layout == "checkpoint":
        run = trainer(folder, Seen())
        run.fit(module, datamodule=data(photos, mean=HALVES, std=HALVES))
        run.save_checkpoint(folder / "last.ckpt")
        return folder / "last.ckpt"
    if layout == "timm's folder":
        module.backbone.pretrained_cfg |= {"mean": HALVES, "std": HALVES}
        save_for_hf(module.backbone, folder, safe_serialization=True)
        return folder
    facts = {"mean": list(HALVES), "std": list(HALVES)}
    return save_encoder(module.backbone, folder / layout, facts)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_data_follow_the_weights(layout, photos, tmp_path, caplog, recwarn):
    weights = save(layout, tmp_path, photos)
    with caplog.at_level("INFO"):
        found, used = images(photos, "validate", make(weights))
    expected, _ = images(photos, "validate", make(), mean=HALVES, std=HALVES)
    own, _ = images(photos, "validate", make())
    assert torch.equal(found, expected) and not torch.allclose(found, own, atol=0.1)
    assert used.mean == used.std == used.config.mean == HALVES
    line = "Images normalised as the weights were trained: mean [0.5, 0.5, 0.5], std [0.5, 0.5,"
    assert [text.startswith(line) for text in caplog.messages].count(True) == 1
    assert not [each for each in recwarn if "was trained on" in str(each.message)]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_what_is_asked_for_wins_and_is_warned_of(layout, photos, tmp_path):
    weights = save(layout, tmp_path, photos)
    with pytest.warns(UserWarning, match="was trained on images of mean"):
        _, used = images(photos, "validate", make(weights), mean=IMAGENET)
    assert used.mean == IMAGENET


def test_colours_that_fill_what_augmentation_uncovers_follow(photos, tmp_path):
    weights = save("encoder.safetensors", tmp_path, photos)
    used = data(photos, auto_augment="trivial")
    trainer(".", Seen()).fit(make(weights), datamodule=used)
    (fill,) = {tuple(each.fill) for each in used._dataset("train").transform.transforms[1:]}
    assert fill == (128, 128, 128)


def test_a_checkpoint_is_validated_as_it_was_trained(photos, tmp_path):
    file = tmp_path / "last.ckpt"
    run = trainer(tmp_path, Seen())
    run.fit(make(save("encoder.safetensors", tmp_path, photos)), datamodule=data(photos))
    run.save_checkpoint(file)
    module, seen, used = make(), Seen(), data(photos)
    trainer(".", seen).validate(module, datamodule=used, ckpt_path=file, weights_only=True)
    expected, _ = images(photos, "validate", make(), mean=HALVES, std=HALVES)
    assert used.mean == HALVES and torch.equal(seen.images[0], expected)


def test_other_weights_in_the_same_data_module(photos, tmp_path):
    used = data(photos)
    for module, mean in ((make(save(LAYOUTS[0], tmp_path, photos)), HALVES), (make(), IMAGENET)):
        trainer(".", Seen()).validate(module, datamodule=used)
        assert used.mean == mean
