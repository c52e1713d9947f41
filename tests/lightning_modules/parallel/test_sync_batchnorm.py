"""BatchNorm over all processes takes nothing away from timm's networks."""

from functools import partial

import lightning.pytorch as pl
import pytest
import timm
import torch
from lightning.pytorch.plugins.layer_sync import TorchSyncBatchNorm
from timm.layers import SyncBatchNormAct
from torch import nn

from litcam.lightning_modules import MAE, Classifier
from litcam.lightning_modules.parallel.sync_batchnorm import TimmSyncBatchNorm

PAPER = [
    "mobilenetv3_large_100",
    "vgg11_bn",
    "resnet34",
    "regnety_008",
    "efficientnet_b0",
    "vit_tiny_patch16_224",
    "swin_tiny_patch4_window7_224",
]
OTHERS = ["densenet121", "mobilenetv2_100", "convnext_atto", "resnetv2_50d_gn", "rexnet_100"]
SIZE = {"vit_tiny_patch16_224": 224, "swin_tiny_patch4_window7_224": 224}


@pytest.mark.parametrize("name", [*PAPER, *OTHERS])
def test_a_network_computes_the_same_and_is_itself_again(name):
    torch.manual_seed(0)
    network = timm.create_model(name, num_classes=5).eval()
    images = torch.randn(2, 3, SIZE.get(name, 64), SIZE.get(name, 64))
    classes = {at: type(module) for at, module in network.named_modules()}
    names = list(network.state_dict())
    heard = []
    for module in network.modules():
        module.register_forward_hook(lambda *_: heard.append(0))
    expected, before = network(images), len(heard)
    sync = TimmSyncBatchNorm()
    assert sync.apply(network) is network
    assert torch.equal(network(images), expected)
    assert len(heard) == 2 * before  # hooks of a user stay
    layers = [at for at in network.modules() if isinstance(at, nn.modules.batchnorm._BatchNorm)]
    assert all(isinstance(at, nn.SyncBatchNorm | SyncBatchNormAct) for at in layers)
    network.train()
    torch.manual_seed(1)
    trained = network(images)
    assert sync.revert(network) is network
    assert {at: type(module) for at, module in network.named_modules()} == classes
    assert list(network.state_dict()) == names
    torch.manual_seed(1)
    assert torch.equal(network(images), trained)


def test_what_lightning_does_without_us_takes_activations_away():
    # Once this fails, our own conversion can go.
    network = timm.create_model("efficientnet_b0", num_classes=5).eval()
    images = torch.randn(1, 3, 64, 64)
    expected = network(images)
    assert not torch.allclose(TorchSyncBatchNorm().apply(network)(images), expected)


def test_a_layer_without_a_counterpart_is_named():
    class Odd(nn.BatchNorm2d):
        def forward(self, x):
            return 2 * super().forward(x)

    with pytest.raises(ValueError, match=r"no counterpart for Odd at '1'; .*sync_batchnorm false"):
        TimmSyncBatchNorm().apply(nn.Sequential(nn.Conv2d(3, 3, 1), Odd(3)))


def test_what_is_synced_already_is_left_alone():
    group = object()
    network = nn.Sequential(nn.SyncBatchNorm(3, process_group=group))
    sync = TimmSyncBatchNorm()
    sync.revert(sync.apply(network))
    assert type(network[0]) is nn.SyncBatchNorm and network[0].process_group is group


# Torch lets DDP have such layers on a GPU only; what can be seen here is who converts.
@pytest.mark.parametrize("module", [Classifier, partial(MAE, image_size=64)])
def test_a_trainer_converts_as_we_do(module):
    trainer = pl.Trainer(
        accelerator="cpu", devices=1, strategy="ddp", sync_batchnorm=True, logger=False
    )
    model = module("resnet10t")
    model.trainer = trainer
    model.setup("fit")
    assert type(trainer.strategy._layer_sync) is TimmSyncBatchNorm
    plain = pl.Trainer(accelerator="cpu", devices=1, strategy="ddp", logger=False)
    model.trainer = plain
    model.setup("fit")
    assert plain.strategy._layer_sync is None


def test_a_plugin_of_the_user_is_left_alone():
    class Own(TorchSyncBatchNorm):
        pass

    plugin = Own()
    model = Classifier("resnet10t")
    model.trainer = pl.Trainer(
        accelerator="cpu", devices=1, strategy="ddp", plugins=[plugin], logger=False
    )
    model.setup("fit")
    assert model.trainer.strategy._layer_sync is plugin
