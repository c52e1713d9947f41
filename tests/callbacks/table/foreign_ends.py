"""Networks that differ in what they take and give; the files `table_*.py` say what appears."""

import torch
import torch.nn.functional as F
from strangers import SmallCNN
from torch import nn

# What goes in


class Normalises(nn.Module):
    """Takes pixels, and says so nowhere."""

    def __init__(self, in_place=False):
        super().__init__()
        self.body, self.in_place = SmallCNN(), in_place
        self.register_buffer("mean", torch.full((3, 1, 1), 0.4))

    def forward(self, images):
        images = images.sub_(self.mean) if self.in_place else images - self.mean
        return self.body(images / 0.3)


class ChannelsLast(nn.Module):
    """Takes images as cameras give them, `(batch, height, width, channels)`."""

    def __init__(self):
        super().__init__()
        self.body = SmallCNN()

    def forward(self, images):
        return self.body(images.movedim(3, 1))


class WithTable(nn.Module):
    """A table's row beside each image."""

    def __init__(self):
        super().__init__()
        self.body, self.head = SmallCNN()[:8], nn.Linear(12 + 4, 3)

    def forward(self, table, images):
        return self.head(torch.cat([self.body(images), table], 1))


class WithMask(nn.Module):
    """A mask of the object before the image, both with four axes."""

    def __init__(self):
        super().__init__()
        self.body = SmallCNN()

    def forward(self, mask, image):
        return self.body(image * mask)


class Siamese(nn.Module):
    """Compares two images by features of the same body."""

    def __init__(self):
        super().__init__()
        self.body, self.head = SmallCNN()[:8], nn.Linear(12, 3)

    def forward(self, left, right):
        return self.head((self.body(left) - self.body(right)).abs())


class OnLists(nn.Module):
    """Takes a list of images `(channels, height, width)`, as detectors do."""

    def __init__(self):
        super().__init__()
        self.body = SmallCNN()

    def forward(self, images):
        return self.body(torch.stack(images))


class OnDicts(nn.Module):
    """Takes a batch as it is."""

    def __init__(self):
        super().__init__()
        self.body, self.head = SmallCNN()[:8], nn.Linear(12, 3)

    def forward(self, batch):
        return self.head(self.body(batch["image"]))


class Crops(nn.Module):
    """Has its library's transforms inside, and looks at the middle of an image alone."""

    def __init__(self):
        super().__init__()
        self.body = SmallCNN()

    def forward(self, images):
        return self.body(F.interpolate(images[:, :, 8:24, 8:24], 32))


# What comes out


class Output:
    """As of Hugging Face, under any name."""

    def __init__(self, **answers):
        vars(self).update(answers)


class Answers(nn.Module):
    """Two heads on the same features, handed out in any shape."""

    def __init__(self, shape, sizes=(3, 3)):
        super().__init__()
        self.body, self.shape = SmallCNN()[:8], shape
        self.first, self.second = (nn.Linear(12, size) for size in sizes)

    def forward(self, images=None, pixel_values=None):
        features = self.body(images if pixel_values is None else pixel_values)
        return self.shape(self.first(features), self.second(features), features)


class Segmentation(nn.Module):
    """A score for each class and pixel, in torchvision's dict."""

    def __init__(self):
        super().__init__()
        self.body, self.head = SmallCNN()[:6], nn.Conv2d(12, 3, 1)

    def forward(self, images):
        return {"out": F.interpolate(self.head(self.body(images)), images.shape[2:])}


def make_plain(channels=3, num_classes=3):
    network = SmallCNN(num_classes)
    network[0] = nn.Conv2d(channels, 8, 3, stride=2, padding=1, bias=False)
    return network


def make_sceptic():
    """One number an image, which begins at a low probability, as where few images are a yes."""
    network = SmallCNN(1)
    nn.init.constant_(network[-1].bias, -2.0)
    return nn.Sequential(*network, nn.Sigmoid())


def make_volumes():
    return nn.Sequential(
        nn.Conv3d(3, 4, 3, padding=1), nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(4, 3)
    )


# What answers are compared by


def bce(answer, labels):
    return F.binary_cross_entropy_with_logits(answer, labels)


def any_loss(answer, labels):
    return answer.square().mean()


def nll(answer, labels):
    return F.nll_loss(answer.log(), labels)


PROTOTYPES = torch.randn(3, 12, generator=torch.Generator().manual_seed(0))


def likeness(embeddings):
    return F.normalize(embeddings) @ PROTOTYPES.T


def yes_and_no(logit):
    return torch.cat([-logit, logit], 1)


class ReadsClips(nn.Module):
    """A CNN for each frame and an LSTM over them, in one forward."""

    def __init__(self):
        super().__init__()
        self.body, self.reads = SmallCNN()[:8], nn.LSTM(12, 8, batch_first=True)
        self.head = nn.Linear(8, 3)

    def forward(self, clips):
        frames = self.body(clips.flatten(0, 1)).unflatten(0, clips.shape[:2])
        return self.head(self.reads(frames)[0][:, -1])
