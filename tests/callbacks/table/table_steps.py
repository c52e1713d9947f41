"""What a step does around its networks, and what appears."""

import foreign_batches as b
import foreign_ends as e
import foreign_networks as n
import foreign_steps as s
import torch.nn.functional as F
from foreign_row import Setup, cam
from strangers import SmallCNN

STEPS = [
    Setup(
        "features and head",
        s.Apart,
        refused="`features` and `head` are called apart … self(images)",
    ),
    Setup(
        "the same, normalised between",
        lambda: s.Apart(F.normalize),
        refused="`features` and `head` are called apart",
    ),
    Setup("the same in forward(images)", s.Together, "features.4", network=""),
    Setup("self(images) gives features", s.Embeds, refused="called apart"),
    Setup("a body in a list", s.Hidden, refused="no module of the LightningModule take images"),
    Setup(
        "a table joined in the step",
        lambda: s.TableBeside(SmallCNN()[:8], True, data=b.items(b.with_table)),
        refused="`net` and `head` are called apart",
    ),
    Setup(
        "a table joined in the network",
        lambda: s.TableBeside(e.WithTable(), False, data=b.items(b.with_table)),
        "net.body.4",
    ),
    Setup("a frozen teacher", s.Distils, "net.4"),
    Setup(
        "a teacher that is trained",
        lambda: s.Distils(False),
        refused="several networks: `teacher` and `net` … network=",
    ),
    Setup("the same with network=", lambda: s.Distils(False), "net.4", cam=cam(network="net")),
    Setup("two networks, averaged", s.Two, refused="`net` and `other` … network="),
    Setup("a running mean, validated", s.Averages, "ema.4", network="ema"),
    Setup("flips, the mirror image first", s.Flips, "net.4", call=1),
    Setup("pairs in one call", lambda: s.Pairs(e.Siamese(), "one call"), refused="more than once"),
    Setup("pairs and a head", lambda: s.Pairs(SmallCNN()[:8], "head"), refused="called apart"),
    Setup(
        "validated under attack",
        s.Attacks,
        refused="the step goes backward through the same forward",
        trainer={"inference_mode": False},
    ),
    Setup("validated in training mode", s.StaysInTraining, "net.4", by_hand=False),
    Setup(
        "a loss with a weight",
        s.WeightedLoss,
        "net.4",
    ),
    Setup("the same loss, and network=", s.WeightedLoss, "net.4", cam=cam(network="net")),
    Setup(
        "a trained layer before the network",
        s.Adapted,
        refused="`adapter` and `net` are called apart",
    ),
    Setup("dropout left on", s.Dropouts, "net.4", by_hand=False),
    Setup(
        "a step that takes the iterator",
        b.TakesIterator,
        refused="takes its batches itself",
    ),
    Setup("manual optimisation", s.Manual, "net.4"),
    Setup("a frozen network", s.OneScale, "net.4"),
    Setup("a frozen body", lambda: s.Foreign(n.Probe("frozen")), "net.body.4"),
    Setup(
        "a body under no_grad",
        lambda: s.Foreign(n.Probe("no_grad")),
        "net.body.4",
    ),
    Setup(
        "a body under inference_mode",
        lambda: s.Foreign(n.Probe("inference")),
        refused="requires_grad_(False)",
    ),
    Setup(
        "detached features",
        lambda: s.Foreign(n.Probe("detach")),
        refused="no graph … requires_grad_(False)",
    ),
    Setup("in 64 bits", s.Foreign, "net.4", trainer={"precision": "64-true"}),
    Setup("without inference mode", s.Foreign, "net.4", trainer={"inference_mode": False}),
]
