import sys
import warnings

import lightning.pytorch as pl
import pytest
import torch
from einops import rearrange, reduce
from lightning.pytorch.overrides.distributed import UnrepeatedDistributedSampler
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier

from litcam.datamodules.synthetic import SyntheticDataModule
from litcam.datamodules.synthetic.images import SyntheticImages
from litcam.datamodules.synthetic.patterns import PATTERNS, shortcut_side

# Lightning 2.6 asks torch 2.15 for a class that torch has deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:.*LeafSpec.*:FutureWarning")


class Recorder(pl.LightningModule):
    """Keeps the batches that its steps are given."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.batches = {"train": [], "val": []}

    def training_step(self, batch, batch_idx):
        self.batches["train"].append(batch)
        return self.weight

    def validation_step(self, batch, batch_idx):
        self.batches["val"].append(batch)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.0)


@pytest.fixture(scope="module")
def images():
    return SyntheticImages("train", 1500)


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    module, data = Recorder(), SyntheticDataModule(80, 40, batch_size=16)
    trainer = pl.Trainer(
        max_epochs=1,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        default_root_dir=tmp_path_factory.mktemp("run"),
        log_every_n_steps=1,
    )
    trainer.fit(module, data)
    return module.batches, data


def smallest_boxes(masks):
    """The same boxes by a second way: where the object's pixels are."""
    places = [mask.nonzero() for mask in masks]
    return torch.stack([torch.cat([p.amin(0).flip(0), p.amax(0).flip(0) + 1]) for p in places])


def test_same_seed_draws_same_images(images):
    again = SyntheticImages("train", 300)
    assert torch.equal(again.images, images.images[:300])
    assert torch.equal(again.masks, images.masks[:300])
    assert not torch.equal(again.images, SyntheticImages("train", 300, seed=1).images)


def test_images_do_not_depend_on_global_state():
    torch.manual_seed(1)
    before = torch.get_rng_state()
    drawn = SyntheticImages("val", 20)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        assert torch.equal(SyntheticImages("val", 20).images, drawn.images)
    finally:
        torch.set_num_threads(threads)


def test_splits_differ():
    splits = [SyntheticImages(split, 50) for split in ("train", "val", "test")]
    flat = torch.cat([rearrange(s.images, "n c h w -> n (c h w)") for s in splits])
    assert len(flat.unique(dim=0)) == 150
    assert [s.keys[17] for s in splits] == ["train/000017", "val/000017", "test/000017"]


def test_boxes_hold_masks_exactly(images):
    assert torch.equal(images.boxes, smallest_boxes(images.masks))


def test_objects_have_the_promised_size(images):
    shares = images.masks.float().mean((1, 2))
    assert shares.min() > 0.06
    assert shares.max() < 0.25
    border = torch.ones_like(images.masks[0])
    border[1:-1, 1:-1] = False
    assert not (images.masks & border).any(), "an object is cut off by the image's border"


@pytest.mark.parametrize(("num_classes", "image_size"), [(2, 32), (6, 50), (10, 96)])
def test_every_size_and_number_of_classes(num_classes, image_size):
    drawn = SyntheticImages("train", 12, num_classes=num_classes, image_size=image_size)
    assert drawn.images.shape == (12, 3, image_size, image_size)
    assert drawn.labels.max() == min(num_classes, 12) - 1
    shares = drawn.masks.float().mean((1, 2))
    assert shares.min() > 0.05
    assert shares.max() < 0.26


def test_colour_does_not_tell_the_class(images):
    """Near chance, which is 0.125, for a linear model and for neighbours, also on the object."""
    pixels = images.images.float() / 255
    masks = images.masks[:, None]
    on_object = (pixels * masks).sum((2, 3)) / masks.sum((2, 3))
    bins = (images.images // 64).long()
    code = rearrange(bins[:, 0] * 16 + bins[:, 1] * 4 + bins[:, 2], "n h w -> n (h w)")
    histogram = torch.zeros(len(code), 64).scatter_add_(1, code, torch.ones(code.shape))
    histogram /= code.shape[1]
    labels = images.labels
    for name, features in (
        ("mean", reduce(pixels, "n c h w -> n c", "mean")),
        ("mean of the object", on_object),
        ("histogram", histogram.sqrt()),
    ):
        for model in (LogisticRegression(max_iter=300), KNeighborsClassifier(5)):
            model.fit(features[:1000], labels[:1000])
            accuracy = model.score(features[1000:], labels[1000:])
            assert accuracy < 0.2, (name, model, accuracy)


def test_shortcut_tells_the_class_and_lies_outside_the_object():
    side = shortcut_side(64)
    train, val = (SyntheticImages(s, 500, num_classes=10, shortcut=1.0) for s in ("train", "val"))
    assert not torch.cat([train.masks, val.masks])[:, :side, :side].any()
    corners = [
        rearrange(s.images[:, :, :side, :side], "n c h w -> n (c h w)").float() / 255
        for s in (train, val)
    ]
    model = LogisticRegression(max_iter=300).fit(corners[0], train.labels)
    assert model.score(corners[1], val.labels) > 0.99


def test_shortcut_with_a_probability():
    side = shortcut_side(64)
    drawn = SyntheticImages("train", 1000, num_classes=4, shortcut=0.6)
    colours = reduce(drawn.images[:, :, :side, :side].float(), "n c h w -> n c", "mean")
    model = KNeighborsClassifier(25).fit(colours, drawn.labels)
    # The class's colour, or one of four at random: 0.6 + 0.4 / 4.
    assert model.score(colours, drawn.labels) == pytest.approx(0.7, abs=0.05)


def test_a_batch_keeps_its_contract(recorded):
    batches, data = recorded
    assert [len(b["label"]) for b in batches["train"]] == [16] * 5
    assert [len(b["label"]) for b in batches["val"]] == [16, 16, 8]
    for batch in batches["train"] + batches["val"]:
        num = len(batch["label"])
        shapes = {name: (tuple(v.shape), v.dtype) for name, v in batch.items()}
        assert shapes == {
            "image": ((num, 3, 64, 64), torch.float32),
            "label": ((num,), torch.int64),
            "index": ((num,), torch.int64),
            "mask": ((num, 64, 64), torch.bool),
            "box": ((num, 4), torch.int64),
        }
    order = torch.cat([b["index"] for b in batches["val"]])
    assert order.tolist() == list(range(40))
    assert torch.cat([b["index"] for b in batches["train"]]).tolist() != list(range(80))
    assert len(data.classes) == len(data.class_names) == data.num_classes == 8


def test_validation_images_are_only_normalised(recorded):
    batches, data = recorded
    batch = batches["val"][0]
    mean, std = (rearrange(torch.tensor(v), "c -> c 1 1") for v in (data.mean, data.std))
    drawn = data.val_dataloader().dataset
    restored = (batch["image"] * std + mean) * 255
    torch.testing.assert_close(restored, drawn.images[:16].float(), atol=1e-3, rtol=0)
    assert torch.equal(batch["mask"], drawn.masks[:16])


def test_training_images_are_turned_with_their_masks_and_boxes(recorded):
    batches, data = recorded
    batch = batches["train"][0]
    drawn = data.train_dataloader().dataset[int(batch["index"][0])]
    assert drawn["label"] == batch["label"][0]
    assert torch.equal(batch["box"], smallest_boxes(batch["mask"]))
    poses = set()
    mean, std = (rearrange(torch.tensor(v), "c -> c 1 1") for v in (data.mean, data.std))
    for row, index in enumerate(batch["index"].tolist()):
        sample = data.train_dataloader().dataset[index]
        seen = ((batch["image"][row] * std + mean) * 255).round().to(torch.uint8)
        for pose in range(8):
            turned, mask = sample["image"], sample["mask"]
            for axis in (bit + 1 for bit in range(2) if pose >> bit & 1):
                turned, mask = turned.flip(-axis), mask.flip(-axis)
            if pose & 4:
                turned, mask = turned.mT, mask.mT
            if torch.equal(turned, seen) and torch.equal(mask, batch["mask"][row]):
                poses.add(pose)
                break
        else:
            pytest.fail(f"{row}: image and mask were not turned alike")
    assert len(poses) > 2


def test_setup_draws_once():
    data = SyntheticDataModule(16, 8)
    data.setup("fit")
    drawn = data.val_dataloader().dataset
    data.setup("fit")
    data.setup("validate")
    assert data.val_dataloader().dataset is drawn
    data.setup("test")
    assert data.test_dataloader().dataset.keys[0] == "test/000000"


def test_two_devices_share_the_validation_images_without_repeats(monkeypatch):
    data = SyntheticDataModule(16, 9, batch_size=2)
    data.setup("fit")

    class Two:
        world_size = 2

    monkeypatch.setattr(data, "trainer", Two())
    monkeypatch.setattr(torch.distributed, "is_available", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    monkeypatch.setattr(torch.distributed, "get_rank", lambda: 1)
    loader = data.val_dataloader()
    assert isinstance(loader.sampler, UnrepeatedDistributedSampler)
    assert torch.cat([b["index"] for b in loader]).tolist() == [1, 3, 5, 7]


def test_textures_replace_the_photos_without_scikit_learn(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    drawn = SyntheticImages("train", 40)
    assert torch.equal(drawn.images, SyntheticImages("train", 40).images)
    monkeypatch.undo()
    other = SyntheticImages("train", 40)
    assert torch.equal(drawn.masks, other.masks), "the objects do not depend on the backgrounds"
    assert not torch.equal(drawn.images, other.images)
    behind = drawn.images.float()[~drawn.masks[:, None].expand_as(drawn.images)]
    assert 40 < behind.mean() < 215
    assert behind.std() > 25


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("num_train", 0),
        ("num_val", 0),
        ("num_classes", 1),
        ("num_classes", len(PATTERNS) + 1),
        ("image_size", 31),
        ("batch_size", 0),
        ("shortcut", 1.5),
        ("seed", -1),
    ],
)
def test_wrong_arguments_are_named(argument, value):
    with pytest.raises(ValueError, match=rf"^{argument} must be .*, got {value}$"):
        SyntheticDataModule(**{argument: value})


def test_no_advice_about_workers():
    """Lightning's advice would be wrong here, and warnings are errors in this project."""
    data = SyntheticDataModule(16, 8)
    data.setup("fit")
    with warnings.catch_warnings(record=True) as caught:
        data.val_dataloader()
        warnings.warn(
            "The 'val_dataloader' does not have many workers which may be a bottleneck.",
            stacklevel=1,
        )
    assert not caught
