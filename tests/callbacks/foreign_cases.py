"""What other people's modules may hand to a callback: images, labels, batches, answers, by name.

A case is one name of each table, so that a case that was found can be kept as it is.
"""

import dataclasses
from collections import OrderedDict, UserDict, namedtuple
from types import SimpleNamespace

import numpy as np
import torch
from PIL import Image
from torchvision import tv_tensors

SIZE, BATCH, CLASSES = 16, 4, 3


def _photo(*shape):
    return torch.rand(*(shape or (BATCH, 3, SIZE, SIZE)))


def _with(value):
    images = torch.randn(BATCH, 3, SIZE, SIZE)
    images[1, :, 3:5] = value
    return images


IMAGES = {
    "normalised": lambda: torch.randn(BATCH, 3, SIZE, SIZE),
    "pixels": _photo,
    "bytes": lambda: (255 * _photo()).to(torch.uint8),
    "whole numbers": lambda: (255 * _photo()).long(),
    "bool": lambda: _photo() > 0.5,
    "half": lambda: _photo().half(),
    "bfloat16": lambda: _photo().bfloat16(),
    "double": lambda: _photo().double(),
    "complex": lambda: torch.complex(_photo(), _photo()),
    "grey": lambda: _photo(BATCH, 1, SIZE, SIZE),
    "four channels": lambda: _photo(BATCH, 4, SIZE, SIZE),
    "nine bands": lambda: _photo(BATCH, 9, SIZE, SIZE) * 5000,
    "no channels": lambda: _photo(BATCH, 0, SIZE, SIZE),
    "channels last": lambda: _photo(BATCH, SIZE, SIZE, 3),
    "channels_last memory": lambda: _photo().contiguous(memory_format=torch.channels_last),
    "one image": lambda: _photo(1, 3, SIZE, SIZE),
    "one image without a batch": lambda: _photo(3, SIZE, SIZE),
    "volumes": lambda: _photo(BATCH, 3, 2, SIZE, SIZE),
    "six dimensions": lambda: _photo(BATCH, 1, 3, 2, SIZE, SIZE),
    "vectors": lambda: _photo(BATCH, 48),
    "a vector": lambda: _photo(48),
    "a number": lambda: torch.tensor(1.0),
    "an empty batch": lambda: _photo(0, 3, SIZE, SIZE),
    "no height": lambda: _photo(BATCH, 3, 0, SIZE),
    "one pixel": lambda: _photo(BATCH, 3, 1, 1),
    "wide": lambda: _photo(BATCH, 3, SIZE, 40),
    "NaN": lambda: _with(torch.nan),
    "infinite": lambda: _with(-torch.inf),
    "huge": lambda: _with(1e38),
    "all NaN": lambda: torch.full((BATCH, 3, SIZE, SIZE), torch.nan),
    "constant": lambda: torch.zeros(BATCH, 3, SIZE, SIZE),
    "expanded": lambda: _photo(1, 3, SIZE, SIZE).expand(BATCH, -1, -1, -1),
    "transposed": lambda: _photo().transpose(2, 3),
    "requires grad": lambda: _photo().requires_grad_(),
    "a parameter": lambda: torch.nn.Parameter(_photo()),
    "tv_tensors": lambda: tv_tensors.Image(_photo()),
    "sparse": lambda: (_photo() > 0.9).float().to_sparse(),
    "a list": lambda: [*_photo()],
    "a list of many sizes": lambda: [_photo(3, SIZE + n, SIZE) for n in range(BATCH)],
    "numpy": lambda: _photo().numpy(),
    "photos of Pillow": lambda: [Image.new("RGB", (SIZE, SIZE)) for _ in range(BATCH)],
    "nothing": lambda: None,
    "a word": lambda: "photo.jpg",
}


def _hot(*rows):
    return torch.tensor([[float(place in row) for place in range(CLASSES)] for row in rows])


LABELS = {
    "class numbers": lambda: torch.arange(BATCH) % CLASSES,
    "int32": lambda: torch.arange(BATCH, dtype=torch.int32) % CLASSES,
    "uint8": lambda: torch.arange(BATCH, dtype=torch.uint8) % CLASSES,
    "negative": lambda: torch.tensor([-1, 0, -100, 2]),
    "of no class": lambda: torch.tensor([0, 99, 2**40, -(2**40)]),
    "zeros and ones": lambda: torch.tensor([0.0, 1.0, 1.0, 0.0]),
    "floats": lambda: torch.tensor([0.0, 1.0, 2.0, 1.0]),
    "fractions": lambda: torch.rand(BATCH),
    "NaN": lambda: torch.tensor([0.0, torch.nan, 1.0, torch.nan]),
    "infinite": lambda: torch.tensor([0.0, torch.inf, 1.0, -torch.inf]),
    "one-hot": lambda: _hot([0], [1], [2], [0]),
    "several classes": lambda: _hot([0, 1], [1], [], [0, 1, 2]),
    "shares": lambda: torch.rand(BATCH, CLASSES).softmax(1),
    "unknown ones": lambda: _hot([0], [1], [], [2]).where(torch.rand(BATCH, 3) > 0.5, torch.nan),
    "whole numbers, one-hot": lambda: _hot([0], [1], [2], [0]).long(),
    "bool": lambda: torch.tensor([True, False, True, True]),
    "bool, one-hot": lambda: _hot([0], [1], [2], [0]).bool(),
    "half": lambda: torch.tensor([0.0, 1.0, 1.0, 0.0]).half(),
    "complex": lambda: torch.zeros(BATCH, dtype=torch.complex64),
    "a column": lambda: (torch.arange(BATCH) % CLASSES)[:, None],
    "deep": lambda: (torch.arange(BATCH) % CLASSES)[:, None, None],
    "no columns": lambda: torch.zeros(BATCH, 0),
    "one": lambda: torch.tensor(1),
    "too few": lambda: torch.tensor([0, 1, 2]),
    "too many": lambda: torch.arange(7) % CLASSES,
    "none of them": lambda: torch.zeros(0, dtype=torch.long),
    "a segmentation": lambda: torch.zeros(BATCH, SIZE, SIZE, dtype=torch.long),
    "many classes": lambda: torch.zeros(BATCH, 1000),
    "sparse": lambda: _hot([0], [1], [2], [0]).to_sparse(),
    "words": lambda: ["ant", "bee", "ant", "cat"],
    "a list": lambda: [0, 1, 2, 0],
    "numpy": lambda: np.arange(BATCH) % CLASSES,
    "a dict": lambda: {"class": torch.arange(BATCH) % CLASSES},
    "nothing": lambda: None,
}

EXTRAS = {
    "none": lambda: {},
    "index": lambda: {"index": torch.arange(BATCH)},
    "index, far": lambda: {"index": torch.tensor([3, 2**40, -7, 10**6])},
    "index, twice": lambda: {"index": torch.zeros(BATCH, dtype=torch.long)},
    "index, floats": lambda: {"index": torch.tensor([0.0, 1.5, torch.nan, 3.0])},
    "index, bool": lambda: {"index": torch.ones(BATCH, dtype=torch.bool)},
    "index, a column": lambda: {"index": torch.arange(BATCH)[:, None]},
    "index, one": lambda: {"index": torch.tensor(2)},
    "index, too few": lambda: {"index": torch.arange(2)},
    "index, too many": lambda: {"index": torch.arange(9)},
    "index, none of them": lambda: {"index": torch.zeros(0, dtype=torch.long)},
    "index, words": lambda: {"index": ["a", "b", "c", "d"]},
    "mask": lambda: {"mask": _photo(BATCH, SIZE, SIZE) > 0.5},
    "mask, one channel": lambda: {"mask": _photo(BATCH, 1, SIZE, SIZE)},
    "mask, other size": lambda: {"mask": _photo(BATCH, 5, 7)},
    "mask, NaN": lambda: {"mask": torch.full((BATCH, SIZE, SIZE), torch.nan)},
    "mask, empty": lambda: {"mask": torch.zeros(BATCH, SIZE, SIZE)},
    "mask, deep": lambda: {"mask": _photo(BATCH, 2, 2, SIZE, SIZE)},
    "mask, flat": lambda: {"mask": _photo(BATCH)},
    "mask, too few": lambda: {"mask": _photo(2, SIZE, SIZE)},
    "mask, no size": lambda: {"mask": _photo(BATCH, 0, 0)},
    "mask, a word": lambda: {"mask": "none"},
    "box": lambda: {"box": torch.tensor([[2.0, 2.0, 9.0, 9.0]] * BATCH)},
    "box, whole numbers": lambda: {"box": torch.tensor([[2, 2, 9, 9]] * BATCH)},
    "box, inside out": lambda: {"box": torch.tensor([[9.0, 9.0, 2.0, 2.0]] * BATCH)},
    "box, outside": lambda: {"box": torch.tensor([[-90.0, -90.0, 1e9, 1e9]] * BATCH)},
    "box, NaN": lambda: {"box": torch.full((BATCH, 4), torch.nan)},
    "box, none": lambda: {"box": torch.zeros(BATCH, 0, 4)},
    "box, five numbers": lambda: {"box": _photo(BATCH, 5)},
    "box, too few": lambda: {"box": _photo(2, 4)},
    "box, a list": lambda: {"box": [[2, 2, 9, 9]] * BATCH},
}

Pair = namedtuple("Pair", "images labels")


@dataclasses.dataclass
class Data:
    images: object
    labels: object


class Thing:
    def __init__(self, images, labels):
        self.images, self.labels = images, labels


# From images, labels and extras to a batch. Extras have a place in a dict only.
BATCHES = {
    "a pair": lambda x, y, more: (x, y),
    "a list": lambda x, y, more: [x, y],
    "a named tuple": lambda x, y, more: Pair(x, y),
    "with numbers": lambda x, y, more: (x, y, torch.arange(BATCH), {"name": ["a"] * BATCH}),
    "labels first": lambda x, y, more: (y, x),
    "two views": lambda x, y, more: ((x, x), y),
    "images twice": lambda x, y, more: (x, x, y),
    "images alone": lambda x, y, more: x,
    "images in a list": lambda x, y, more: [x],
    "a dict": lambda x, y, more: {"image": x, "label": y, **more},
    "a dict of Hugging Face": lambda x, y, more: {"pixel_values": x, "labels": y, **more},
    "a dict of other names": lambda x, y, more: {"lq": x, "gt": y, **more},
    "a dict of dicts": lambda x, y, more: {"inputs": {"image": x}, "meta": {"label": y}, **more},
    "a dict with numbers": lambda x, y, more: {0: x, 1: y, **more},
    "an ordered dict": lambda x, y, more: OrderedDict(image=x, label=y, **more),
    "a UserDict": lambda x, y, more: UserDict(image=x, label=y, **more),
    "a dict with nothing": lambda x, y, more: {"label": None, "target": y, "image": x, **more},
    "two images in a dict": lambda x, y, more: {"image": x, "x": x, "label": y, **more},
    "a dataclass": lambda x, y, more: Data(x, y),
    "an object": lambda x, y, more: Thing(x, y),
    "a namespace": lambda x, y, more: SimpleNamespace(image=x, label=y, **more),
    "a dict in a list": lambda x, y, more: [{"image": x, "label": y, **more}],
    "an empty list": lambda x, y, more: [],
    "an empty dict": lambda x, y, more: {},
    "a word": lambda x, y, more: "batch",
}


@dataclasses.dataclass
class Answer:
    logits: object


# From logits (batch, classes) to what the network returns.
ANSWERS = {
    "logits": lambda z: z,
    "a dict": lambda z: {"logits": z, "loss": z.sum()},
    "a dict of other names": lambda z: {"out": z, "aux": z * 2},
    "a tuple": lambda z: (z, z.sum()),
    "features and logits": lambda z: (z @ torch.ones(z.shape[1], 8), z),
    "a dataclass": lambda z: Answer(z),
    "a namespace": lambda z: SimpleNamespace(logits=z, hidden=None),
    "a list": lambda z: [z, z.flip(1)],
    "one logit": lambda z: z[:, :1],
    "numbers": lambda z: z[:, 0],
    "one number": lambda z: z.sum(),
    "probabilities": lambda z: z.softmax(1),
    "maps of one pixel": lambda z: z[:, :, None, None],
    "maps": lambda z: z[:, :, None, None].expand(-1, -1, 4, 4),
    "twice the batch": lambda z: torch.cat([z, z]),
    "half the batch": lambda z: z[::2],
    "turned": lambda z: z.T,
    "no classes": lambda z: z[:, :0],
    "many classes": lambda z: z.repeat(1, 400),
    "NaN": lambda z: z * torch.nan,
    "infinite": lambda z: z / 0,
    "equal": lambda z: z * 0,
    "half": lambda z: z.half(),
    "double": lambda z: z.double(),
    "complex": lambda z: z.to(torch.complex64),
    "whole numbers": lambda z: z.argmax(1),
    "detached": lambda z: z.detach(),
    "numpy": lambda z: z.detach().numpy(),
    "words": lambda z: ["ant"] * len(z),
    "nothing": lambda z: None,
}


def _reconstruction(images, **instead):
    images = images.float()
    hidden = torch.zeros(len(images), *images.shape[2:], dtype=torch.bool)
    hidden[:, ::2] = True
    made = {"predicted": images.flip(2), "hidden": hidden, "psnr": torch.ones(len(images))}
    return SimpleNamespace(**{**made, "borrowed": False, **instead})


# From images (batch, channels, height, width) to what `reconstruct` gives.
RECONSTRUCTIONS = {
    "as asked for": _reconstruction,
    "of another size": lambda x: _reconstruction(x, predicted=_photo(len(x), 3, 5, 7)),
    "of one channel": lambda x: _reconstruction(x, predicted=_photo(len(x), 1, *x.shape[2:])),
    "of one image": lambda x: _reconstruction(x[:1]),
    "NaN": lambda x: _reconstruction(
        x, predicted=x.float() * torch.nan, psnr=torch.zeros(len(x)) / 0
    ),
    "hidden cells": lambda x: _reconstruction(x, hidden=torch.ones(len(x), 4, dtype=torch.bool)),
    "shares of hidden": lambda x: _reconstruction(x, hidden=_photo(len(x), *x.shape[2:])),
    "one number": lambda x: _reconstruction(x, psnr=torch.tensor(30.0)),
    "a float": lambda x: _reconstruction(x, psnr=30.0),
    "whole numbers": lambda x: _reconstruction(x, predicted=x.long()),
    "requires grad": lambda x: _reconstruction(x, predicted=x.float().detach().requires_grad_()),
    "the picture alone": lambda x: x,
    "nothing": lambda x: None,
}


def make_batch(case):
    """The batch of a case, and what its module hands to the network."""
    images, labels, extras, batch, *_ = case
    given = IMAGES[images]()
    return BATCHES[batch](given, LABELS[labels](), EXTRAS[extras]()), given
