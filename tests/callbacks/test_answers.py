"""What is explained, whatever a network answers and however its labels are written."""

import pytest
import torch
import torch.nn.functional as F
from strangers import SmallCNN, Stranger, make_images, make_trainer, read_lines
from torch import nn
from torch.utils.data import DataLoader

from litcam.callbacks import GradCAM
from litcam.explain import CAM, AverageDropIncrease, DeletionInsertion, Scored


class Data:
    """Pictures with labels of any kind."""

    def __init__(self, labels, shape=tuple):
        self.labels, self.shape = labels, shape
        self.images = make_images(len(labels))[0]

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, place):
        return self.shape((self.images[place], self.labels[place]))


class Any(Stranger):
    """Any loss on any output; only what is seen matters."""

    def __init__(self, net, labels, shape=tuple):
        super().__init__(net)
        self.data = Data(labels, shape)

    def classify(self, batch):
        return self.net(self.images_of(batch)), None

    images_of = staticmethod(lambda batch: batch[0])

    def training_step(self, batch, batch_idx):
        output = self.classify(batch)[0]
        return sum(value.square().mean() for value in [output] if isinstance(value, torch.Tensor))

    def validation_step(self, batch, batch_idx):
        self.classify(batch)

    def train_dataloader(self):
        return DataLoader(self.data, 4)

    val_dataloader = test_dataloader = train_dataloader


def lines_of(module, folder, **kwargs):
    trainer = make_trainer(GradCAM(**kwargs), max_epochs=1, default_root_dir=folder)
    trainer.validate(module, verbose=False)
    return read_lines(folder / "gradcam")


@pytest.fixture
def warned(warned):
    """Without the maps that an untrained network leaves flat: what is tested is the rest."""

    class Other(list):
        def __iter__(self):
            return (line for line in warned if "map is flat" not in line)

        def __len__(self):
            return sum(1 for _ in self)

        def __getitem__(self, place):
            return list(self)[place]

    return Other()


def views(lines):
    return {line["key"].removeprefix("val/gradcam/") for line in lines}


@pytest.mark.parametrize("squeezed", [False, True], ids=["(b,1)", "(b,)"])
def test_one_logit_is_two_classes(squeezed, warned, tmp_path):
    """`BCEWithLogitsLoss` takes labels in floating point."""
    net = nn.Sequential(SmallCNN(1), nn.Flatten(0)) if squeezed else SmallCNN(1)
    module = Any(net, torch.tensor([0.0, 1, 1, 0, 1, 0, 0, 1]))
    lines = lines_of(module, tmp_path)
    assert views(lines) == {"predicted", "true"} and len(lines) == 16 and not warned
    with torch.no_grad():
        yes = net.eval()(module.data.images).flatten().sigmoid()
    for line in lines:
        sure = float(yes[line["index"]])
        assert line["predicted"] == (sure > 0.5)
        assert line["confidence"] == pytest.approx(max(sure, 1 - sure), abs=1e-5)
        assert line["label"] == int(module.data.labels[line["index"]])


def test_the_map_of_no_is_that_of_the_logit_turned_round(tmp_path):
    net = SmallCNN(1).eval()
    images, _ = make_images(8)
    module = Any(net, torch.zeros(8, dtype=torch.long))
    lines = lines_of(module, tmp_path, classes=[0, 1], num_images=8)
    with CAM(net, target=lambda z: torch.cat([-z, z], 1)) as cam, torch.no_grad():
        net(images)
    for number in (0, 1):
        own = [line for line in lines if line["key"].endswith(f"/{number}")]
        highest = cam([number] * 8).amax((1, 2))
        assert [line["map_max"] for line in own] == pytest.approx(highest.tolist(), rel=1e-4)


def test_regression_by_a_target(warned, tmp_path):
    lines = lines_of(Any(SmallCNN(1), torch.rand(8)), tmp_path, target=lambda out: out[:, 0])
    assert views(lines) == {"target"} and len(lines) == 8 and not warned
    assert lines[0]["predicted_name"] == "target" and lines[0]["correct"] is None


def test_several_classes_an_image_have_probabilities_of_their_own(warned, tmp_path):
    hot = torch.tensor([[1.0, 0, 1], [0, 1, 0], [1, 1, 1], [0, 0, 0]] * 2)
    net = SmallCNN()
    module = Any(net, hot)
    lines = lines_of(module, tmp_path, metrics=["average_drop", "sparseness"])
    with torch.no_grad():
        known = net.eval()(module.data.images).sigmoid().amax(1)
    predicted = [line for line in lines if line["key"].endswith("predicted")]
    assert [line["confidence"] for line in predicted] == pytest.approx(known.tolist(), abs=1e-5)
    # The second of each four has one class, and so a view of its true class.
    true = [line for line in lines if line["key"].endswith("true")]
    assert [line["index"] for line in true] == [1, 5]
    assert len(warned) == 1 and "for images without a label, or with several" in warned[0]


@pytest.mark.parametrize("last", [nn.Softmax(1), nn.Sigmoid()], ids=["softmax", "sigmoid"])
def test_probabilities_are_not_made_twice(last, warned, tmp_path):
    net = nn.Sequential(SmallCNN(), last)
    hot = torch.tensor([[1.0, 0, 1], [0, 1, 0], [1, 1, 1], [0, 0, 0]] * 2)
    labels = torch.arange(8) % 3 if isinstance(last, nn.Softmax) else hot
    module = Any(net, labels)
    lines = lines_of(module, tmp_path, classes=["predicted"])
    with torch.no_grad():
        known = net.eval()(module.data.images).amax(1)
    assert [line["confidence"] for line in lines] == pytest.approx(known.tolist(), abs=1e-5)


def test_a_target_that_fails_is_one_line(warned, tmp_path):
    assert not lines_of(Any(SmallCNN(), torch.arange(8) % 3), tmp_path, target=lambda out: out["x"])
    assert len(warned) == 1 and "target fails on the (2, 3)" in warned[0]


def test_batches_that_nobody_could_guess(warned, tmp_path):
    """Two views of an image, and its label in a dict of a dict."""

    def nest(pair):
        image, label = pair
        return {"views": [image * 0, image], "about": {"class": label}}

    module = Any(SmallCNN(), torch.arange(8) % 3, nest)
    module.images_of = lambda batch: batch["views"][1]
    lines = lines_of(
        module,
        tmp_path,
        images=lambda batch: batch["views"][1],
        labels=lambda batch: batch["about"]["class"],
    )
    assert views(lines) == {"predicted", "true"} and len(lines) == 16 and not warned
    assert [line["label"] for line in lines[:8]] == (torch.arange(8) % 3).tolist()


@pytest.mark.parametrize(
    ("argument", "words"),
    [("images", r"must give \(batch, channels, h, w\)"), ("labels", "must give class numbers")],
)
def test_what_reads_a_batch_wrongly_is_one_line(argument, words, warned, tmp_path):
    import re

    module = Any(SmallCNN(), torch.arange(8) % 3)
    assert not lines_of(module, tmp_path, **{argument: lambda batch: "this"})
    assert len(warned) == 1 and re.search(words, warned[0])


def test_an_unknown_activation_is_refused_at_once():
    with pytest.raises(ValueError, match="activation must be one of softmax, sigmoid, identity"):
        GradCAM(activation="relu")


def test_faithfulness_of_sigmoid_scores_against_a_computation_by_hand():
    torch.manual_seed(0)
    net, (images, _) = SmallCNN().eval(), make_images(4)
    maps, classes = torch.rand(4, 8, 8), torch.tensor([0, 1, 2, 0])
    metric = AverageDropIncrease()
    metric.update(Scored(net, activation="sigmoid"), images, maps, classes)
    low, high = maps.amin((1, 2), keepdim=True), maps.amax((1, 2), keepdim=True)
    heat = F.interpolate(
        ((maps - low) / (high - low))[:, None], (32, 32), mode="bilinear", align_corners=False
    )
    with torch.no_grad():
        rows = torch.arange(4)
        before = net(images).sigmoid()[rows, classes]
        after = net(images * heat).sigmoid()[rows, classes]
    drop = ((before - after).clamp(min=0) / before).mean()
    assert metric.compute()["average_drop"] == pytest.approx(float(drop), abs=1e-5)
    deletion = DeletionInsertion(4, curves=["deletion"])
    deletion.update(Scored(net, activation="sigmoid"), images, maps, classes)
    assert 0 < float(deletion.compute()["deletion"]) < 1


def test_metrics_of_one_logit_ask_for_its_probability(warned, tmp_path):
    """The network is asked again: its answers are compared with what the step gave."""
    module = Any(SmallCNN(1), torch.tensor([0.0, 1, 1, 0, 1, 0, 0, 1]))
    trainer = make_trainer(GradCAM(metrics=["average_drop"]), default_root_dir=tmp_path)
    trainer.validate(module, verbose=False)
    assert 0 <= float(trainer.callback_metrics["val/gradcam/average_drop"]) <= 1 and not warned
