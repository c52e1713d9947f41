"""Training with the callback is training without it, to the bit, and nothing runs twice."""

import copy
import random
from pathlib import Path

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import Callback, EMAWeightAveraging
from strangers import NETWORKS, SmallCNN, Stranger, count_hooks, make_trainer, read_lines
from torch import nn

from litcam.callbacks import GradCAM


class Witness(Callback):
    """Counts forwards, and keeps each validation's metrics and the random state after it."""

    def __init__(self, net):
        self.counts = {"net": 0, "conv": 0}
        self.metrics, self.random = [], []
        net.register_forward_hook(lambda *_: self._count("net"))
        conv = next(part for part in net.modules() if isinstance(part, nn.Conv2d))
        conv.register_forward_hook(lambda *_: self._count("conv"))

    def _count(self, name):
        self.counts[name] += 1

    def on_validation_end(self, trainer, pl_module):
        self.metrics.append({k: v.clone() for k, v in trainer.callback_metrics.items()})
        numbers = np.random.get_state()[1].tolist()  # noqa: NPY002
        self.random.append((torch.get_rng_state(), numbers, random.getstate()))


def run(family, explained, change=lambda module: module, extra=(), also_validate=True, **kwargs):
    """Trains and validates; returns all that a callback must leave alone."""
    pl.seed_everything(3, verbose=False)
    module = Stranger(NETWORKS[family]())
    witness = Witness(module.net)
    module = change(module)
    cam = [GradCAM()] if explained else []
    trainer = make_trainer(*extra, *cam, witness, **kwargs)
    trainer.fit(module)
    weights = copy.deepcopy(getattr(module, "_orig_mod", module).state_dict())
    optimizer = copy.deepcopy(trainer.optimizers[0].state_dict())
    if also_validate:
        trainer.validate(module, verbose=False)
    return {
        "counts": witness.counts,
        "random": witness.random,
        "weights": weights,
        "optimizer": optimizer,
        "metrics": witness.metrics,
    }


def assert_same(left, right, tolerance=0.0):
    if isinstance(left, torch.Tensor):
        torch.testing.assert_close(left, right, rtol=0, atol=tolerance, equal_nan=True)
    elif isinstance(left, dict):
        assert left.keys() == right.keys()
        for key in left:
            assert_same(left[key], right[key], tolerance)
    elif isinstance(left, list | tuple):
        assert len(left) == len(right)
        for pair in zip(left, right, strict=True):
            assert_same(*pair, tolerance)
    else:
        assert left == right


def compare(family, tolerance=0.0, extra=lambda: (), **kwargs):
    without = run(family, False, extra=extra(), **kwargs)
    with_it = run(family, True, extra=extra(), **kwargs)
    for name in ("counts", "random", "weights", "optimizer"):
        assert_same(without[name], with_it[name])
    # The callback adds its own, under its own name.
    others = [{k: v for k, v in m.items() if "/gradcam/" not in k} for m in with_it["metrics"]]
    assert_same(without["metrics"], others, tolerance)
    assert read_lines(Path("gradcam")), "nothing was explained"


def freeze(module):
    module.net[:4].requires_grad_(False)
    return module


def freeze_all_but_head(module):
    module.net.requires_grad_(False)
    module.net[-1].requires_grad_(True)
    return module


MID_WINDOW = {"accumulate_grad_batches": 2, "val_check_interval": 1}


@pytest.mark.parametrize("family", ["cnn", "vit", "swin"])
@pytest.mark.parametrize("kwargs", [{}, MID_WINDOW], ids=["plain", "accumulation"])
def test_training_is_bitwise_the_same(family, kwargs):
    compare(family, **kwargs)


@pytest.mark.parametrize("change", [freeze, freeze_all_but_head])
def test_with_frozen_stages(change):
    compare("cnn", change=change)


def test_with_ema():
    compare("cnn", extra=lambda: (EMAWeightAveraging(decay=0.5),))


@pytest.mark.parametrize("family", ["cnn", "vit"])
def test_in_bf16(family):
    compare(family, precision="bf16-mixed")


def test_attention_fast_path_to_1e_6():
    compare("transformer", tolerance=1e-6)


@pytest.mark.slow
def test_compiled_with_aot_eager():
    torch._dynamo.reset()
    compare("cnn", change=lambda module: torch.compile(module, backend="aot_eager"))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
def test_compiled_with_inductor():
    torch._dynamo.reset()
    compare("cnn", tolerance=1e-5, change=torch.compile, also_validate=False)


def test_map_is_of_the_averaged_weights():
    """The raw maximum of each map, against a plain run of the weights that EMA puts in."""
    seen = {}

    class Keep(Callback):
        def on_validation_batch_end(self, trainer, module, *args):
            seen["weights"] = copy.deepcopy(module.net.state_dict())

    module = Stranger()
    trainer = make_trainer(EMAWeightAveraging(decay=0.9), GradCAM(), Keep(), max_epochs=1)
    before = count_hooks(module)
    trainer.fit(module)
    ema = SmallCNN().eval()
    ema.load_state_dict(seen["weights"])
    lines = read_lines(Path("gradcam"))
    maxima = {(line["index"], line["class"]): line["map_max"] for line in lines}

    from litcam.explain import CAM

    images, _ = module.val_dataloader().dataset.tensors
    layer = lines[0]["layer"].removeprefix("net.")
    with CAM(ema, target_layer=layer) as cam:
        ema(images)
    for (index, number), highest in maxima.items():
        expected = cam([number] * len(images))[index].max().item()
        assert highest == pytest.approx(expected, rel=1e-4, abs=1e-8)
    assert count_hooks(module) == before


class Broken(nn.Module):
    """Fails in its forward in validation, after its first layer."""

    def __init__(self, error):
        super().__init__()
        self.stem, self.rest = SmallCNN()[:3], SmallCNN()[3:]
        self.error = error

    def forward(self, images):
        features = self.stem(images)
        if not self.training:
            raise self.error
        return self.rest(features)


@pytest.mark.parametrize("error", [KeyError("mine"), KeyboardInterrupt()])
@pytest.mark.parametrize("how", ["fit", "validate"])
@pytest.mark.parametrize("layer", ["", "net.stem"])
def test_exception_in_the_forward_reaches_the_user(error, how, layer):
    module = Stranger(Broken(error))
    trainer = make_trainer(GradCAM(target_layer=layer), num_sanity_val_steps=0)
    hooks = count_hooks(module)
    kind = SystemExit if isinstance(error, KeyboardInterrupt) else KeyError
    with pytest.raises(kind) as caught:
        getattr(trainer, how)(module)
    assert kind is SystemExit or caught.value is error
    assert count_hooks(module) == hooks
    assert torch.is_grad_enabled() and not torch.is_inference_mode_enabled()
    assert all(
        part.training is (how == "validate") or not part.training for part in module.modules()
    )
    if how == "validate":
        assert all(parameter.grad is None for parameter in module.parameters())
    assert (torch.ones(2, requires_grad=True) * 2).requires_grad
