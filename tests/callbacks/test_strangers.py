"""`GradCAM()` on other people's LightningModules, batches and loaders."""

import logging

import pytest
import torch
import torch.nn.functional as F
import torchvision
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from strangers import Named, Pictures, SmallCNN, Stranger, make_trainer, read_lines
from torch import nn
from torch.utils.data import DataLoader, DistributedSampler, Subset

from litcam.callbacks import GradCAM
from litcam.callbacks.validation.batch import Reading
from litcam.callbacks.validation.chosen import ShownImages

LOG = "lightning.pytorch.callbacks.litcam"


@pytest.fixture
def said(monkeypatch):
    """What the callback said, line by line."""
    lines = []

    class Keep(logging.Handler):
        def emit(self, record):
            lines.append((record.levelname, record.getMessage()))

    keep, logger = Keep(), logging.getLogger(LOG)
    logger.addHandler(keep)
    yield lines
    logger.removeHandler(keep)


def warnings(said):
    return [line for level, line in said if level == "WARNING"]


class ByForward(Stranger):
    def forward(self, images):
        return self.net(images)

    def classify(self, batch):
        return self(batch[0]), batch[1]


def make_resnet():
    """With its stem's pool left out: these images are small."""
    network = torchvision.models.resnet18(num_classes=3)
    network.maxpool = nn.Identity()
    return network


class Output:
    def __init__(self, logits):
        self.logits, self.loss = logits, None


class HuggingFaceStyle(nn.Module):
    def __init__(self):
        super().__init__()
        self.backbone = SmallCNN()

    def forward(self, pixel_values=None, labels=None):
        return Output(self.backbone(pixel_values))


class WithLogits(Stranger):
    def __init__(self):
        super().__init__(HuggingFaceStyle())

    def classify(self, batch):
        output = self.net(pixel_values=batch["pixel_values"], labels=batch["labels"])
        return output.logits, batch["labels"]

    def loader(self, **kwargs):
        return DataLoader(Named(10, "pixel_values", "labels"), 4, **kwargs)

    train_dataloader = val_dataloader = test_dataloader = loader


class MadeInSetup(Stranger):
    """Makes its network when the run starts."""

    def __init__(self):
        super().__init__(nn.Identity())

    def setup(self, stage):
        self.net = SmallCNN()


@pytest.mark.parametrize(
    ("make", "layer"),
    [
        (lambda: Stranger(make_resnet()), "net.layer4"),
        (lambda: ByForward(make_resnet()), "net.layer4"),
        (Stranger, "net.4"),
        (WithLogits, "net.backbone.4"),
        (MadeInSetup, "net.4"),
    ],
    ids=["resnet", "forward", "hand-written", "logits", "made in setup"],
)
def test_works_with_no_argument(make, layer, tmp_path, said):
    trainer = make_trainer(GradCAM())
    trainer.fit(make())
    lines = read_lines(tmp_path / "gradcam")
    assert len(lines) == 2 * 2 * 8
    assert {line["layer"] for line in lines} == {layer}
    # A map of two by two positions, hardly trained, may well be flat.
    assert all("flat" in line for line in warnings(said))
    (line,) = (line for level, line in said if level == "INFO")
    assert line.startswith("GradCAM explains ")


class Batches(Stranger):
    """Any loader of any batches."""

    def __init__(self, *loaders, image=0, label=1, net=None):
        super().__init__(net)
        self.loaders, self.image, self.label = loaders, image, label

    def classify(self, batch):
        if isinstance(batch, torch.Tensor):
            return self.net(batch), torch.zeros(len(batch), dtype=torch.long)
        return self.net(batch[self.image]), batch[self.label]

    def train_dataloader(self):
        return self.loaders[0]

    def val_dataloader(self):
        return list(self.loaders) if len(self.loaders) > 1 else self.loaders[0]

    test_dataloader = val_dataloader


def fit(module, tmp_path, *callbacks, epochs=1, cam=None, **kwargs):
    trainer = make_trainer(cam or GradCAM(), *callbacks, max_epochs=epochs, **kwargs)
    trainer.fit(module)
    return read_lines(tmp_path / "gradcam")


def indices(lines, view="predicted"):
    return [line["index"] for line in lines if line["key"].split("/")[2] == view]


def test_batches_that_tell_their_index(tmp_path):
    names = {"image": "pic", "label": "target", "index": "index"}
    loader = DataLoader(Named(10, **names), 4, shuffle=True)
    lines = fit(Batches(loader, image="pic", label="target"), tmp_path, epochs=2)
    assert indices(lines) == [0, 1, 3, 4, 5, 6, 8, 9] * 2


def test_batch_that_is_one_tensor(tmp_path, said):
    class Bare(Pictures):
        def __getitem__(self, index):
            return super().__getitem__(index)[0]

    lines = fit(Batches(DataLoader(Bare(), 4)), tmp_path)
    assert indices(lines) == [0, 1, 3, 4, 5, 6, 8, 9]


def test_images_in_an_object_are_said_not_to_be_seen(tmp_path, said):
    class Box:
        def __init__(self, items):
            self.image, self.label = (
                torch.stack([i[0] for i in items]),
                torch.tensor([int(i[1]) for i in items]),
            )

    class Boxed(Batches):
        def classify(self, batch):
            return self.net(batch.image), batch.label

        def transfer_batch_to_device(self, batch, device, dataloader_idx):
            return batch

    assert not fit(Boxed(DataLoader(Pictures(), 4, collate_fn=Box)), tmp_path, epochs=2)
    (line,) = warnings(said)
    assert "nothing to show" in line


def test_two_loaders(tmp_path, said):
    loaders = DataLoader(Pictures(10), 4), DataLoader(Pictures(3), 4)
    lines = fit(Batches(*loaders), tmp_path)
    keys = dict.fromkeys(line["key"] for line in lines)
    assert list(keys) == [
        f"val/gradcam/{view}/dataloader_idx_{i}" for i in (0, 1) for view in ("predicted", "true")
    ]
    assert len({line["file"] for line in lines}) == len(lines) == 2 * 8 + 2 * 3
    assert not warnings(said)


def test_shuffled_loader_shows_the_first_that_pass(tmp_path, said):
    lines = fit(Batches(DataLoader(Pictures(), 4, shuffle=True)), tmp_path)
    assert indices(lines) == list(range(8))
    assert "the first that pass" in said[0][1]


def test_subset_gives_places_below(tmp_path):
    """Of a subset, images are called what the dataset below calls them."""

    class Keyed(Pictures):
        keys = [f"photo-{place}" for place in range(10)]  # noqa: RUF012

    for data in (Keyed(), Named(10, 0, 1, "index")):
        tmp = tmp_path / type(data).__name__
        tmp.mkdir()
        loader = DataLoader(Subset(data, [9, 8, 7, 6]), 2)
        lines = fit(Batches(loader), tmp, default_root_dir=tmp)
        assert sorted(indices(lines)) == [6, 7, 8, 9]
    assert read_lines(tmp_path / "Keyed" / "gradcam")[0]["image"] == "photo-6"


@pytest.mark.parametrize("world", [1, 2, 3])
def test_distributed_sampler_arithmetic(world):
    """Together the processes show just what one process shows, and each what it really holds."""
    data = Pictures(11)
    shown = []
    for rank in range(world):
        sampler = DistributedSampler(data, world, rank, shuffle=False)
        loader = DataLoader(data, 2, sampler=sampler)
        chosen = ShownImages(loader, [0, 3, 5, 10], 4, by_index=True)
        for batch_idx, batch in enumerate(loader):
            for position, index in chosen.find(Reading().read(batch), batch_idx, set()).items():
                assert torch.equal(batch[0][position], data[index][0])
                shown.append(index)
    assert sorted(set(shown)) == [0, 3, 5, 10]


def test_given_indices(tmp_path):
    assert indices(fit(Stranger(), tmp_path, cam=GradCAM(indices=[7, 2]))) == [2, 7]


def test_index_that_does_not_exist(tmp_path, said):
    assert not fit(Stranger(), tmp_path, cam=GradCAM(indices=[2, 99]), epochs=2)
    (line,) = warnings(said)
    assert "image 99 does not exist: the set has 10 images" in line


def test_views_of_given_classes(tmp_path, said):
    lines = fit(Stranger(), tmp_path, cam=GradCAM(classes=["predicted", "true", "cat", 1]))
    views = ["predicted", "true", "cat", "1"]
    assert list(dict.fromkeys(line["key"].split("/")[2] for line in lines)) == views
    for line in lines:
        view = line["key"].split("/")[2]
        assert line["class"] == {"cat": 2, "1": 1, "true": line["label"]}.get(view, line["class"])
    assert not warnings(said)


def test_one_view_as_a_string(tmp_path):
    lines = fit(Stranger(), tmp_path, cam=GradCAM(classes="true"))
    assert {line["key"] for line in lines} == {"val/gradcam/true"}


def test_class_names_that_do_not_exist(tmp_path, said):
    cam = GradCAM(classes=["predicted", "cta", 7])
    lines = fit(Stranger(), tmp_path, cam=cam, epochs=2)
    assert {line["key"] for line in lines} == {"val/gradcam/predicted"}
    first, second = warnings(said)
    assert "'cta' does not exist" in first and "cat" in first.split("close")[1]
    assert "class 7 does not exist: there are 0 to 2" in second


@pytest.mark.parametrize(
    ("label", "words"),
    [(5, "label 5 is not one of the network's 3 classes"), (-1, "images without a label")],
)
def test_label_beyond_the_head(label, words, tmp_path, said):
    class Wrong(Pictures):
        def __init__(self):
            super().__init__()
            self.tensors[1][5] = label

    class Forgiving(Batches):
        def classify(self, batch):
            return self.net(batch[0]), batch[1].clamp(0, 2)

    lines = fit(Forgiving(DataLoader(Wrong(), 4)), tmp_path)
    assert len(indices(lines)) == 8 and 4 <= len(indices(lines, "true")) < 8
    (line,) = warnings(said)
    assert words in line


def test_limited_validation_and_sanity_check(tmp_path):
    lines = fit(Stranger(), tmp_path, limit_val_batches=1, num_sanity_val_steps=2, epochs=2)
    assert indices(lines) == [0, 1, 2, 3] * 2
    assert lines[0]["step"] == 2  # none at step 0


def test_fast_dev_run_writes_nothing(tmp_path):
    assert not fit(Stranger(), tmp_path, fast_dev_run=True)
    assert not (tmp_path / "gradcam").exists()


def test_every_n_epochs(tmp_path):
    lines = fit(Stranger(), tmp_path, cam=GradCAM(every_n_epochs=2), epochs=4)
    assert sorted({line["epoch"] for line in lines}) == [0, 2]


@pytest.mark.parametrize(
    ("options", "epochs", "seen"),
    [
        ({"check_val_every_n_epoch": 2}, 8, [1, 5]),
        ({"val_check_interval": 0.5}, 3, [0, 1, 2]),
        ({"val_check_interval": 2, "check_val_every_n_epoch": None}, 6, [0, 1, 3, 4, 5]),
    ],
)
def test_every_n_counts_validations(tmp_path, options, epochs, seen):
    lines = fit(Stranger(), tmp_path, cam=GradCAM(every_n_epochs=2), epochs=epochs, **options)
    assert sorted({line["epoch"] for line in lines}) == seen


def test_every_n_goes_on_counting(tmp_path):
    trainer = make_trainer(GradCAM(every_n_epochs=3), max_epochs=2)
    trainer.fit(Stranger())
    trainer.save_checkpoint(tmp_path / "two.ckpt")
    trainer = make_trainer(GradCAM(every_n_epochs=3), max_epochs=5)
    trainer.fit(Stranger(), ckpt_path=tmp_path / "two.ckpt")
    assert {line["epoch"] for line in read_lines(tmp_path / "gradcam")} == {0, 3}


def test_validate_and_test_lose_nothing_of_each_other(tmp_path):
    trainer = make_trainer(GradCAM())
    module = Stranger()
    trainer.fit(module)
    trainer.validate(module, verbose=False)
    trainer.test(module, verbose=False)
    lines = read_lines(tmp_path / "gradcam")
    assert {line["key"] for line in lines[-16:]} == {"test/gradcam/predicted", "test/gradcam/true"}
    assert len({line["file"] for line in lines}) == len(lines) == 4 * 16
    assert all((tmp_path / "gradcam" / line["file"]).exists() for line in lines)


@pytest.mark.parametrize(
    ("kwargs", "near"),
    [({"target_layer": "net.layr4"}, "net.layer4"), ({"network": "nett"}, "net")],
)
def test_misspelt_names_stop_the_run_at_its_start(kwargs, near):
    started = []

    class Started(Callback):
        def on_train_start(self, *args):
            started.append(True)

    module = Stranger(make_resnet())
    with pytest.raises(ValueError, match="does not exist") as caught:
        make_trainer(GradCAM(**kwargs), Started()).fit(module)
    assert near in str(caught.value) and not started


@pytest.mark.parametrize("name", ["layer4[-1]", "net.layer4[-1]", "layer4.1"])
def test_target_layer_by_name(name, tmp_path):
    module = Stranger(make_resnet())
    lines = fit(module, tmp_path, cam=GradCAM(target_layer=name))
    assert {line["layer"] for line in lines} == {"net.layer4.1"}


def test_layer_of_another_network(tmp_path, said):
    module = Stranger()
    module.teacher = torchvision.models.resnet18()
    assert not fit(module, tmp_path, cam=GradCAM(target_layer="teacher.layer4"), epochs=2)
    (line,) = warnings(said)
    assert "not a part of the network" in line


def test_same_images_after_resuming(tmp_path):
    keep = ModelCheckpoint(tmp_path / "checkpoints", save_last=True)
    fit(Stranger(), tmp_path, keep, enable_checkpointing=True)
    keep = ModelCheckpoint(tmp_path / "checkpoints", save_last=True)
    trainer = make_trainer(GradCAM(), keep, max_epochs=3, enable_checkpointing=True)
    trainer.fit(Stranger(), ckpt_path=tmp_path / "checkpoints" / "last.ckpt", weights_only=False)
    lines = read_lines(tmp_path / "gradcam")
    assert indices(lines) == [0, 1, 3, 4, 5, 6, 8, 9] * 3
    assert sorted({line["epoch"] for line in lines}) == [0, 1, 2]


def test_two_callbacks_side_by_side(tmp_path, said):
    module = Stranger()
    fit(module, tmp_path, GradCAM(name="second", target_layer="net.3"), epochs=2)
    first, second = (read_lines(tmp_path / name) for name in ("gradcam", "second"))
    assert len(first) == len(second) == 32
    assert {line["layer"] for line in second} == {"net.3"}
    assert not warnings(said)


@pytest.mark.parametrize(
    ("kwargs", "words"),
    [
        ({"num_images": 0}, "num_images must be at least 1, got 0"),
        ({"every_n_epochs": 0}, "every_n_epochs must be at least 1, got 0"),
        ({"mean": [0.5]}, "mean and std"),
        ({"classes": []}, "classes must name a view"),
        ({"method": "gradcm"}, "gradcam"),
    ],
)
def test_arguments_out_of_range(kwargs, words):
    with pytest.raises(ValueError, match=words):
        GradCAM(**kwargs)


def test_loss_of_the_module_is_its_own():
    """The stranger's step sees plain logits: no graph of ours leaks into its metrics."""
    seen = []

    class Looks(Stranger):
        def validation_step(self, batch, batch_idx):
            logits, labels = self.classify(batch)
            seen.append(F.cross_entropy(logits, labels).requires_grad or logits.requires_grad)

    make_trainer(GradCAM()).fit(Looks())
    assert seen and not any(seen)


class Detections(Pictures):
    """Gives images, a box each, and labels; or labels of another kind."""

    def __init__(self, kind):
        super().__init__(10)
        self.kind = kind

    def __getitem__(self, place):
        image, label = super().__getitem__(place)
        hot = F.one_hot(label, 3)
        return {
            "box": (image, torch.tensor([1.0, 2.0, 20.0, 30.0]), label),
            "share": (image, torch.tensor([0.2, 0.5, 0.2, 0.1]), label),
            "soft": (image, hot * 0.8 + 0.2 / 3, label),
            "hot": (image, hot.float(), label),
            "several": (image, (hot + hot.roll(1)).float()),
            "none": (image, torch.where(label == 1, -1, label)),
        }[self.kind]


class Quiet(Batches):
    """Measures nothing of its own: these labels are not for its loss."""

    def classify(self, batch):
        return self.net(batch[0]), torch.zeros(len(batch[0]), dtype=torch.long)


@pytest.mark.parametrize("kind", ["box", "share", "soft", "hot"])
def test_labels_are_not_confused_with_what_stands_beside_them(kind, tmp_path, said):
    lines = fit(Quiet(DataLoader(Detections(kind), 4)), tmp_path)
    assert all(line["label"] == line["index"] % 3 for line in lines)
    assert indices(lines, "true") == [0, 1, 3, 4, 5, 6, 8, 9]


def test_pictures_of_two_runs_never_mix(tmp_path, said):
    """W&B alone has one folder for all runs: each gets its own in it, as its checkpoints do."""
    import wandb
    from lightning.pytorch.loggers import WandbLogger

    for version in ("one", "two"):
        logger = WandbLogger(project="pets", version=version, offline=True)
        make_trainer(GradCAM(), logger=logger, max_epochs=1).fit(Stranger())
        wandb.finish()
    for version in ("one", "two"):
        lines = read_lines(tmp_path / "pets" / version / "gradcam")
        assert len(lines) == 16
        assert len(list((tmp_path / "pets" / version / "gradcam").glob("epoch*/*-0*.jpg"))) == 16


def test_pictures_of_a_run_whose_logs_are_elsewhere_stay_here(tmp_path, said):
    make_trainer(GradCAM(), max_epochs=1, default_root_dir="memory://bucket/mine").fit(Stranger())
    assert len(read_lines(tmp_path / "mine" / "gradcam")) == 16
    assert not (tmp_path / "memory:").exists()
