"""What recipes ask of the classifier: losses, probes without dropout, warnings."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from test_classifier import Data, make, trainer

from litcam.lightning_modules import Classifier
from litcam.lightning_modules.checkpoints import save_encoder

pytestmark = pytest.mark.filterwarnings(
    "ignore:The '.*_dataloader' does not have many workers",
    "ignore:.*treespec, LeafSpec.*:FutureWarning",
)


@pytest.mark.parametrize("cutmix", [0.0, 1.0])
def test_binary_cross_entropy_is_of_classes_present_or_not(cutmix):
    module = make("cnn", bce_threshold=0.2, cutmix=cutmix, mixup=0.0)
    images, labels = torch.randn(4, 3, 32, 32), torch.tensor([0, 1, 2, 3])
    module.trainer = trainer()
    torch.manual_seed(0)
    np.random.seed(0)  # noqa: NPY002 - timm's Mixup draws there
    mixed, targets = module._mixed(images, labels) if cutmix else (images, F.one_hot(labels, 8))
    present = (targets > 0.2).float()
    logits = module(mixed)
    terms = present * F.logsigmoid(logits) + (1 - present) * F.logsigmoid(-logits)
    given = targets if cutmix else labels
    torch.testing.assert_close(module._loss(logits, given), -terms.mean())
    if cutmix:
        assert present.sum(1).max() == 2  # both of a pair


def test_a_linear_probe_sees_the_same_features_twice():
    """timm's EfficientNet drops features in the root's forward, which keeps training."""
    probe = Classifier("mobilenetv3_small_050", 4, linear_probe=True, drop_rate=0.5).train()
    images = torch.randn(2, 3, 32, 32)
    assert torch.equal(probe(images), probe(images))
    tuned = Classifier("mobilenetv3_small_050", 4, drop_rate=0.5).train()
    assert not torch.equal(tuned(images), tuned(images))


def test_weights_count_before_pretrained_ones(tmp_path):
    file = save_encoder(make("cnn").backbone, tmp_path / "mine.safetensors")
    module = make("cnn", pretrained=True, weights=str(file))  # no network is asked
    assert torch.equal(next(module.backbone.parameters()), next(make("cnn").backbone.parameters()))


@pytest.mark.parametrize("source", ["weights", "checkpoint"])
def test_layer_decay_of_trained_weights_is_no_news(source, tmp_path, recwarn):
    file = save_encoder(make("vit").backbone, tmp_path / "mine.safetensors")
    module = make("vit", layer_decay=0.7, weights=str(file))
    run = trainer()
    run.fit(module, Data())
    if source == "checkpoint":
        run.save_checkpoint(tmp_path / "last.ckpt")
        module = Classifier.load_from_checkpoint(tmp_path / "last.ckpt", weights_only=True)
        trainer().fit(module, Data())
    assert not [each for each in recwarn if "layer_decay" in str(each.message)]
