"""What recipes ask of the classifier: losses, probes without dropout, warnings."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from test_classifier import Data, make, trainer
from timm.models import save_for_hf
from torch import nn

from litcam.commands.explaining.models import load_model
from litcam.lightning_modules import Classifier
from litcam.lightning_modules.probing import StandardisedLinear, plain_heads
from litcam.lightning_modules.weights.saving import save_encoder

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


def test_a_standardised_probe_is_a_batchnorm_without_parameters_and_a_linear_layer():
    """In training and evaluation, as MAE's authors build it."""
    ours = StandardisedLinear(6, 3)
    theirs = nn.Sequential(nn.BatchNorm1d(6, eps=1e-6, affine=False), nn.Linear(6, 3))
    theirs[1].load_state_dict({"weight": ours.weight.detach(), "bias": ours.bias.detach()})
    for mode in (True, True, False):
        features = 5 + 3 * torch.randn(16, 6)
        found = [head.train(mode)(features) for head in (ours, theirs)]
        assert torch.equal(*found)
        for head, scores in zip((ours, theirs), found, strict=True):
            head.zero_grad()
            scores.square().sum().backward()
        assert torch.equal(ours.weight.grad, theirs[1].weight.grad)
    plain = nn.Linear(6, 3)
    plain.load_state_dict(plain_heads(ours.state_dict()))
    torch.testing.assert_close(plain(features), found[0])
    # A part of one is no head, and stays for whoever loads it to refuse.
    part = {k: v for k, v in ours.state_dict().items() if not k.endswith("running_var")}
    assert plain_heads(part).keys() == part.keys()


@pytest.mark.parametrize("family", ["cnn", "vit"])
def test_what_a_standardised_probe_leaves_is_a_plain_network(family, tmp_path):
    module = make(family, linear_probe="batchnorm", optimizer="lars", weight_decay=0.0)
    before = {key: value.clone() for key, value in module.state_dict().items()}
    run = trainer()
    run.fit(module, Data())
    run.save_checkpoint(file := tmp_path / "last.ckpt")
    head = module.backbone.pretrained_cfg["classifier"]
    moved = {key for key, value in module.backbone.state_dict().items()
             if not value.equal(before[f"backbone.{key}"])}  # fmt: skip
    norm = {f"{head}.probe_norm.{name}" for name in
            ("running_mean", "running_var", "num_batches_tracked")}  # fmt: skip
    assert moved == {f"{head}.weight", f"{head}.bias", *norm}
    images = next(iter(Data().val_dataloader()))["image"]
    with torch.no_grad():
        expected = module.eval()(images)
        stored = load_model(str(file), pretrained=False)
        assert not any("probe_norm" in key for key in stored.network.state_dict())
        torch.testing.assert_close(stored.network(images), expected)
        again = Classifier.load_from_checkpoint(file).eval()
        assert torch.equal(again(images), expected)
        tuned = make(family, weights=str(file)).eval()
        torch.testing.assert_close(tuned(images), expected)


def test_a_probe_that_cannot_be_standardised_is_one_line():
    said = "needs a linear head, and ResNetV2.head.fc is Conv2d; take linear_probe=True"
    with pytest.raises(ValueError, match=said):
        Classifier("resnetv2_18", 4, linear_probe="batchnorm")
    with pytest.raises(ValueError, match="linear_probe must be true, false or batchnorm, got 'bn'"):
        Classifier("resnet10t", 4, linear_probe="bn")


@pytest.mark.parametrize("norm_eval", [True, False])
def test_batchnorm_in_eval_mode_learns_its_scales_alone(norm_eval):
    module = make("cnn", norm_eval=norm_eval)
    before = {key: value.clone() for key, value in module.backbone.state_dict().items()}
    trainer().fit(module, Data())
    after = module.backbone.state_dict()
    changed = {key.rpartition(".")[2] for key, was in before.items() if not was.equal(after[key])}
    assert {"weight", "bias"} <= changed
    assert ({"running_mean", "running_var"} <= changed) == (not norm_eval)
    assert ("num_batches_tracked" in changed) == (not norm_eval)


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


class Normalised(Data):
    def __init__(self, mean, std):
        super().__init__()
        self.mean, self.std = mean, std


IMAGENET, HALVES = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)), ((0.5,) * 3, (0.5,) * 3)


@pytest.mark.parametrize("layout", ["encoder.safetensors", "timm's folder", "a file in it"])
def test_weights_of_another_normalisation_say_so(layout, tmp_path, recwarn):
    network = make("cnn").backbone
    if layout == "encoder.safetensors":
        facts = {"mean": list(HALVES[0]), "std": list(HALVES[1])}
        weights = save_encoder(network, tmp_path / layout, facts)
    else:
        network.pretrained_cfg |= {"mean": HALVES[0], "std": HALVES[1]}
        save_for_hf(network, tmp_path, safe_serialization=True)
        weights = tmp_path if layout == "timm's folder" else tmp_path / "model.safetensors"
    module = make("cnn", weights=str(weights))
    trainer().validate(module, Normalised(*HALVES), verbose=False)
    assert not [each for each in recwarn if "was trained on" in str(each.message)]
    line = r"mean \[0.5, 0.5, 0.5\] .* pass --data.mean '\[0.5, 0.5, 0.5\]' --data.std"
    with pytest.warns(UserWarning, match=line):
        trainer().validate(module, Normalised(*IMAGENET), verbose=False)
