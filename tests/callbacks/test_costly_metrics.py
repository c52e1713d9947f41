"""Metrics that run the network again, beside the validation and without a trace."""

import copy
import json
import logging
import os
import pickle
import subprocess
import sys
from functools import partial
from pathlib import Path

import lightning as L
import pytest
import torch
from strangers import Stranger, count_hooks, make_trainer, read_lines
from test_map_metrics import fit
from test_untouched import MID_WINDOW, assert_same, run
from torch import nn

from litcam.callbacks import GradCAM
from litcam.callbacks.explained.measured import MapMetrics
from litcam.datamodules import SyntheticDataModule
from litcam.explain import CAM, ROAD, AverageDropIncrease, DeletionInsertion

NAMES = ["average_drop", "increase", "deletion", "insertion", "road", "road_morf", "sparseness"]


def measured(trainer, prefix="val/gradcam/"):
    found = trainer.callback_metrics.items()
    return {key.removeprefix(prefix): float(value) for key, value in found if prefix in key}


def by_hand(network, batches, context=torch.no_grad):
    """The same numbers in a plain loop."""
    metrics = AverageDropIncrease(), DeletionInsertion(), ROAD()
    for images, classes in batches:
        with context(), CAM(network) as cam:
            network(images)
        maps = cam(classes)
        for metric in metrics:
            with context():
                metric.update(network, images, maps, classes)
    values = {name: float(v) for metric in metrics for name, v in metric.compute().items()}
    return {**values, "num_measured": metrics[-1].num_measured}


def test_they_are_what_a_plain_loop_gives(tmp_path):
    data = SyntheticDataModule(64, 14, num_classes=4, image_size=32, batch_size=8)
    counted = Counted()
    trainer, model, _ = fit(tmp_path, GradCAM(2, metrics=NAMES), counted, data=data)
    num_forwards = counted.images
    model.eval()
    batches = [data.on_after_batch_transfer(batch, 0) for batch in data.val_dataloader()]
    expected = by_hand(model.backbone, [(batch["image"], batch["label"]) for batch in batches])
    logged = measured(trainer)
    assert set(logged) == set(NAMES)
    for name in NAMES[:-1]:
        assert logged[name] == pytest.approx(expected[name], abs=1e-6), name
    # ROAD leaves flat maps out before it imputes anything.
    assert num_forwards == 8 + 14 * (1 + 1 + 20 + 20) + expected["num_measured"] * 18


class Counted(L.Callback):
    """Counts the images that went through the network outside of training."""

    images = 0

    def on_fit_start(self, trainer, module):
        module.backbone.register_forward_hook(self.count)

    def count(self, network, args, output):
        self.images += 0 if network.training else len(args[0])


@pytest.mark.parametrize(
    ("family", "kwargs"),
    [("cnn", {}), ("vit", MID_WINDOW), ("cnn", {"precision": "bf16-mixed"}), ("transformer", {})],
)
def test_training_is_bitwise_the_same(family, kwargs):
    without = run(family, False, **kwargs)
    callback = GradCAM(metrics=["average_drop", "increase", "deletion"])
    with_it = run(family, False, extra=(callback,), **kwargs)
    for name in ("random", "weights", "optimizer"):
        assert_same(without[name], with_it[name])
    # PyTorch's own attention has a fast path that grad mode switches off.
    tolerance = 1e-6 if family == "transformer" else 0
    for plain, ours in zip(without["metrics"], with_it["metrics"], strict=True):
        assert_same(plain, {key: ours[key] for key in plain}, tolerance)
        assert {key for key in ours if "gradcam" in key} or ours is with_it["metrics"][0]
    validations = with_it["counts"]["net"] - without["counts"]["net"]
    # Three batches of each validation, the one before the training excepted.
    assert validations == (len(without["metrics"]) - 1) * 3 * 21
    assert read_lines(Path("gradcam"))


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "bf16-true"])
def test_in_inference_mode_and_in_the_precision_of_the_run(precision):
    torch.manual_seed(0)
    module = Stranger()
    hooks = count_hooks(module)
    trainer = make_trainer(GradCAM(metrics=NAMES), precision=precision)
    seen = {}
    module.net.register_forward_hook(lambda net, args, out: seen.update(dtype=out.dtype))
    assert trainer.validate(module, verbose=False)
    assert seen["dtype"] == (torch.float32 if precision == "32-true" else torch.bfloat16)
    assert torch.get_default_dtype() == torch.float32
    assert not torch.is_inference_mode_enabled() and torch.is_grad_enabled()
    assert count_hooks(module) == hooks + 1
    logged = measured(trainer)
    assert set(logged) == set(NAMES)
    module.eval()

    mixed = precision == "bf16-mixed"
    context = partial(torch.autocast, "cpu", torch.bfloat16) if mixed else torch.no_grad
    kind = torch.bfloat16 if precision == "bf16-true" else torch.float32
    batches = [(images.to(kind), labels) for images, labels in module.val_dataloader()]
    expected = by_hand(module.net, batches, context)
    for name in NAMES[:-1]:
        assert logged[name] == pytest.approx(expected[name], abs=1e-6), name


def test_validation_in_and_out_of_a_fit_agree():
    module, callback = Stranger(), GradCAM(metrics=["deletion", "average_drop"])
    trainer = make_trainer(callback, max_epochs=1)
    trainer.fit(module)
    inside = measured(trainer)
    trainer.validate(module, verbose=False)
    assert measured(trainer) == pytest.approx(inside, abs=1e-7)
    trainer.test(module, verbose=False)
    assert measured(trainer, "test/gradcam/") == pytest.approx(inside, abs=1e-7)


@pytest.mark.slow
def test_compiled_networks_run_uncompiled():
    torch._dynamo.reset()
    values = []
    for change in (lambda net: net, lambda net: torch.compile(net, backend="aot_eager")):
        torch.manual_seed(0)
        module = Stranger()
        module.net = change(module.net)
        trainer = make_trainer(GradCAM(metrics=["deletion"]))
        trainer.validate(module, verbose=False)
        values.append(measured(trainer)["deletion"])
    assert values[0] == pytest.approx(values[1], abs=1e-6)
    with_it = run(
        "cnn",
        False,
        extra=(GradCAM(metrics=["average_drop"]),),
        change=lambda module: torch.compile(module, backend="aot_eager"),
    )
    assert_same(run("cnn", False)["weights"], with_it["weights"], 1e-5)
    assert all(0 <= at["val/gradcam/average_drop"] <= 1 for at in with_it["metrics"][1:])


def test_the_cost_is_said_once_at_the_start(caplog):
    caplog.set_level(logging.INFO)
    make_trainer(GradCAM(metrics=["deletion", "insertion", "sparseness"])).fit(Stranger())
    lines = [at.getMessage() for at in caplog.records if "measures" in at.getMessage()]
    assert lines == [
        "GradCAM measures deletion, insertion with 40 forwards more for each validation image: "
        "about ×41 of a plain validation"
    ]
    shared = MapMetrics(["average_drop", "increase", "drift"]).describe_cost()
    assert shared.startswith("measures average_drop, increase with 1 forward more for each")
    assert "×19" in MapMetrics(["road", "road_lerf"]).describe_cost()
    assert "18 sparse solves an image on the CPU" in MapMetrics(["road"]).describe_cost()
    assert not MapMetrics(["drift", "sparseness"]).describe_cost()


def test_they_survive_pickling_and_copying():
    measured = MapMetrics(["deletion", "insertion", "average_drop", "increase"])
    for other in (pickle.loads(pickle.dumps(measured)), copy.deepcopy(measured)):
        assert other.describe_cost() == measured.describe_cost()
        assert other.compute(make_trainer(), torch.device("cpu"), whole=True) == ({}, [])


class Needy(nn.Module):
    """Cannot be run with images alone."""

    def __init__(self):
        super().__init__()
        self.inner = Stranger().net

    def forward(self, images, scale):
        return self.inner(images) * scale


def test_a_network_that_cannot_be_run_again_costs_only_these_numbers(caplog):
    module = Stranger(Needy())
    module.classify = lambda batch: (module.net(batch[0], 2.0), batch[1])
    trainer = make_trainer(GradCAM(metrics=["average_drop", "increase", "sparseness"]))
    trainer.fit(module)
    lines = [at.getMessage() for at in caplog.records if "cannot measure" in at.getMessage()]
    assert len(lines) == 1
    assert lines[0].startswith("GradCAM cannot measure average_drop, increase: TypeError ")
    assert "missing 1 required positional argument" in lines[0]
    assert set(measured(trainer)) == {"sparseness"}
    assert len(read_lines(Path("gradcam"))) == 2 * 16


class Regions(SyntheticDataModule):
    """Whose masks and boxes a test changes."""

    change = staticmethod(lambda batch: batch)

    def on_after_batch_transfer(self, batch, dataloader_idx):
        return self.change(super().on_after_batch_transfer(batch, dataloader_idx))


def empty_two(batch):
    return {**batch, "mask": batch["mask"] & (batch["index"] > 1)[:, None, None]}


def as_boxes(batch):
    boxes = torch.stack([batch["box"], torch.full_like(batch["box"], -1)], 1)
    return {**batch, "mask": None, "box": boxes}


def as_list(batch):
    return {**batch, "mask": None, "box": list(batch["box"])}


def too_few(batch):
    return {**batch, "mask": batch["mask"][1:]}


def wrong_way(batch):
    return {**batch, "mask": None, "box": batch["box"].flip(1)}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (empty_two, "GradCAM leaves 2 of 20 images out of pointing_game: no object in their mask"),
        (wrong_way, "GradCAM leaves 20 of 20 images out of pointing_game: no object in their mask"),
        (too_few, "GradCAM cannot measure pointing_game: region has 9 images but maps 10: pass"),
        (as_list, "GradCAM cannot measure pointing_game: the batch's box is a list; stack them"),
        (as_boxes, ""),
    ],
)
def test_a_bad_region_is_one_line_and_the_rest_is_measured(tmp_path, caplog, change, words):
    data = Regions(64, 20, num_classes=4, image_size=32, batch_size=10)
    data.change = change
    callback = GradCAM(2, metrics=["pointing_game", "sparseness", "average_drop"])
    trainer, *_ = fit(tmp_path, callback, epochs=2, data=data)
    lines = [at.getMessage() for at in caplog.records if "GradCAM" in at.getMessage()]
    lines = [line for line in lines if "pointing_game" in line]
    assert len(lines) == bool(words)
    assert not lines or lines[0].startswith(words)
    logged = measured(trainer)
    assert {"sparseness", "average_drop"} <= set(logged)
    assert ("pointing_game" in logged) == (change in (empty_two, as_boxes))
    assert len(read_lines(tmp_path / "gradcam")) == 2 * 4


SCRIPT = """
import json, sys
import torch
from torch.utils.data import DataLoader, Subset
torch.set_num_threads(1)
from strangers import Pictures, Stranger, make_trainer
from litcam.callbacks import GradCAM

class Uneven(Stranger):
    def val_dataloader(self):
        rank = self.trainer.global_rank
        rows = range(10) if self.trainer.world_size == 1 else [range(7), range(7, 10)][rank]
        return DataLoader(Subset(Pictures(10), rows), 2)

    def on_after_batch_transfer(self, batch, dataloader_idx):
        images, labels = batch
        masks = images[:, 0] > 1
        # One process alone has masks that nothing can be measured against.
        wrong = self.trainer.global_rank or self.trainer.world_size == 1
        return {"image": images, "label": labels, "mask": masks[:, 0] if wrong else masks}

    def classify(self, batch):
        return self.net(batch["image"]), batch["label"]

torch.manual_seed(0)
ranks = int(sys.argv[1])
kwargs = {"devices": ranks, "strategy": "ddp"} if ranks > 1 else {}
kwargs |= {"use_distributed_sampler": False, "num_sanity_val_steps": 0, "max_epochs": 1}
names = ["pointing_game", "deletion", "average_drop", "increase", "sparseness"]
trainer = make_trainer(GradCAM(metrics=names), **kwargs)
module = Uneven()
module.configure_optimizers = lambda: torch.optim.SGD(module.parameters(), lr=0.0)
for part in module.net:
    if hasattr(part, "momentum"):
        part.momentum = 0.0
trainer.fit(module)
values = {name: float(value) for name, value in trainer.callback_metrics.items()}
with open(sys.argv[2] + str(trainer.global_rank), "w") as file:
    json.dump({name: value for name, value in values.items() if "gradcam" in name}, file)
"""


@pytest.mark.slow
def test_two_ranks_with_unequal_batches_give_what_one_gives(tmp_path):
    (tmp_path / "script.py").write_text(SCRIPT)
    where = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    env = {**os.environ, "PYTHONPATH": where, "PYTHONWARNINGS": "ignore"}
    for ranks in (1, 2):
        command = [sys.executable, "script.py", str(ranks), str(tmp_path / f"{ranks}-")]
        done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=150)
        assert done.returncode == 0, done.stderr[-2000:]
    one, left, right = (json.loads((tmp_path / name).read_text()) for name in ("1-0", "2-0", "2-1"))
    assert left == right
    # One process could measure pointing game, and the number would be of its images alone.
    assert left == pytest.approx(one, abs=1e-6)
    measured_alike = {"deletion", "average_drop", "increase", "sparseness"}
    assert {name.rpartition("/")[2] for name in left} == measured_alike
