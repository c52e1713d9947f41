"""Networks of strangers, each different in kind; `setups.py` says what becomes of them."""

from contextlib import nullcontext

import pytest
import timm
import torch
import torch.nn.functional as F
from strangers import SIZE, SmallCNN, make_vit
from torch import nn
from torch.utils.checkpoint import checkpoint
from torchvision.models import VisionTransformer
from torchvision.models.resnet import BasicBlock, ResNet
from torchvision.models.vgg import make_layers

# From libraries


def make_resnet(pool=True):
    network = ResNet(BasicBlock, [1, 1, 1, 1], num_classes=3)
    # The stem's pool is for images of 224 pixels: of 32 the last stage would be one position.
    network.maxpool = network.maxpool if pool else nn.Identity()
    return network


def make_vgg():
    """With ReLUs in place, as torchvision makes it."""
    pool = nn.AdaptiveAvgPool2d(7)
    layers = make_layers([8, "M", 12, 12, "M"])
    return nn.Sequential(layers, pool, nn.Flatten(), nn.Linear(12 * 49, 3))


def make_timm_vit(**kwargs):
    sizes = {"img_size": SIZE, "patch_size": 8, "depth": 2, "embed_dim": 24, "num_heads": 2}
    return timm.create_model("vit_tiny_patch16_224", num_classes=3, **sizes, **kwargs)


def make_convnext():
    sizes = {"depths": (1, 1, 1, 1), "dims": (8, 12, 16, 20), "patch_size": 1}
    return timm.create_model("convnext_atto", num_classes=3, **sizes)


def make_torchvision_vit():
    return VisionTransformer(SIZE, 8, 2, 2, 16, 32, num_classes=3)


def make_hugging_face(name, **sizes):
    transformers = pytest.importorskip("transformers")
    config = getattr(transformers, f"{name}Config")(num_labels=3, image_size=SIZE, **sizes)
    return getattr(transformers, f"{name}ForImageClassification")(config)


def make_hugging_face_vit():
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    return make_hugging_face("ViT", **sizes, intermediate_size=32, patch_size=8)


def make_hugging_face_resnet():
    sizes = {"embedding_size": 8, "hidden_sizes": [8, 16, 24], "depths": [1, 1, 1]}
    return make_hugging_face("ResNet", **sizes)


def make_graph_module():
    """Traced, so that its blocks are never called: only what is in them."""
    return torch.fx.symbolic_trace(make_resnet(pool=False))


def make_spectral():
    """Its weights are made anew at every call, by a module that takes a weight of four axes."""
    network = SmallCNN()
    nn.utils.parametrizations.spectral_norm(network[3])
    return network


# What happens in between


class Checkpointed(nn.Module):
    """Its last block keeps nothing for the backward, and runs again there."""

    def __init__(self):
        super().__init__()
        layers = SmallCNN()
        self.stem, self.block, self.head = layers[:3], layers[3:6], layers[6:]

    def forward(self, images):
        return self.head(checkpoint(self.block, self.stem(images), use_reentrant=False))


class Probe(nn.Module):
    """A linear probe: nothing but its head is trained."""

    def __init__(self, how):
        super().__init__()
        self.body, self.head, self.how = SmallCNN()[:8], nn.Linear(12, 3), how
        self.body.requires_grad_(how != "frozen")

    def forward(self, images):
        plain = {"no_grad": torch.no_grad, "inference": torch.inference_mode}
        with plain.get(self.how, nullcontext)():
            features = self.body(images)
        # What is made in inference mode has to be copied before anything is trained on it.
        change = {"detach": torch.Tensor.detach, "inference": torch.Tensor.clone}
        return self.head(change.get(self.how, nn.Identity())(features))


class ZeroHead(nn.Module):
    """Its head starts at zero and is not trained yet."""

    def __init__(self):
        super().__init__()
        self.net = SmallCNN()
        nn.init.zeros_(self.net[-1].weight).requires_grad_(False)

    def forward(self, images):
        return self.net(images)


class Queries(nn.Module):
    """Attention pooling of one's own: a learned query reads the patches."""

    def __init__(self):
        super().__init__()
        self.patches = nn.Conv2d(3, 16, 8, stride=8)
        self.block = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True, norm_first=True)
        self.query = nn.Parameter(torch.randn(1, 1, 16))
        self.reads, self.head = nn.MultiheadAttention(16, 2, batch_first=True), nn.Linear(16, 3)

    def forward(self, images):
        tokens = self.block(self.patches(images).flatten(2).transpose(1, 2))
        pooled = self.reads(self.query.expand(len(images), -1, -1), tokens, tokens)[0]
        return self.head(pooled[:, 0])


class Rows(nn.Module):
    """An LSTM that reads the image row by row: it has 32 tokens, none of which is a patch."""

    def __init__(self):
        super().__init__()
        self.reads, self.norm = nn.LSTM(3 * SIZE, 16, batch_first=True), nn.LayerNorm(16)
        self.head = nn.Linear(16, 3)

    def forward(self, images):
        rows = images.transpose(1, 2).flatten(2)
        return self.head(self.norm(self.reads(rows)[0]).mean(1))


class Recurrent(nn.Module):
    """One block again and again: what it gave last is the last feature map."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 4, stride=4)
        self.block = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
        self.head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3))

    def forward(self, images):
        features = self.stem(images)
        for _ in range(3):
            features = self.block(features)
        return self.head(features)


class Functional(nn.Module):
    """Its last convolution is no module, but a weight of its own."""

    def __init__(self):
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.Linear(12, 3)
        self.weight = nn.Parameter(torch.randn(12, 8, 3, 3) * 0.1)

    def forward(self, images):
        features = F.conv2d(self.stem(images).relu(), self.weight, stride=2, padding=1).relu()
        return self.head(features.mean((2, 3)))


class Transposes(nn.Module):
    """Its features lie on their side, as where one axis is read after the other."""

    def __init__(self):
        super().__init__()
        layers = SmallCNN()
        self.stem, self.rest = layers[:3], layers[3:]

    def forward(self, images):
        return self.rest(self.stem(images).mT)


class Ensemble(nn.Module):
    """The mean of two networks, in one forward."""

    def __init__(self):
        super().__init__()
        self.parts = nn.ModuleList([SmallCNN(), make_vit()])

    def forward(self, images):
        return sum(part(images) for part in self.parts) / 2


class Flattens(nn.Module):
    """A perceptron that takes the images itself."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(3 * SIZE**2, 16), nn.ReLU(), nn.Linear(16, 3))

    def forward(self, images):
        return self.layers(images.flatten(1))


class PatchesByHand(nn.Module):
    """A ViT as people write it with einops: no convolution, its norms inside its attention."""

    def __init__(self):
        super().__init__()
        self.embed, self.place = nn.Linear(3 * 64, 16), nn.Parameter(torch.randn(1, 17, 16))
        self.token = nn.Parameter(torch.randn(1, 1, 16))
        self.blocks = nn.ModuleList(nn.ModuleList([Reads(), Feeds()]) for _ in range(2))
        self.head = nn.Sequential(nn.LayerNorm(16), nn.Linear(16, 3))

    def forward(self, images):
        patches = F.unfold(images, 8, stride=8).mT
        tokens = torch.cat([self.token.expand(len(images), -1, -1), self.embed(patches)], 1)
        tokens = tokens + self.place
        for reads, feeds in self.blocks:
            tokens = reads(tokens) + tokens
            tokens = feeds(tokens) + tokens
        return self.head(tokens[:, 0])


class Reads(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm, self.to_qkv, self.out = nn.LayerNorm(16), nn.Linear(16, 48), nn.Linear(16, 16)

    def forward(self, tokens):
        queries, keys, values = self.to_qkv(self.norm(tokens)).chunk(3, 2)
        return self.out((queries @ keys.mT / 4).softmax(2) @ values)


class Feeds(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = nn.LayerNorm(16)
        self.layers = nn.Sequential(nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 16))

    def forward(self, tokens):
        return self.layers(self.norm(tokens))


class Bag(nn.Module):
    """Many patches of one slide, and one answer for all of them."""

    def __init__(self):
        super().__init__()
        self.body, self.head = SmallCNN()[:8], nn.Linear(12, 3)

    def forward(self, patches):
        return self.head(self.body(patches).amax(0, keepdim=True))
