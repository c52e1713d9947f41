"""Any optimiser of timm's by its name, and a weight decay that changes over the run."""

import math

import lightning.pytorch as pl
import pytest
import timm
import torch
from test_optim import FAMILIES, loader, trainer
from timm.optim import get_optimizer_info, list_optimizers
from timm.scheduler import CosineLRScheduler, StepLRScheduler
from torch import nn

from litcam.lightning_modules import MAE, Classifier, optim

pytestmark = pytest.mark.filterwarnings(
    "ignore:The '.*_dataloader' does not have many workers",
    "ignore:You defined a `validation_step`",
)
NAME, OPTIONS = FAMILIES["cnn"]
# Packages or derivatives that are not everywhere; the rest has to take a step.
ELSEWHERE = {"kron", "kronc", "kronw", "adahessian"}


def small():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(144, 3))


def step(network, optimizer, times=2):
    torch.manual_seed(1)
    for _ in range(times):
        network(torch.randn(4, 3, 8, 8)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    return torch.cat([p.detach().flatten() for p in network.parameters()])


@pytest.mark.slow
@pytest.mark.parametrize("name", list_optimizers())
def test_every_name_of_timm_steps_or_says_why(name):
    network = small()
    before = torch.cat([p.detach().flatten() for p in network.parameters()])
    groups = optim.parameter_groups(network, 1e-3)
    if isinstance(get_optimizer_info(name).opt_class, str) or name in ELSEWHERE:
        with pytest.raises(ValueError, match=rf"^optimizer {name} ") as error:
            optim.create_optimizer(groups, name)
        assert "\n" not in str(error.value)
        return
    after = step(network, optim.create_optimizer(groups, name))
    assert after.isfinite().all()
    assert not torch.equal(before, after)


@pytest.mark.parametrize(
    ("name", "options", "torchs"),
    [
        (
            "adamw",
            {"betas": [0.9, 0.95]},
            (torch.optim.AdamW, {"betas": (0.9, 0.95), "fused": True}),
        ),
        ("sgd", {}, (torch.optim.SGD, {"momentum": 0.9, "nesterov": True})),
    ],
)
def test_the_usual_two_are_torchs_to_the_bit(name, options, torchs):
    networks = small(), small()
    kind, arguments = torchs
    groups = [optim.parameter_groups(network, 1e-2) for network in networks]
    ours = step(networks[0], optim.create_optimizer(groups[0], name, options))
    theirs = step(networks[1], kind(groups[1], **arguments))
    assert torch.equal(ours, theirs)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"optimizer": "lam"}, r"got 'lam'; did you mean .*lamb.*\?$"),
        ({"optimizer": "adamw", "optimizer_args": {"beta": 1}}, r"adamw takes no 'beta'.*betas"),
        ({"optimizer": "lamb", "optimizer_args": {"lr": 1.0}}, "lamb takes no 'lr'"),
        (
            {"optimizer": "adamw", "optimizer_args": {"betas": [0.9, 1.5]}},
            r"betas=\[0.9, 1.5\].*1.5$",
        ),
        ({"optimizer": "adahessian"}, "second derivatives"),
        ({"weight_decay": 0.0, "weight_decay_end": 0.2}, "needs a weight_decay above 0"),
        ({"weight_decay_end": -1.0}, "weight_decay_end must be at least 0, got -1.0"),
        ({"warmup_lr_ratio": 2.0}, r"warmup_lr_ratio must be in \[0, 1\], got 2.0"),
    ],
)
def test_a_mistake_is_one_line_before_any_data(arguments, message):
    with pytest.raises(ValueError, match=message) as error:
        Classifier(NAME, 4, backbone_args=OPTIONS, **arguments)
    assert "\n" not in str(error.value)


def test_mae_has_the_betas_of_its_paper():
    vit, _ = FAMILIES["vit"]
    small = {"decoder_dim": 32, "decoder_depth": 1, "image_size": 32}
    small["backbone_args"] = {"patch_size": 8, "depth": 1}
    assert MAE(vit, **small).hparams["optimizer_args"]["betas"] == (0.9, 0.95)
    assert MAE(vit, **small, optimizer="lamb").hparams["optimizer_args"] is None


@pytest.mark.parametrize("prefix", [True, False])
def test_a_warmup_from_a_share_of_the_peak_is_timms(prefix):
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.4)
    length = 90 if prefix else 100  # timm counts a prefix on top
    timms = CosineLRScheduler(
        optimizer, length, lr_min=0.004, warmup_t=10, warmup_lr_init=0.04, warmup_prefix=prefix
    )
    factor = optim.warmup_cosine(
        10, 100, min_lr_ratio=0.01, warmup_lr_ratio=0.1, warmup_prefix=prefix
    )
    for now in range(100):
        timms.step(now)
        assert optimizer.param_groups[0]["lr"] == pytest.approx(0.4 * factor(now))


def test_stairs_are_timms():
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.4)
    timms = StepLRScheduler(
        optimizer, 2.4, 0.97, warmup_t=3, warmup_lr_init=0.04, warmup_prefix=False
    )
    factor = optim.warmup_stairs(3 * 5, 5, (2.4, 0.97), warmup_lr_ratio=0.1)
    for epoch in range(40):
        timms.step(epoch)
        # timm changes the rate between epochs, also in the warm-up.
        assert optimizer.param_groups[0]["lr"] == pytest.approx(0.4 * factor(5 * epoch))
        if epoch >= 3:
            assert factor(5 * epoch) == factor(5 * epoch + 4)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_head_has_its_own_rate(family):
    name, options = FAMILIES[family]
    model = timm.create_model(name, num_classes=4, **options)
    rates = {
        parameter: group["lr"]
        for group in optim.parameter_groups(model, 0.1, head_lr_scale=10.0)
        for parameter in group["params"]
    }
    head = set(model.get_classifier().parameters())
    assert {rates[p] for p in head} == {1.0}
    assert {rates[p] for p in model.parameters() if p not in head} == {0.1}


class Rates(pl.Callback):
    """Write down the learning rate of every step."""

    def __init__(self):
        self.seen = []

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        self.seen.append(optimizer.param_groups[0]["lr"])


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        # 24 steps, of which a tenth warms up
        ({"warmup_epochs": None, "min_lr_ratio": 1.0}, [0.5] + 23 * [1.0]),
        ({"warmup_epochs": 0, "step_decay": [2, 0.1]}, 12 * [1.0] + 12 * [0.1]),
    ],
)
def test_the_rate_of_a_run(options, expected):
    rates = Rates()
    module = Classifier(NAME, 4, backbone_args=OPTIONS, lr=1.0, scale_lr=False, **options)
    trainer(max_epochs=4, callbacks=[rates]).fit(module, loader())
    assert rates.seen == pytest.approx(expected)


class Decays(pl.Callback):
    """Write down the weight decay that each step of the optimiser used."""

    def __init__(self):
        self.seen = []

    def on_train_batch_end(self, trainer, *args):
        groups = trainer.optimizers[0].param_groups
        self.seen.append({group["name"]: group["weight_decay"] for group in groups})


def test_weight_decay_follows_a_cosine_and_goes_on_after_a_stop(tmp_path):
    def run(epochs, checkpoint=None):
        seen = Decays()
        module = Classifier(
            NAME, 4, backbone_args=OPTIONS, optimizer="lamb", weight_decay=0.04,
            weight_decay_end=0.2, warmup_epochs=1, warmup_lr_ratio=0.005,
        )  # fmt: skip
        fit = trainer(max_epochs=epochs, callbacks=[seen])
        fit.fit(module, loader(), ckpt_path=checkpoint)
        return fit, seen.seen

    _, whole = run(4)
    # SparK's formula, in its form; 6 steps an epoch
    expected = [0.2 + (0.04 - 0.2) * (0.5 + 0.5 * math.cos(math.pi * s / 24)) for s in range(24)]
    assert [step["decay"] for step in whole] == pytest.approx(expected)
    assert {step["no_decay"] for step in whole} == {0.0}
    first, _ = run(2)
    first.save_checkpoint(tmp_path / "last.ckpt")
    # Of what is left, and of what a longer run makes of it.
    _, rest = run(4, tmp_path / "last.ckpt")
    assert rest == whole[12:]
    _, longer = run(8, tmp_path / "last.ckpt")
    at = 0.2 + (0.04 - 0.2) * (0.5 + 0.5 * math.cos(math.pi * 12 / 48))
    assert longer[0]["decay"] == pytest.approx(at)
