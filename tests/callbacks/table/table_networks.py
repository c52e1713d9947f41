"""Networks, of libraries and by hand, and what appears."""

import foreign_networks as n
import foreign_steps as s
import torch
from foreign_row import Setup, last, tokens
from strangers import NETWORKS as FAMILIES
from strangers import SmallCNN
from torch import nn

NETWORKS = [
    Setup("a hand-written CNN", s.Foreign, "net.4"),
    Setup("called as self(images)", s.ByForward, "net.4", network=""),
    Setup("called as self(batch)", s.ByBatch, "net.4"),
    Setup("torchvision ResNet", lambda: s.Foreign(n.make_resnet(pool=False)), "net.layer4"),
    Setup("the same, too deep for 32 pixels", lambda: s.Foreign(n.make_resnet()), "net.layer3"),
    Setup("VGG with ReLUs in place", lambda: s.Foreign(n.make_vgg()), "net.0.5"),
    Setup("timm ConvNeXt", lambda: s.Foreign(n.make_convnext()), "net.stages.3"),
    Setup(
        "timm ViT, class token",
        lambda: s.Foreign(FAMILIES["vit"]()),
        "net.blocks.1.norm1",
        fold=tokens,
    ),
    Setup(
        "timm ViT, registers",
        lambda: s.Foreign(n.make_timm_vit(reg_tokens=4)),
        "net.blocks.1.norm1",
        fold=tokens,
    ),
    Setup(
        "timm ViT, average pooling",
        lambda: s.Foreign(n.make_timm_vit(global_pool="avg")),
        "net.blocks.1",
        fold=tokens,
    ),
    Setup(
        "timm ViT, attention pooling",
        lambda: s.Foreign(n.make_timm_vit(global_pool="map", class_token=False)),
        "net.blocks.1",
        fold=tokens,
    ),
    Setup("timm Swin, NHWC", lambda: s.Foreign(FAMILIES["swin"]()), "net.norm", fold=last),
    Setup(
        "torchvision ViT",
        lambda: s.Foreign(n.make_torchvision_vit()),
        "net.encoder.layers.encoder_layer_1.ln_1",
        fold=tokens,
    ),
    Setup(
        "Hugging Face ViT",
        lambda: s.Logits(n.make_hugging_face_vit()),
        "net.vit.layers.1.layernorm_before",
        fold=tokens,
        scores=lambda output: output.logits,
    ),
    Setup(
        "Hugging Face ResNet",
        lambda: s.Logits(n.make_hugging_face_resnet()),
        "net.resnet.encoder.stages.2",
        scores=lambda output: output.logits,
    ),
    Setup("DataParallel", lambda: s.Foreign(nn.DataParallel(SmallCNN())), "net.module.4"),
    Setup("spectral norm", lambda: s.Foreign(n.make_spectral()), "net.4"),
    Setup(
        "memory with channels last",
        lambda: s.Foreign(SmallCNN().to(memory_format=torch.channels_last)),
        "net.4",
    ),
    Setup(
        "a traced graph, whose blocks are not called",
        lambda: s.Foreign(n.make_graph_module()),
        "net.layer1.0.bn2",
        told="before the ways from it to the logits part",
    ),
    Setup("attention pooling by hand", lambda: s.Foreign(n.Queries()), "net.block", fold=tokens),
    Setup("checkpointed block", lambda: s.Foreign(n.Checkpointed()), "net.block"),
    Setup("an LSTM over rows", lambda: s.Foreign(n.Rows()), refused="not the patches"),
    Setup(
        "one block three times",
        lambda: s.Foreign(n.Recurrent()),
        "net.stem",
        told="those after it come again",
    ),
    Setup(
        "last convolution is no module",
        lambda: s.Foreign(n.Functional()),
        refused="target_layer",
    ),
    Setup(
        "features on their side",
        lambda: s.Foreign(n.Transposes()),
        "net.rest.4",
        fold=lambda features, grid: features.mT,
        wrong="believes rows and columns: the map lies on its side, without a word",
    ),
    Setup(
        "two networks in one",
        lambda: s.Foreign(n.Ensemble()),
        refused="side by side",
    ),
    Setup("MLP that flattens", lambda: s.Foreign(n.Flattens()), refused="no feature map at all"),
    Setup(
        "ViT by hand, class token",
        lambda: s.Foreign(n.PatchesByHand()),
        "net.blocks.1.0.norm",
        fold=tokens,
    ),
    Setup("zero head", lambda: s.Foreign(n.ZeroHead()), refused="head's weights all zero"),
]
