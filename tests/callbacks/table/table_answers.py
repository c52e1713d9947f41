"""What a network returns and what its labels are, and what appears."""

import foreign_batches as b
import foreign_ends as e
import foreign_steps as s
import torch
import torch.nn.functional as F
from foreign_row import SHOWN, TARGET, Setup, cam, no_label
from strangers import SmallCNN
from torch import nn

# Of images with one class; the others have several, or none.
HOT_LABELS = [None, 1, None, None, 2] * 2

ANSWERS = [
    Setup(
        "an object with logits",
        lambda: s.Logits(e.Answers(lambda first, second, _: e.Output(logits=first, aux=second))),
        "net.body.4",
        scores=lambda output: output.logits,
    ),
    Setup(
        "an object without logits",
        lambda: s.First(
            e.Answers(lambda first, *_: e.Output(logits_per_image=first)),
            lambda output: output.logits_per_image,
        ),
        refused="returns Output, not logits … GradCAM(target=",
    ),
    Setup(
        "an object without logits, and target=",
        lambda: s.First(
            e.Answers(lambda first, *_: e.Output(logits_per_image=first)),
            lambda output: output.logits_per_image,
        ),
        "net.body.4",
        cam=cam(target=lambda output: output.logits_per_image),
        scores=lambda output: output.logits_per_image,
    ),
    Setup(
        "a dict with logits",
        lambda: s.First(e.Answers(lambda first, *_: {"logits": first}), lambda out: out["logits"]),
        "net.body.4",
        scores=lambda output: output["logits"],
    ),
    Setup(
        "a dict of two tasks",
        lambda: s.First(e.Answers(lambda a, b, _: {"age": a, "kind": b}), lambda out: out["kind"]),
        refused="returns dict, not logits … GradCAM(target=",
    ),
    Setup(
        "(logits, auxiliary)",
        lambda: s.First(e.Answers(lambda a, b, _: (a, b)), lambda out: out[0]),
        "net.body.4",
        scores=lambda output: output[0],
    ),
    Setup(
        "(auxiliary, logits): answer 1 of 2 is explained, and said to be",
        lambda: s.First(e.Answers(lambda a, b, _: (b, a)), lambda out: out[1]),
        "net.body.4",
        scores=lambda output: output[0],
        told="answer 1 of 2",
    ),
    Setup(
        "(features, logits), classes named",
        lambda: s.First(e.Answers(lambda a, b, f: (f, a)), lambda out: out[1]),
        "net.body.4",
        scores=lambda output: output[1],
    ),
    Setup(
        "(features, logits), classes not named",
        lambda: s.First(
            e.Answers(lambda a, b, f: (f, a)),
            lambda out: out[1],
            data=b.items(lambda image, label, _: (image, label), named=False),
        ),
        refused="target=",
    ),
    Setup(
        "(age, logits)",
        lambda: s.First(e.Answers(lambda a, b, f: (a, b), (1, 3)), lambda out: out[1]),
        "net.body.4",
        scores=lambda output: output[1],
    ),
    Setup(
        "several classes an image",
        lambda: s.Foreign(data=b.items(lambda image, _, place: (image, b.HOT[place])), lose=e.bce),
        "net.4",
        views={"predicted": SHOWN, "true": (1, 4, 6, 9)},
        label=HOT_LABELS.__getitem__,
        said="without a label, or with several",
    ),
    Setup(
        "one logit",
        lambda: s.Foreign(
            SmallCNN(1),
            b.items(lambda image, label, _: (image, (label > 0).float()[None]), named=False),
            e.bce,
        ),
        "net.4",
        scores=e.yes_and_no,
        label=lambda place: int(place % 3 > 0),
    ),
    Setup(
        "one logit, and the classes are named",
        lambda: s.Foreign(
            SmallCNN(1),
            b.items(lambda image, label, _: (image, (label > 0).float()[None])),
            e.bce,
        ),
        refused="found 2 scores of `net` for 3 classes",
    ),
    Setup(
        "one probability",
        lambda: s.Foreign(
            e.make_sceptic(),
            b.items(lambda image, label, _: (image, (label < 1).float()[None]), named=False),
            F.binary_cross_entropy,
        ),
        "net.4",
        scores=lambda sure: torch.cat([1 - sure, sure], 1),
        label=lambda place: int(place % 3 < 1),
    ),
    Setup(
        "one probability, and activation=",
        lambda: s.Foreign(
            e.make_sceptic(),
            b.items(lambda image, label, _: (image, (label < 1).float()[None]), named=False),
            F.binary_cross_entropy,
        ),
        "net.4",
        cam=cam(activation="identity"),
        scores=lambda sure: torch.cat([1 - sure, sure], 1),
        label=lambda place: int(place % 3 < 1),
    ),
    Setup(
        "ends in Softmax",
        lambda: s.Foreign(nn.Sequential(*SmallCNN(), nn.Softmax(1)), lose=e.nll),
        "net.4",
    ),
    Setup(
        "ends in LogSoftmax",
        lambda: s.Foreign(nn.Sequential(*SmallCNN(), nn.LogSoftmax(1)), lose=F.nll_loss),
        "net.4",
    ),
    Setup(
        "regression",
        lambda: s.Foreign(
            SmallCNN(1), b.items(lambda image, label, _: (image, image.mean()[None])), F.mse_loss
        ),
        refused="GradCAM(target=lambda output: output[:, 0])",
    ),
    Setup(
        "regression, and target=",
        lambda: s.Foreign(
            SmallCNN(1), b.items(lambda image, label, _: (image, image.mean()[None])), F.mse_loss
        ),
        "net.4",
        cam=cam(target=lambda output: output[:, 0]),
        views=TARGET,
        label=no_label,
    ),
    Setup(
        "regression of whole numbers",
        lambda: s.Foreign(
            SmallCNN(1),
            b.items(lambda image, label, place: (image, 20 + place), named=False),
            lambda answer, years: F.mse_loss(answer[:, 0], years.float()),
        ),
        refused="GradCAM(target=lambda output: output[:, 0])",
    ),
    Setup(
        "segmentation",
        lambda: s.First(e.Segmentation(), lambda out: out["out"].mean((2, 3))),
        refused="returns dict, not logits … GradCAM(target=",
    ),
    Setup(
        "segmentation, and target= with target_layer=",
        lambda: s.First(e.Segmentation(), lambda out: out["out"].mean((2, 3))),
        "net.body.4",
        cam=cam(target=lambda out: out["out"][:, 1].mean((1, 2)), target_layer="net.body.4"),
        views=TARGET,
        scores=lambda output: output["out"][:, 1].mean((1, 2)),
        label=no_label,
    ),
    Setup(
        "an autoencoder",
        lambda: s.Foreign(nn.Conv2d(3, 3, 1), lose=e.any_loss),
        refused="(2, 3, 32, 32), not logits",
    ),
    Setup(
        "embeddings, classes not named: taken for 12 classes, and said to be",
        lambda: s.Foreign(
            SmallCNN()[:8],
            b.items(lambda image, label, _: (image, label), named=False),
            e.any_loss,
        ),
        "net.4",
        told="for 12 classes that the data does not name",
    ),
    Setup(
        "embeddings by their e.likeness to prototypes",
        lambda: s.Foreign(SmallCNN()[:8], lose=e.any_loss),
        "net.4",
        cam=cam(target=e.likeness),
        scores=e.likeness,
    ),
]
