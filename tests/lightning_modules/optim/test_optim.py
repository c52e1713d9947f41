"""Groups, layer-wise decay, schedule and learning rate, against independent formulas."""

import math

import lightning.pytorch as pl
import pytest
import timm
import torch
from torch.utils.data import DataLoader, IterableDataset

from litcam.lightning_modules import Classifier, optim

FAMILIES = {
    "cnn": ("resnet10t", {"channels": (8, 16, 16, 24)}),
    "vit": ("vit_tiny_patch16_224", {"img_size": 32, "patch_size": 8, "depth": 2}),
    "swin": (
        "swin_tiny_patch4_window7_224",
        {
            "img_size": 32,
            "window_size": 2,
            "embed_dim": 16,
            "depths": (1, 1, 1, 1),
            "num_heads": (1, 1, 2, 2),
        },
    ),
}


@pytest.fixture(params=FAMILIES)
def model(request):
    torch.manual_seed(0)
    name, options = FAMILIES[request.param]
    return timm.create_model(name, num_classes=4, **options)


def owners(model, groups):
    """Map each parameter's name to its group."""
    group_of = {id(p): group for group in groups for p in group["params"]}
    return {name: group_of.get(id(p)) for name, p in model.named_parameters()}


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """Tiny tensors: a second thread costs more than it brings."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def loader(batch_size=4, length=24):
    rows = [{"image": torch.randn(3, 32, 32), "label": i % 4, "index": i} for i in range(length)]
    return DataLoader(rows, batch_size=batch_size)


def trainer(**options):
    quiet = dict.fromkeys(
        ["logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"], False
    )
    return pl.Trainer(accelerator="cpu", devices=1, **{**quiet, **options})


pytestmark = pytest.mark.filterwarnings(
    "ignore:The '.*_dataloader' does not have many workers",
    "ignore:You defined a `validation_step`",
    "ignore:.*treespec, LeafSpec.*:FutureWarning",  # lightning 2.6.6 on torch 2.15
)


def test_no_decay_on_norms_biases_and_what_the_model_names(model):
    groups = optim.parameter_groups(model, 1.0, weight_decay=0.05)
    exempt = model.no_weight_decay() if hasattr(model, "no_weight_decay") else set()
    for name, group in owners(model, groups).items():
        parameter = model.get_parameter(name)
        free = parameter.ndim <= 1 or name in exempt
        assert group["weight_decay"] == (0 if free else 0.05), name
    assert [group["name"] for group in groups] == ["decay", "no_decay"]


def test_norm_lr_scale_reaches_norms_and_nothing_else(model):
    groups = optim.parameter_groups(model, 1.0, norm_lr_scale=0.1)
    kinds = (torch.nn.BatchNorm2d, torch.nn.LayerNorm)
    norms = {id(p) for m in model.modules() if isinstance(m, kinds) for p in m.parameters()}
    assert norms
    for name, group in owners(model, groups).items():
        assert group["lr"] == (0.1 if id(model.get_parameter(name)) in norms else 1.0), name


@pytest.mark.parametrize("weight_decay", [0.0, 0.05])
def test_every_trainable_parameter_once_under_a_unique_name(model, weight_decay):
    first = next(iter(model.parameters())).requires_grad_(False)
    groups = optim.parameter_groups(
        model, 1.0, weight_decay=weight_decay, layer_decay=0.5, norm_lr_scale=2.0
    )
    found = [id(p) for group in groups for p in group["params"]]
    assert sorted(found) == sorted(id(p) for p in model.parameters() if p.requires_grad)
    assert id(first) not in found
    assert len({group["name"] for group in groups}) == len(groups)


def test_layer_decay_is_a_power_of_the_distance_from_the_head():
    name, options = FAMILIES["vit"]
    model = timm.create_model(name, num_classes=4, **options)
    rates = {
        name: group["lr"]
        for name, group in owners(
            model, optim.parameter_groups(model, 1.0, layer_decay=0.5)
        ).items()
    }
    # embedding, two blocks (timm counts the final norm to the last), head: 4 layers, BEiT's rule
    assert rates["head.weight"] == 1
    assert rates["blocks.1.attn.qkv.weight"] == rates["norm.weight"] == 0.5
    assert rates["blocks.0.attn.qkv.weight"] == 0.25
    assert rates["patch_embed.proj.weight"] == rates["pos_embed"] == 0.125


def test_layer_decay_changes_the_steps_under_the_schedule(model):
    """SGD without momentum moves a weight by lr × scale × factor × gradient, by layer."""
    groups = optim.parameter_groups(model, 0.1, weight_decay=0.0, layer_decay=0.5)
    rates = {name: group["lr"] for name, group in owners(model, groups).items()}
    optimizer = optim.create_optimizer(groups, "sgd", {"momentum": 0.0, "nesterov": False})
    factor = optim.warmup_cosine(2, 6)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
    for step in range(4):
        for parameter in model.parameters():
            parameter.grad = torch.ones_like(parameter)
        before = {name: p.detach().clone() for name, p in model.named_parameters()}
        optimizer.step()
        schedule.step()
        for name, parameter in model.named_parameters():
            moved = before[name] - parameter
            expected = torch.full_like(moved, rates[name] * factor(step))
            torch.testing.assert_close(moved, expected, atol=1e-6, rtol=1e-4)
    assert len(set(rates.values())) > 2


def test_warmup_and_cosine_against_a_second_formula():
    factor = optim.warmup_cosine(10, 110, min_lr_ratio=0.1)
    assert [factor(s) for s in range(10)] == pytest.approx([(s + 1) / 10 for s in range(10)])
    # sin² form of the same half wave
    decay = [0.1 + 0.9 * (1 - math.sin(math.pi * s / 200) ** 2) for s in range(101)]
    assert [factor(10 + s) for s in range(101)] == pytest.approx(decay)
    assert factor(500) == pytest.approx(0.1)
    assert optim.warmup_cosine(0, 4)(0) == 1


class Rates(pl.Callback):
    """Write down the learning rate of every optimiser step."""

    def __init__(self):
        self.seen = []

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        self.seen.append([group["lr"] for group in optimizer.param_groups])


@pytest.mark.parametrize("accumulate", [1, 2])
def test_learning_rate_of_a_run_counts_accumulation(accumulate):
    rates = Rates()
    name, options = FAMILIES["cnn"]
    module = Classifier(name, 4, backbone_args=options, lr=0.256, warmup_epochs=1, min_lr_ratio=0.0)
    run = trainer(max_epochs=3, accumulate_grad_batches=accumulate, callbacks=[rates])
    run.fit(module, loader(batch_size=4, length=24))
    peak, epoch = 0.256 * 4 * accumulate / 256, 6 // accumulate
    up = [peak * (s + 1) / epoch for s in range(epoch)]
    down = [peak * (1 + math.cos(math.pi * s / (2 * epoch))) / 2 for s in range(2 * epoch)]
    assert [step[0] for step in rates.seen] == pytest.approx(up + down)


def test_unscaled_rate_and_a_warmup_longer_than_the_run():
    rates = Rates()
    name, options = FAMILIES["cnn"]
    module = Classifier(
        name, 4, backbone_args=options, optimizer="sgd", lr=0.01, scale_lr=False, warmup_epochs=50
    )
    trainer(max_epochs=2, callbacks=[rates]).fit(module, loader(length=20))
    seen = [step[0] for step in rates.seen]
    assert len(seen) == 10
    assert max(seen) == seen[0] == pytest.approx(0.01)  # a tenth of 10 steps warms up
    assert seen[-1] < 0.001


def test_clipping_gradients_works_in_mixed_precision():
    name, options = FAMILIES["cnn"]
    module = Classifier(name, 4, backbone_args=options)
    run = trainer(max_steps=2, precision="bf16-mixed", gradient_clip_val=1.0)
    run.fit(module, loader())
    assert run.global_step == 2


@pytest.mark.parametrize("algorithm", ["norm", "value"])
def test_a_fused_optimiser_clips_as_lightning_does(algorithm):
    """Which it refuses under bfloat16 for the sake of a scaler that is not there."""
    weights = []
    for clip in (None, Classifier.clip_gradients):
        torch.manual_seed(0)
        name, options = FAMILIES["cnn"]
        module = Classifier(name, 4, backbone_args=options, lr=0.1)
        if clip is not None:  # Lightning's own way, in 32 bits
            module.configure_gradient_clipping = lambda *args, m=module, **given: m.clip_gradients(
                *args, **given
            )
        run = trainer(max_steps=3, gradient_clip_val=1e-3, gradient_clip_algorithm=algorithm)
        run.fit(module, loader())
        assert run.optimizers[0].param_groups[0]["fused"]
        weights.append(torch.cat([p.detach().flatten() for p in module.parameters()]))
    torch.testing.assert_close(*weights, rtol=0, atol=1e-7)


class Endless(IterableDataset):
    def __iter__(self):
        while True:
            yield {"image": torch.randn(3, 32, 32), "label": 1}


@pytest.mark.parametrize(
    ("options", "batch_size", "limits", "message"),
    [
        ({"warmup_epochs": 0}, 2, {"max_epochs": 1}, "the schedule needs an end"),
        ({"warmup_epochs": 1}, 2, {"max_steps": 2}, "warmup_epochs=1 cannot be counted"),
        ({"warmup_epochs": 0}, None, {"max_steps": 2}, "DataLoader has no batch_size"),
    ],
)
def test_runs_that_cannot_be_scheduled_say_why(options, batch_size, limits, message):
    name, backbone_args = FAMILIES["cnn"]
    module = Classifier(name, 4, backbone_args=backbone_args, **options)
    with pytest.raises(ValueError, match=message):
        trainer(**limits).fit(module, DataLoader(Endless(), batch_size=batch_size))
