"""Images and batches, and what appears."""

from functools import partial

import foreign_batches as b
import foreign_ends as e
import foreign_networks as n
import foreign_steps as s
import torch
import torch.nn.functional as F
from foreign_row import PREDICTED, SHOWN, Setup, cam, no_label
from strangers import Named, SmallCNN
from torch import nn
from torch.utils.data import DataLoader

BATCHES = [
    Setup(
        "grey images", lambda: b.Given(lambda batch: batch[0][:, :1], net=e.make_plain(1)), "net.4"
    ),
    Setup(
        "a fourth channel of depth",
        lambda: b.Given(
            lambda batch: F.pad(batch[0], (0, 0, 0, 0, 0, 1), value=1.0), net=e.make_plain(4)
        ),
        "net.4",
    ),
    Setup(
        "pixels, normalised inside",
        lambda: b.Given(lambda batch: batch[0].sigmoid(), net=e.Normalises()),
        "net.body.4",
    ),
    Setup("the same in place", lambda: s.Foreign(e.Normalises(in_place=True)), "net.body.4"),
    Setup(
        "resized in the step", lambda: b.Given(lambda batch: F.interpolate(batch[0], 64)), "net.4"
    ),
    Setup(
        "channels last, moved in the step",
        lambda: b.Given(lambda batch: batch[0].movedim(3, 1), data=b.items(b.channels_last)),
        "net.4",
    ),
    Setup(
        "channels last, moved in the network",
        lambda: s.Foreign(e.ChannelsLast(), b.items(b.channels_last)),
        refused="no feature map",
    ),
    Setup(
        "flattened in the step",
        lambda: b.Given(lambda batch: batch[0].flatten(1), net=nn.Linear(3 * 32 * 32, 3)),
        refused="no module of the LightningModule take images",
    ),
    Setup("wide images", lambda: s.Foreign(data=b.items(b.wide)), "net.4"),
    Setup(
        "images of any size, one by one",
        lambda: b.Loader(lambda: DataLoader(b.Items(b.of_any_size), 1)),
        "net.4",
    ),
    Setup(
        "a mask before the image",
        lambda: s.TableBeside(e.WithMask(), False, data=b.items(b.with_mask)),
        "net.body.4",
    ),
    Setup(
        "a list of images",
        lambda: s.Foreign(
            e.OnLists(), collate=lambda found: (b.unzip(found)[0], torch.tensor(b.unzip(found)[1]))
        ),
        refused="no batch held tensors (batch, channels, h, w)",
    ),
    Setup(
        "two views of an image in one batch",
        lambda: b.Given(
            lambda batch: torch.cat(batch[:2]),
            data=b.items(lambda i, y, p: (i, i.flip(2))),
            lose=e.any_loss,
        ),
        refused="found other images in `net` than in the batch: 8 and 4; GradCAM(images=",
    ),
    Setup(
        "(images, years, labels)",
        lambda: s.Foreign(data=b.items(lambda i, y, p: (i, 20 + p, y))),
        "net.4",
        views=PREDICTED,
        label=lambda place: 20 + place,
        said="label 20 is not one of the network's 3 classes",
    ),
    Setup(
        "(images, one-hot sex, yes or no)",
        lambda: s.Foreign(
            SmallCNN(1),
            b.items(b.sex_and_answer, named=False),
            lambda answer, labels: e.bce(answer[:, 0], labels),
        ),
        "net.4",
        scores=e.yes_and_no,
        label=lambda place: int(place % 3 > 0),
    ),
    Setup(
        "a bag of patches",
        lambda: b.Loader(lambda: DataLoader(b.Bags(), batch_size=None), net=n.Bag()),
        refused="one number an image … got (1, 3)",
    ),
    Setup(
        "(index, images, labels)",
        lambda: b.Given(lambda batch: batch[1], data=b.items(lambda i, y, p: (p, i, y))),
        "net.4",
    ),
    Setup(
        "(images, index, labels)",
        lambda: s.Foreign(data=b.items(lambda i, y, p: (i, p, y))),
        "net.4",
        cam=cam(labels=lambda batch: batch[2]),
    ),
    Setup(
        "(images, boxes, labels)",
        lambda: s.Foreign(data=b.items(lambda i, y, p: (i, torch.tensor([1.0, 2, 20, 30]), y))),
        "net.4",
    ),
    Setup(
        "(labels, images)",
        lambda: b.Given(
            lambda batch: batch[1], lambda batch: batch[0], data=b.items(lambda i, y, p: (y, i))
        ),
        "net.4",
        views=PREDICTED,
        label=no_label,
        said="labels=",
    ),
    Setup(
        "a dict",
        lambda: b.Given(
            lambda batch: batch["x"], lambda batch: batch["y"], data=lambda: Named(10, "x", "y")
        ),
        "net.4",
    ),
    Setup(
        "a dict under unknown names",
        lambda: b.Given(
            lambda batch: batch["pic"],
            lambda batch: batch["gt"],
            data=lambda: Named(10, "pic", "gt"),
        ),
        "net.4",
        views=PREDICTED,
        label=no_label,
        said="no labels",
    ),
    Setup(
        "the same with images= and labels=",
        lambda: b.Given(
            lambda batch: batch["pic"],
            lambda batch: batch["gt"],
            data=lambda: Named(10, "pic", "gt"),
        ),
        "net.4",
        cam=cam(images=lambda batch: batch["pic"], labels=lambda batch: batch["gt"]),
    ),
    Setup(
        "a dict that loses its labels",
        lambda: b.Pops(
            e.Answers(lambda a, *_: e.Output(logits=a)),
            data=lambda: Named(10, "pixel_values", "labels"),
        ),
        "net.body.4",
        scores=lambda output: output.logits,
    ),
    Setup(
        "a named tuple",
        lambda: b.Given(lambda batch: batch.picture, data=b.items(lambda i, y, p: b.Pair(i, y))),
        "net.4",
    ),
    Setup(
        "an object",
        lambda: b.Given(
            lambda batch: batch.picture, lambda batch: batch.kind, collate=b.Box.collate
        ),
        refused="no batch held tensors",
    ),
    Setup(
        "the object, with images= and labels=",
        lambda: b.Given(
            lambda batch: batch.picture, lambda batch: batch.kind, collate=b.Box.collate
        ),
        "net.4",
        cam=cam(images=lambda batch: batch.picture, labels=lambda batch: batch.kind),
    ),
    Setup(
        "labels of -1",
        lambda: s.Foreign(
            data=b.items(b.half_labelled), lose=partial(F.cross_entropy, ignore_index=-1)
        ),
        "net.4",
        views={"predicted": SHOWN, "true": (0, 1, 3, 4)},
        label=lambda p: p % 3 if p < 5 else None,
        said="without a label",
    ),
    Setup("mixed images and soft labels", lambda: s.Foreign(collate=b.mix), "net.4"),
    Setup("volumes", lambda: b.Clips(e.make_volumes(), 2), refused="volumes or videos"),
    Setup(
        "clips",
        lambda: b.Clips(e.ReadsClips(), 1),
        refused="volumes or videos",
    ),
    Setup(
        "frames of clips as images",
        b.Frames,
        refused="than of labels: 8 from `net`, 4 labels; GradCAM(labels=",
    ),
    Setup(
        "a network that takes the whole batch",
        lambda: b.Given(lambda batch: batch, lambda batch: batch["label"], e.OnDicts(), data=Named),
        "net.body.4",
    ),
    Setup(
        "the same network, named",
        lambda: b.Given(lambda batch: batch, lambda batch: batch["label"], e.OnDicts(), data=Named),
        "net.body.4",
        cam=cam(network="net"),
    ),
    Setup(
        "cropped in the network",
        lambda: s.Foreign(e.Crops()),
        "net.body.4",
        photo=lambda place: b.IMAGES[place][:, 8:24, 8:24],
        wrong="draws the map of the middle on the whole image, without a word",
    ),
    Setup(
        "the network after the crop, named",
        lambda: s.Foreign(e.Crops()),
        "net.body.4",
        cam=cam(network="net.body"),
        photo=lambda place: b.IMAGES[place][:, 8:24, 8:24],
    ),
    Setup(
        "a dict with labels in words and in numbers",
        lambda: b.Given(
            lambda batch: batch["image"],
            lambda batch: batch["target"],
            data=b.items(lambda i, y, p: {"image": i, "label": "abc"[p % 3], "target": y}),
        ),
        "net.4",
    ),
    Setup(
        "a batch put in another order",
        b.Reorders,
        "net.4",
        step=lambda module, batch: module.net(batch[0]),
        wrong="gives an image the place and label of another, without a word",
    ),
]
