"""`val/knn_acc1` against scikit-learn's neighbours, and where it is refused."""

import doctest
import importlib
import logging

import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import Callback
from pretraining import make_data, make_mae, pretrain
from sklearn.neighbors import KNeighborsClassifier
from strangers import Stranger, make_trainer
from torch.utils.data import DataLoader, TensorDataset

from litcam.callbacks import Neighbours
from litcam.callbacks import neighbours as neighbours_file
from litcam.callbacks.neighbours import leave_one_out


@pytest.fixture
def said():
    lines = []

    class Keep(logging.Handler):
        def emit(self, record):
            lines.append(record.getMessage())

    keep, logger = Keep(), logging.getLogger("lightning.pytorch.callbacks.litcam")
    logger.addHandler(keep)
    logger.setLevel(logging.INFO)
    yield lines
    logger.removeHandler(keep)


def by_sklearn(features, labels, num):
    """Every image left out in turn."""
    right = []
    for left_out in range(len(features)):
        others = np.arange(len(features)) != left_out
        knn = KNeighborsClassifier(
            num, metric="cosine", algorithm="brute", weights=lambda d: np.exp((1 - d) / 0.07)
        )
        knn.fit(features[others], labels[others])
        right.append(knn.predict(features[left_out : left_out + 1])[0] == labels[left_out])
    return np.mean(right)


class Watch(Callback):
    """The number, and the same from the encoder itself on the whole validation set."""

    def __init__(self, num, rows=slice(None)):
        self.num, self.rows, self.found = num, rows, []

    def on_validation_end(self, trainer, module):
        if trainer.sanity_checking:
            assert "val/knn_acc1" not in trainer.callback_metrics
            return
        data = trainer.val_dataloaders.dataset
        batch = trainer.datamodule.on_after_batch_transfer(data.__getitems__(range(len(data))), 0)
        features = module.encoder(batch["image"])[self.rows].double().numpy()
        expected = by_sklearn(features, batch["label"][self.rows].numpy(), self.num)
        self.found.append((trainer.callback_metrics["val/knn_acc1"].item(), expected))


@pytest.mark.parametrize("family", ["vit", "swin", "cnn"])
def test_is_what_sklearn_finds(family, said):
    watch = Watch(5)
    data = make_data(family, num_val=31, num_classes=3)
    pretrain(Neighbours(5), watch, mae=make_mae(family), data=data)
    assert len(watch.found) == 2
    for found, expected in watch.found:
        assert found == pytest.approx(expected) and 0 < found < 1
    assert said == [
        "Neighbours compares 31 validation images by encoder, 5 neighbours each, as val/knn_acc1; "
        "the most frequent class is 35.5% of them"
    ]


def test_uses_the_same_few_images_spread_over_the_set():
    rows = np.linspace(0, 30, 12).round().astype(int)
    watch = Watch(3, rows)
    pretrain(Neighbours(3, 12), watch, data=make_data(num_val=31, num_classes=3))
    for found, expected in watch.found:
        assert found == pytest.approx(expected)


@pytest.mark.parametrize("chunk", [7, 1024])
def test_formula(chunk, monkeypatch):
    monkeypatch.setattr(neighbours_file, "CHUNK", chunk)
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 4, (60,), generator=generator) * 10
    centres = torch.randn(4, 8, generator=generator)
    features = centres[labels // 10] + 1.5 * torch.randn(60, 8, generator=generator)
    found = leave_one_out(torch.nn.functional.normalize(features, dim=1), labels, 20)
    assert found == pytest.approx(by_sklearn(features.double().numpy(), labels.numpy(), 20))
    assert 0.3 < found < 1


def test_perfect_and_hopeless():
    features = torch.eye(3).repeat_interleave(4, 0)
    labels = torch.arange(3).repeat_interleave(4)
    assert leave_one_out(features, labels, 3) == 1
    assert leave_one_out(features, torch.arange(12), 20) == 0


def test_every_second_epoch(monkeypatch):
    calls = []
    monkeypatch.setattr(neighbours_file, "leave_one_out", lambda *args: calls.append(args) or 0.5)
    pretrain(Neighbours(every_n_epochs=2), max_epochs=3)
    assert len(calls) == 2


def fit_on_tensors(mae, *callbacks):
    loader = DataLoader(TensorDataset(torch.randn(6, 3, 32, 32)), 3)
    trainer = make_trainer(*callbacks)
    trainer.fit(mae, loader, loader)
    return trainer


def test_without_labels_it_says_so_once_and_stops(said):
    trainer = fit_on_tensors(make_mae(), Neighbours())
    assert trainer.state.finished and "val/knn_acc1" not in trainer.callback_metrics
    assert len(said) == 1 and "no labels" in said[0]


def test_an_encoder_that_raises_does_not_kill_training(said):
    mae = make_mae()
    mae.encoder.forward = lambda images: 1 / 0
    trainer = pretrain(Neighbours(), mae=mae)
    assert trainer.state.finished and len(said) == 1 and "training goes on" in said[0]


def test_another_network_by_name(said):
    trainer = make_trainer(Neighbours(network="net"))
    trainer.fit(Stranger())
    assert 0 <= trainer.callback_metrics["val/knn_acc1"] <= 1
    assert "compares 10 validation images by net, 9 neighbours each" in said[0]


def test_a_module_without_the_encoder_is_refused_in_one_line():
    with pytest.raises(ValueError, match=r"no network 'encoder' in Stranger; .* parts: net"):
        make_trainer(Neighbours()).fit(Stranger())


@pytest.mark.parametrize(
    ("kwargs", "words"),
    [
        ({"num_neighbours": 0}, "num_neighbours must be at least 1, got 0"),
        ({"num_images": 1}, "num_images must be at least 2, got 1"),
        ({"every_n_epochs": 0}, "every_n_epochs must be at least 1, got 0"),
    ],
)
def test_bad_arguments(kwargs, words):
    with pytest.raises(ValueError, match=words):
        Neighbours(**kwargs)


@pytest.mark.parametrize("first", [True, False])
def test_beside_grad_cam(first, said, tmp_path):
    from strangers import read_lines

    from litcam.callbacks import GradCAM

    both = [Neighbours(network="net"), GradCAM()]
    trainer = make_trainer(*(both if first else both[::-1]))
    trainer.fit(Stranger())
    assert "val/knn_acc1" in trainer.callback_metrics
    assert len(read_lines(tmp_path / "gradcam")) == 32
    assert len(said) == 2


@pytest.mark.parametrize(
    "name", ["neighbours", "reconstructions", "explained.reconstruction_views"]
)
def test_examples_in_docstrings(name):
    failed, tried = doctest.testmod(importlib.import_module(f"litcam.callbacks.{name}"))
    assert tried and not failed
