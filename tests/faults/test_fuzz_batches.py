"""Batches of other people's modules, made at random: explained, or told why not in one line."""

import hashlib
import logging
import pickle
import random
import shutil
import signal
from collections import Counter
from contextlib import contextmanager
from functools import cache

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from foreign_cases import (
    ANSWERS,
    BATCHES,
    CLASSES,
    EXTRAS,
    IMAGES,
    LABELS,
    RECONSTRUCTIONS,
    make_batch,
)
from lightning.fabric.utilities import registry
from PIL import Image
from strangers import CALM, count_hooks, read_lines
from torch import nn

from litcam.callbacks import Coverage, GradCAM, Neighbours, Reconstructions

pytestmark = [
    pytest.mark.timeout(1800),
    # PyTorch's own about what is handed to it.
    pytest.mark.filterwarnings("ignore"),
]

TABLES = IMAGES, LABELS, EXTRAS, BATCHES, ANSWERS, RECONSTRUCTIONS
SECONDS = 20
LOG = "lightning.pytorch.callbacks.litcam"

# Cases that once went wrong.
FOUND = [
    # Neighbours: features without columns; images, labels that are sparse.
    ("grey", "bool", "mask, flat", "a UserDict", "no classes", "one number"),
    ("sparse", "class numbers", "none", "a dict", "logits", "as asked for"),
    ("half", "sparse", "index, floats", "with numbers", "logits", "nothing"),
    # Neighbours: fewer features than images; Coverage: places that are no vector.
    ("expanded", "class numbers", "none", "a list", "half the batch", "as asked for"),
    ("grey", "floats", "index, a column", "an ordered dict", "maps of one pixel", "as asked for"),
]


class Network(nn.Module):
    """Takes nearly anything; gives what it is told to."""

    def __init__(self, answer):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 6, 3, 2, 1), nn.ReLU(), nn.Conv2d(6, 6, 3, 1, 1))
        self.head, self.answer = nn.Linear(6, CLASSES), answer

    def forward(self, images):
        features = self.body(_to_three_channels(images))
        return self.answer(self.head(features.mean((2, 3))))


def _to_three_channels(images):
    """As other people's networks begin: casts, adds what is missing, folds what is too much."""
    if isinstance(images, list):
        images = torch.stack([torch.as_tensor(image)[:, :16] for image in images])
    images = torch.as_tensor(images)
    images = images.to_dense() if images.is_sparse else images
    images = (images.real if images.is_complex() else images).float()
    images = images.reshape((1,) * (4 - images.ndim) + tuple(images.shape))
    images = images.flatten(0, images.ndim - 4) if images.ndim > 4 else images
    return images if images.shape[1] == 3 else images.mean(1, keepdim=True).expand(-1, 3, -1, -1)


class Foreign(pl.LightningModule):
    """Somebody's module. Its step knows its own batch."""

    num_cells = 4

    def __init__(self, case, images):
        super().__init__()
        *_, answer, reconstruction = case
        self.net, self.images, self.answers = Network(ANSWERS[answer]), images, []
        self.made = RECONSTRUCTIONS[reconstruction]

    def training_step(self, batch, batch_idx):
        return self.net.head(self.net.body(torch.ones(2, 3, 8, 8)).mean((2, 3))).sum()

    def validation_step(self, batch, batch_idx):
        self.answers.append(self.net(self.images))

    def reconstruct(self, images, noise):
        return self.made(images)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


class Loader:
    """Gives batches, of a dataset that is as long as they are."""

    dataset, batch_size = range(4), 4

    def __init__(self, batch):
        self.batch = batch

    def __len__(self):
        return 1

    def __iter__(self):
        yield self.batch


@contextmanager
def in_time(seconds=SECONDS):
    def late(*_):
        raise TimeoutError(f"more than {seconds} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def run(case, seed, folder, *callbacks, train):
    """What a run leaves: answers, weights, random state. Raises what ended it."""
    torch.manual_seed(seed)
    batch, images = make_batch(case)
    module = Foreign(case, images)
    trainer = pl.Trainer(callbacks=[*callbacks], default_root_dir=folder, max_epochs=2, **CALM)
    torch.manual_seed(seed)
    if train:
        trainer.fit(module, Loader(torch.ones(1)), Loader(batch))
    else:
        trainer.validate(module, Loader(batch), verbose=False)
    assert count_hooks(module) == 0
    assert all((p.grad is None) or train for p in module.parameters())
    assert torch.is_grad_enabled() and not torch.is_inference_mode_enabled()
    left = module.answers, [*module.state_dict().values()], torch.get_rng_state(), batch
    return hashlib.sha256(pickle.dumps(_plain(left))).hexdigest()


def _plain(value):
    """As bytes and words, NaN and all, to be compared."""
    if isinstance(value, torch.Tensor):
        value = value.detach()
        value = value.to_dense() if value.is_sparse else value
        value = value.view(torch.int16) if value.dtype == torch.bfloat16 else value
        value = value.numpy(force=True)
    if isinstance(value, np.ndarray):
        return value.dtype.str, value.shape, value.tobytes()
    if isinstance(value, Image.Image):
        return value.tobytes()
    if isinstance(value, dict):
        return [(str(key), _plain(one)) for key, one in value.items()]
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    return _plain(vars(value)) if hasattr(value, "__dict__") else repr(value)


def check(case, seed, folder, *, train=False):
    """How a case ends; raises if it ends otherwise."""
    try:
        plain = run(case, seed, folder, train=train)
    except Exception:
        return "no run of Lightning's either"
    callbacks = GradCAM(num_images=2), Coverage(), Neighbours(2, network="net")
    said, keep = [], logging.Handler(logging.WARNING)
    keep.emit = lambda record: said.append(record.getMessage())
    logging.getLogger(LOG).addHandler(keep)
    try:
        with in_time():
            watched = run(
                case, seed, folder, *callbacks, Reconstructions(num_images=2), train=train
            )
        assert plain == watched, "the run is another one with the callbacks"
        assert not any("\n" in line for line in said), said
        if read_lines(folder / "gradcam"):
            return "explained"
        assert any(line.startswith("GradCAM") for line in said), "nothing shown, nothing said"
        return "told why not"
    finally:
        logging.getLogger(LOG).removeHandler(keep)
        shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.parametrize("case", FOUND, ids=" + ".join)
@pytest.mark.parametrize("train", [False, True], ids=["validate", "fit"])
def test_found(case, train, tmp_path):
    check(case, 0, tmp_path / "run", train=train)


def test_batches_of_strangers(fuzz, tell, tmp_path, monkeypatch):
    # Each Trainer looks for callbacks in all installed packages, which takes longer than its run.
    monkeypatch.setattr(registry, "entry_points", cache(registry.entry_points))
    chance, outcomes, wrong = random.Random(0), Counter(), []
    for number in range(fuzz):
        case = tuple(chance.choice([*table]) for table in TABLES)
        try:
            # Every fourth trains as well, before and after.
            how = check(case, number, tmp_path / "run", train=number % 4 == 0)
            outcomes[how] += 1
        except Exception as error:
            wrong.append((case, number, f"{type(error).__name__}: {error}"))
    for each in wrong[:20]:
        print(*each, sep="\n    ")
    assert not wrong, f"{len(wrong)} of {fuzz}, such as {wrong[0]}"
    ran = fuzz - outcomes["no run of Lightning's either"]
    assert min(outcomes["explained"], outcomes["told why not"]) > ran // 20
    tell(
        "batches and answers of other people's modules",
        caused=f"drawn from {', '.join(str(len(table)) for table in TABLES)} kinds of images, "
        "labels, extras, batches, answers and reconstructions",
        times=ran,
        happened=f"{outcomes['explained']:,} explained, {outcomes['told why not']:,} told why not "
        "in one line; weights, answers, batches and random state bitwise as without the callbacks",
    )
