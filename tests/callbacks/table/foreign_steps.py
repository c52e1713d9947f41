"""LightningModules of strangers: what a step does around its networks, and with what batches.

`setups.py` says what becomes of each.
"""

import copy

import torch
import torch.nn.functional as F
from strangers import Pictures, SmallCNN, Stranger
from torch import nn
from torch.utils.data import DataLoader


class Foreign(Stranger):
    """Any network, any data, any loss; the step is the class's own.

    Args:
        net: the network.
        data: gives the dataset of both loaders.
        lose: from the answer and the labels to a loss.
        collate: as for a loader.
    """

    def __init__(self, net=None, data=Pictures, lose=F.cross_entropy, collate=None):
        super().__init__(net)
        self.data, self.lose, self.collate = data, lose, collate

    def answer(self, images):
        return self.net(images)

    def classify(self, batch):
        images, *_, labels = batch
        return self.answer(images), labels

    def training_step(self, batch, batch_idx):
        return self.lose(*self.classify(batch))

    def validation_step(self, batch, batch_idx, dataloader_idx=0):
        loss = self.lose(*self.classify(batch))
        self.log("val/loss", loss, batch_size=4)

    def loader(self, **kwargs):
        return DataLoader(self.data(), 4, collate_fn=self.collate, **kwargs)

    train_dataloader = val_dataloader = loader


class ByForward(Foreign):
    def forward(self, images):
        return self.net(images)

    def answer(self, images):
        return self(images)


class ByBatch(Foreign):
    """Its forward takes the whole batch."""

    def forward(self, batch):
        return self.net(batch[0])

    def classify(self, batch):
        return self(batch), batch[1]


class Logits(Foreign):
    """Calls by keyword, and takes the logits out of an object."""

    def answer(self, images):
        return self.net(pixel_values=images).logits


class First(Foreign):
    """What is compared with the labels is one of several things."""

    def __init__(self, net, pick, **kwargs):
        super().__init__(net, **kwargs)
        self.pick = pick

    def answer(self, images):
        return self.pick(self.net(images))


# Features and a head


class Apart(Foreign):
    def __init__(self, between=lambda features: features):
        super().__init__(nn.Identity())
        self.features, self.head, self.between = SmallCNN()[:8], nn.Linear(12, 3), between

    def answer(self, images):
        return self.head(self.between(self.features(images)))


class Together(Apart):
    """What `Apart` is told to become."""

    def forward(self, images):
        return self.head(self.features(images))

    def answer(self, images):
        return self(images)


class Embeds(Apart):
    """Its forward gives features, and its step has the head."""

    def forward(self, images):
        return self.features(images)

    def answer(self, images):
        return self.head(self(images))


class Hidden(Apart):
    """A frozen body in a list, so that it is not in the checkpoints."""

    def __init__(self):
        super().__init__()
        self.hidden = [self.features.eval().requires_grad_(False)]
        del self.features

    def answer(self, images):
        return self.head(self.hidden[0](images))


class TableBeside(Foreign):
    """An image and a row of a table; `outside` joins their features in the step."""

    def __init__(self, net, outside, **kwargs):
        super().__init__(net, **kwargs)
        self.outside, self.head = outside, nn.Linear(12 + 4, 3)

    def classify(self, batch):
        images, table, labels = batch
        if self.outside:
            return self.head(torch.cat([self.net(images), table], 1)), labels
        return self.net(table, images), labels


# Several networks, and one several times


class Distils(Foreign):
    def __init__(self, frozen=True):
        super().__init__()
        self.teacher = SmallCNN().requires_grad_(not frozen)

    def answer(self, images):
        with torch.no_grad():
            self.teacher(images)
        return self.net(images)


class Two(Foreign):
    """Two networks whose answers are averaged."""

    def __init__(self):
        super().__init__()
        self.other = SmallCNN()

    def answer(self, images):
        return (self.net(images) + self.other(images)) / 2


class Averages(Foreign):
    """Keeps a running mean of its weights itself, and validates that."""

    def __init__(self):
        super().__init__()
        self.ema = copy.deepcopy(self.net).requires_grad_(False)

    def answer(self, images):
        return (self.net if self.training else self.ema)(images)

    def on_train_batch_end(self, *args):
        for mean, now in zip(self.ema.parameters(), self.net.parameters(), strict=True):
            mean.lerp_(now.detach(), 0.1)


class Flips(Foreign):
    """The mean over an image and its mirror image, the mirror image first."""

    def answer(self, images):
        return (self.net(images.flip(3)) + self.net(images)) / 2


class Pairs(Foreign):
    """An image and the next one of the batch: the same class or not."""

    def __init__(self, net, how):
        super().__init__(net, lose=lambda answer, labels: answer.square().mean())
        self.how, self.head = how, nn.Linear(12, 3)

    def answer(self, images):
        left, right = images, images.roll(1, 0)
        if self.how == "one call":
            return self.net(left, right)
        left, right = self.net(left), self.net(right)
        return self.head((left - right).abs()) if self.how == "head" else left * right


class Attacks(Foreign):
    """Validates under attack as well: a step along the gradient of the images."""

    def classify(self, batch):
        images, labels = batch[0].clone().requires_grad_(), batch[1]
        if self.training:
            return self.net(images), labels
        with torch.enable_grad():
            loss = F.cross_entropy(self.net(images), labels)
            (slope,) = torch.autograd.grad(loss, images)
        return self.net(images.detach() + 0.1 * slope.sign()), labels


class StaysInTraining(Foreign):
    """Validates in training mode, by mistake or on purpose."""

    def on_validation_model_eval(self):
        pass


class Manual(Foreign):
    """Steps its optimiser itself."""

    def __init__(self):
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch, batch_idx):
        optimizer = self.optimizers()
        optimizer.zero_grad()
        self.manual_backward(super().training_step(batch, batch_idx))
        optimizer.step()


class OneScale(Foreign):
    """A frozen network, and one number trained on top."""

    def __init__(self):
        super().__init__()
        self.net.requires_grad_(False)
        self.scale = nn.Parameter(torch.ones(()))

    def answer(self, images):
        return self.net(images) * self.scale


class WeightedLoss(Foreign):
    """Its loss has a weight of its own, which is trained."""

    class Loss(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.ones(()))

        def forward(self, logits, labels):
            return F.cross_entropy(logits * self.scale, labels)

    def __init__(self):
        super().__init__()
        self.lose = WeightedLoss.Loss()


class Adapted(Foreign):
    """A trained layer makes three channels of whatever there are, before the network."""

    def __init__(self):
        super().__init__()
        self.adapter = nn.Conv2d(3, 3, 1)

    def answer(self, images):
        return self.net(self.adapter(images))


class Dropouts(Foreign):
    """Leaves dropout on in validation, and averages several answers."""

    def answer(self, images):
        self.net[8].train()
        return sum(self.net(images) for _ in range(3)) / 3
