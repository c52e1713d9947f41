"""Loaders and datasets, and what appears."""

import foreign_batches as b
import foreign_steps as s
import numpy as np
from foreign_row import BOTH, FIRST, SHOWN, Setup, no_label
from torch.utils.data import DataLoader

LOADERS = [
    Setup(
        "two loaders",
        b.TwoLoaders,
        "net.4",
        views={
            f"{view}/dataloader_idx_{i}": shown
            for view in BOTH
            for i, shown in ((0, SHOWN), (1, (0, 1, 2)))
        },
    ),
    Setup(
        "two loaders side by side",
        b.SideBySide,
        "net.4",
        step=lambda module, batch: module.net(batch[0]["one"][0]),
        views={"predicted/dataloader_idx_0": SHOWN},
        label=no_label,
        said="no labels",
    ),
    Setup(
        "loaders by name",
        b.NamedLoaders,
        "net.4",
        views={
            f"{view}/dataloader_idx_{i}": shown
            for view in BOTH
            for i, shown in ((0, SHOWN), (1, (0, 1, 2)))
        },
    ),
    Setup(
        "a network for each loader",
        b.EachItsOwn,
        "net.4",
        views={
            f"{view}/dataloader_idx_{i}": shown
            for view in BOTH
            for i, shown in ((0, SHOWN), (1, (0, 1, 2)))
        },
        others=("other.4",),
        by_hand=False,
    ),
    Setup(
        "a stream",
        lambda: b.Loader(lambda: DataLoader(b.Stream(), 4)),
        "net.4",
        views=dict.fromkeys(BOTH, FIRST),
    ),
    Setup(
        "a sampler of batches",
        lambda: b.Loader(b.by_batches),
        "net.4",
        views=dict.fromkeys(BOTH, FIRST),
    ),
    Setup(
        "a batch without what could not be read: left out, its places are not known",
        lambda: s.Foreign(data=b.items(lambda i, y, p: (i, y, p)), collate=b.only_whole),
        "net.4",
        views=dict.fromkeys(BOTH, (4, 5, 6, 8, 9)),
        by_hand=False,
    ),
    Setup(
        "an index that is none of the dataset",
        lambda: b.Given(
            lambda batch: batch["image"],
            lambda batch: batch["label"],
            data=b.items(lambda i, y, p: {"image": i, "label": y, "index": 5000 + p}),
        ),
        refused="index",
    ),
    Setup(
        "names of classes in an array",
        lambda: s.Foreign(data=b.items(lambda i, y, p: (i, y), np.array(["ant", "bee", "cat"]))),
        "net.4",
    ),
    Setup(
        "a number of classes for their names",
        lambda: s.Foreign(data=b.items(lambda i, y, p: (i, y), 3)),
        "net.4",
    ),
]
