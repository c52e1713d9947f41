"""Batches and loaders of strangers; `setups.py` says what becomes of them."""

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from foreign_steps import Foreign
from lightning.pytorch.utilities import CombinedLoader
from strangers import Pictures, SmallCNN, make_images
from torch.utils.data import BatchSampler, DataLoader, Dataset, IterableDataset, SequentialSampler

IMAGES, LABELS = make_images(10)
HOT = torch.tensor([[1.0, 0, 1], [0, 1, 0], [1, 1, 1], [0, 0, 0], [0, 0, 1]] * 2)


class Items(Dataset):
    """Ten items of any shape, with the names of the classes or without.

    Args:
        item: from an image, its label and its place to what the dataset gives.
        named: whether it tells its classes' names, or what it tells instead.
    """

    def __init__(self, item, named=True):
        self.item = item
        if named is not False:
            self.classes = Pictures.classes if named is True else named

    def __len__(self):
        return len(IMAGES)

    def __getitem__(self, place):
        return self.item(IMAGES[place], LABELS[place], place)


def items(item, named=True):
    """What `Foreign` takes as its data."""
    return lambda: Items(item, named)


class Stream(IterableDataset):
    def __iter__(self):
        return zip(IMAGES, LABELS, strict=True)


class Pair(NamedTuple):
    picture: Any
    kind: Any


@dataclass
class Box:
    """A batch as an object."""

    picture: Any
    kind: Any

    @classmethod
    def collate(cls, found):
        return cls(torch.stack([pair[0] for pair in found]), torch.stack([p[1] for p in found]))


def of_any_size(image, label, place):
    return image[:, :, : 24 if place % 2 else 32], label


def mix(found):
    """MixUp, of each image with the next."""
    images, labels = (torch.stack(part) for part in zip(*found, strict=True))
    hot = F.one_hot(labels, 3).float()
    return 0.7 * images + 0.3 * images.roll(1, 0), 0.7 * hot + 0.3 * hot.roll(1, 0)


def by_batches():
    """As samplers of balanced batches do, a loader then has no batch size of its own."""
    return DataLoader(Pictures(), batch_sampler=BatchSampler(SequentialSampler(LABELS), 4, False))


def unzip(found):
    return tuple(zip(*found, strict=True))


def with_table(image, label, place):
    return image, torch.full((4,), place / 10), label


def with_mask(image, label, place):
    mask = torch.ones(1, *image.shape[1:])
    mask[:, :, ::4] = 0
    return image, mask, label


def channels_last(image, label, place):
    return image.movedim(0, 2), label


def wide(image, label, place):
    return torch.cat([image, image[:, :, :16]], 2), label


def half_labelled(image, label, place):
    return image, label if place < 5 else torch.tensor(-1)


def sex_and_answer(image, label, place):
    return image, F.one_hot(torch.tensor(place % 2), 2), (label > 0).float()


def only_whole(found):
    """Leaves out what could not be read: the second image of all."""
    whole = [(image, label) for image, label, place in found if place != 1]
    images, labels = unzip(whole)
    return torch.stack(images), torch.stack(labels)


class Bags(Dataset):
    def __len__(self):
        return 4

    def __getitem__(self, place):
        return IMAGES[:6] + place / 10, LABELS[place : place + 1]


# What takes them


class Given(Foreign):
    """Images, labels and the call as told."""

    def __init__(self, images, labels=lambda batch: batch[-1], net=None, **kwargs):
        super().__init__(net, **kwargs)
        self.images, self.labels = images, labels

    def classify(self, batch):
        return self.net(self.images(batch)), self.labels(batch)


class Frames(Foreign):
    """Clips `(batch, time, channels, height, width)`, whose frames become images of one batch."""

    def classify(self, batch):
        clips = batch[0][:, None].expand(-1, 2, -1, -1, -1)
        logits = self.net(clips.flatten(0, 1))
        return logits.unflatten(0, (-1, 2)).mean(1), batch[1]


class Clips(Foreign):
    """The network itself takes what has one axis more."""

    def __init__(self, net, axis):
        super().__init__(net)
        self.axis = axis

    def answer(self, images):
        return self.net(images.unsqueeze(self.axis).repeat_interleave(4, self.axis))


class Pops(Foreign):
    """Takes the labels out of the batch, and hands on the rest as keywords."""

    def classify(self, batch):
        labels = batch.pop("labels")
        return self.net(**batch).logits, labels


class TwoLoaders(Foreign):
    def val_dataloader(self):
        return [DataLoader(Pictures(10), 4), DataLoader(Pictures(3), 4)]


class Reorders(Foreign):
    """Hands on the batch in another order, with its labels."""

    def classify(self, batch):
        return self.net(batch[0].flip(0)), batch[1].flip(0)


class NamedLoaders(TwoLoaders):
    def val_dataloader(self):
        return dict(zip(("large", "small"), super().val_dataloader(), strict=True))


class Loader(Foreign):
    """Any loader."""

    def __init__(self, make, **kwargs):
        super().__init__(**kwargs)
        self.make = make

    def loader(self):
        return self.make()

    train_dataloader = val_dataloader = loader


class TakesIterator(Foreign):
    """Takes its batches itself."""

    def validation_step(self, dataloader_iter):
        batch, batch_idx, dataloader_idx = next(dataloader_iter)
        super().validation_step(batch, batch_idx, dataloader_idx)


class SideBySide(Foreign):
    """Batches of two loaders at once."""

    def val_dataloader(self):
        return CombinedLoader({"one": self.loader(), "other": self.loader()}, "max_size")

    def classify(self, batch):
        return super().classify(batch if self.training else batch["one"])


class EachItsOwn(TwoLoaders):
    """A network for each loader."""

    def __init__(self):
        super().__init__()
        self.other = SmallCNN()

    def validation_step(self, batch, batch_idx, dataloader_idx=0):
        (self.other if dataloader_idx else self.net)(batch[0])
