"""Processes that divide the weights train, explain and save what one process does."""

import json
import os
import subprocess
import sys
from pathlib import Path

import lightning.pytorch as pl
import pytest
import timm
import torch
import torch.distributed as dist
from lightning.pytorch.callbacks import EMAWeightAveraging
from lightning.pytorch.plugins import MixedPrecision
from lightning.pytorch.strategies import ModelParallelStrategy
from safetensors.torch import load_file
from sharded import FAMILIES, Data
from torch.utils.data import DataLoader

from litcam.callbacks import GradCAM
from litcam.lightning_modules import MAE, Classifier
from litcam.lightning_modules.parallel.sharding import find_units

# Trainer(precision="16-mixed") makes bfloat16 of it on a CPU.
SCALED = MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu"))
SCRIPT = Path(__file__).parent / "sharded.py"
PLAIN = {
    "vit": {"family": "vit", "gradient_clip_val": 0.5},
    "swin": {"family": "swin"},
    "cnn": {
        "family": "cnn",
        "options": {"optimizer": "sgd"},
        "accumulate_grad_batches": 2,
        "val_check_interval": 1,
    },
    "mae": {"family": "vit", "mae": True},
    "mae_cnn": {"family": "cnn", "mae": True},
}
# Its BatchNorm takes each process's own statistics, so that two are not quite one.
UNET = {"family": "cnn", "mae": True, "options": {"decoder": "unet", "decoder_depth": None}}
WHOLE = {"family": "vit", "imagenet": True, "every": 2, "options": {"drop_path_rate": 0.2}}


def run(runs, folder, photos, world, *, fails=False):
    """All `runs` from one start of the processes, each in a folder of its own; what they said."""
    given = []
    for name, each in runs.items():
        (folder / name).mkdir(parents=True)
        given.append({"folder": str(folder / name), "photos": str(photos), **each})
        given[-1] |= {"devices": world, "strategy": "fsdp2"} if world > 1 else {"devices": 1}
    command = [sys.executable, "-W", "ignore", str(SCRIPT), json.dumps(given)]
    if world > 1:
        start = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(world)]
        command[3:3] = start
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=200)
    assert bool(done.returncode) == fails, done.stderr[-4000:]
    return done.stdout + done.stderr


def read(folder, rank=0):
    return torch.load(folder / f"{rank}.pt", weights_only=False)


def load(folder, name="last"):
    return torch.load(folder / f"kept/{name}.ckpt", weights_only=False)


def difference(one, two):
    """The largest between two checkpoints' weights."""
    assert one.keys() == two.keys()
    return max(float((one[name].double() - two[name].double()).abs().max()) for name in one)


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """The same runs by one process and by two, and one by two that was killed in an epoch."""
    root = os.environ.get("LITCAM_TEST_DATA", "")
    if not root:
        pytest.skip("LITCAM_TEST_DATA is not set: no real photos here")
    folder, photos = tmp_path_factory.mktemp("ran"), Path(root) / "pets"
    run(PLAIN, folder / "one", photos, 1)
    two = {
        **PLAIN,
        "resnet": {"family": "resnet"},
        "mae_unet": UNET,
        "whole": WHOLE,
        "stopped": {**WHOLE, "kill": 5, "how": "SIGTERM"},
        "killed": {**WHOLE, "kill": 5},
    }
    said = run(two, folder / "two", photos, 2, fails=True)
    return folder, photos, said


@pytest.mark.slow
@pytest.mark.parametrize("name", PLAIN)
def test_two_processes_train_and_explain_as_one(ran, name):
    one, two = (read(ran[0] / world / name) for world in ("one", "two"))
    assert two["losses"] == pytest.approx(one["losses"], abs=2e-6)
    assert two["metrics"] == pytest.approx(one["metrics"], abs=1e-5)
    assert two["tested"] == pytest.approx(one["tested"], abs=1e-5)
    # One of them validates two batches and the other one: every image is counted.
    assert two["metrics"]["val/images_unique"] == 9
    assert two["metrics"]["train/images_unique"] == 24
    assert read(ran[0] / "two" / name, rank=1)["losses"] == two["losses"]
    assert two["held"] < 0.56 * one["held"]
    one, two = (load(ran[0] / world / name) for world in ("one", "two"))
    assert difference(one["state_dict"], two["state_dict"]) < 5e-5
    kept, other = one["optimizer_states"][0], two["optimizer_states"][0]
    assert kept["param_groups"] == other["param_groups"]
    assert kept["state"].keys() == other["state"].keys()
    if "mae" in name:
        assert list((ran[0] / "two" / name / "reconstructions").glob("*step-000002*"))


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in PLAIN if "mae" not in name])
def test_maps_of_two_processes_are_those_of_one(ran, name):
    one, two = (read(ran[0] / world / name)["maps"] for world in ("one", "two"))
    # Two epochs and the test, or one after each batch of some that wait for each other.
    assert len(one) == len(two) == (7 if name == "cnn" else 3)
    for first, second in zip(one, two, strict=True):
        assert first.keys() == second.keys()
        assert len(first) == 5
        for index, maps in first.items():
            assert second[index] == pytest.approx(maps, abs=1e-4 * float(maps.max()))


@pytest.mark.slow
def test_every_process_validates_with_the_running_means_of_the_first(ran):
    folder, photos, _ = ran
    name, args = FAMILIES["resnet"]
    module = Classifier(name, 2, backbone_args=args).eval()
    module.load_state_dict(load(folder / "two/resnet")["state_dict"])
    found, batch = read(folder / "two/resnet"), next(iter(DataLoader(Data(photos, batch=9).val, 9)))
    with torch.no_grad():
        loss = torch.nn.functional.cross_entropy(module(batch["image"]), batch["label"])
    assert found["tested"]["test/loss"] == pytest.approx(float(loss), abs=1e-5)


@pytest.mark.slow
def test_the_encoder_of_two_processes_is_whole(ran):
    for name in ("mae", "mae_cnn"):
        one, two = (
            load_file(ran[0] / world / name / "kept/encoder.safetensors")
            for world in ("one", "two")
        )
        assert difference(one, two) < 5e-5
        # And that of the checkpoint, by timm's keys.
        weights = load(ran[0] / "two" / name)["state_dict"]
        assert all(torch.equal(two[key], weights[f"encoder.{key}"]) for key in two)
        assert load_file(ran[0] / "two" / name / "kept/decoder.safetensors")


@pytest.mark.slow
def test_a_unet_is_divided_and_written_whole(ran):
    found = read(ran[0] / "two/mae_unet")
    assert torch.tensor(found["losses"]).isfinite().all()
    assert read(ran[0] / "two/mae_unet", rank=1)["losses"] == found["losses"]
    weights = load(ran[0] / "two/mae_unet")["state_dict"]
    for part in ("encoder", "decoder"):
        written = load_file(ran[0] / f"two/mae_unet/kept/{part}.safetensors")
        assert all(torch.equal(written[key], weights[f"{part}.{key}"]) for key in written)


def test_lists_are_no_blocks():
    """PyTorch refuses to divide what has no forward of its own."""
    name, args = FAMILIES["cnn"]
    mae = MAE(name, backbone_args=args, image_size=64, decoder="unet", decoder_dim=32)
    units = find_units(mae)
    assert not [unit for unit in units if isinstance(unit, torch.nn.ModuleList)]
    assert {*mae.decoder.blocks[:2], *mae.decoder.densify[:1]} <= {*units}


@pytest.mark.slow
def test_a_run_goes_on_where_it_was_killed_and_on_other_numbers_of_processes(ran, tmp_path):
    folder, photos, _ = ran
    states = {world: folder / world / "vit/kept/epoch=0-step=3.ckpt" for world in ("one", "two")}
    last = folder / "two/killed/kept/last.ckpt"
    # In the middle of the second epoch.
    assert load(folder / "two/killed")["global_step"] == 4
    assert load(folder / "two/stopped")["global_step"] == 5
    runs = {
        "late": {"family": "vit", "num_val": 1, "refused": True},
        "resumed": {**WHOLE, "resume": str(last)},
        "again": {**WHOLE, "resume": str(folder / "two/stopped/kept/last.ckpt")},
        "from_one": {**PLAIN["vit"], "resume": str(states["one"])},
        "poisoned": {"family": "vit", "poison": 2},
    }
    said = run(runs, tmp_path / "two", photos, 2, fails=True)
    run({"from_two": {**PLAIN["vit"], "resume": str(states["two"])}}, tmp_path / "one", photos, 1)

    whole, losses = load(folder / "two/whole"), read(folder / "two/whole")["losses"]
    for name, step in (("resumed", 4), ("again", 5)):
        resumed = load(tmp_path / "two" / name)
        assert difference(whole["state_dict"], resumed["state_dict"]) == 0
        assert read(tmp_path / "two" / name)["losses"] == losses[step:]
        for number, state in whole["optimizer_states"][0]["state"].items():
            kept = resumed["optimizer_states"][0]["state"][number]
            assert all(torch.equal(value, kept[key]) for key, value in state.items())
    uninterrupted = load(folder / "one/vit")["state_dict"]
    assert difference(uninterrupted, load(tmp_path / "two/from_one")["state_dict"]) < 5e-5
    assert difference(uninterrupted, load(tmp_path / "one/from_two")["state_dict"]) < 5e-5

    # One validation image for two processes: neither waits for the other.
    for rank in range(2):
        assert f"process {rank} was refused: a loader has batches for some processes only" in said

    # A gradient that is not finite in one process stops both before the step.
    assert said.count("the gradient is not finite at step 2") >= 2
    assert not (tmp_path / "two/poisoned/kept").exists()


@pytest.fixture
def alone_in_a_group(monkeypatch):
    """Leaves no group of processes behind, and no word of it in the environment."""
    for name in ("MASTER_ADDR", "MASTER_PORT", "NODE_RANK", "LOCAL_RANK", "WORLD_SIZE"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    yield
    if dist.is_initialized():
        dist.destroy_process_group()


def make(**given):
    return pl.Trainer(
        accelerator="cpu", devices=1, max_epochs=1, limit_train_batches=1, logger=False,
        enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=False,
        use_distributed_sampler=False, **given,
    )  # fmt: skip


def make_module():
    torch.manual_seed(0)
    args = {"patch_size": 16, "depth": 2, "embed_dim": 48, "num_heads": 3, "img_size": 64}
    return Classifier(
        "vit_tiny_patch16_224", 2, backbone_args=args, warmup_epochs=0, optimizer="sgd"
    )


@pytest.mark.usefixtures("alone_in_a_group")
@pytest.mark.filterwarnings("ignore:.*LeafSpec.*", "ignore:The number of training batches")
def test_one_process_alone(photos, tmp_path, warned):
    data, weights = Data(photos, batch=4), []
    for strategy in ("auto", "fsdp2"):
        module = make_module()
        root = tmp_path / strategy
        trainer = make(strategy=strategy, callbacks=[GradCAM()], default_root_dir=root)
        trainer.fit(module, data)
        trainer.save_checkpoint(root / "a.ckpt")
        weights.append(torch.load(root / "a.ckpt", weights_only=False)["state_dict"])
        assert len(list((root / "gradcam").rglob("*.jpg"))) == 17
        assert type(module).__name__ == "Classifier"
    assert difference(*weights) < 1e-6
    assert not warned
    again = make(strategy="fsdp2", default_root_dir=tmp_path)
    again.fit(module, data, ckpt_path=root / "a.ckpt", weights_only=False)
    again.validate(module, data, verbose=False)


@pytest.mark.usefixtures("alone_in_a_group")
@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"callbacks": [EMAWeightAveraging()]}, "weight averaging .* --trainer trainer/ddp.yaml"),
        ({"sync_batchnorm": True}, "has BatchNorm: .* --trainer.sync_batchnorm false"),
        ({"plugins": [SCALED]}, "precision 16-mixed .* --trainer.precision bf16-mixed"),
    ],
)
def test_what_cannot_be_divided_is_refused_in_a_line(given, message, photos, tmp_path):
    trainer = make(strategy="fsdp2", default_root_dir=tmp_path, **given)
    module = Classifier("resnet10t", 2, warmup_epochs=0)
    with pytest.raises(ValueError, match=message):
        trainer.fit(module, Data(photos, batch=4))


def test_under_another_sharding_a_callback_says_what_to_do(tmp_path, caplog):
    trainer = make(strategy=ModelParallelStrategy(), default_root_dir=tmp_path)
    trainer.strategy.connect(make_module())
    with caplog.at_level("INFO"):
        GradCAM().setup(trainer, trainer.lightning_module, "fit")
    told = [line for line in caplog.messages if "GradCAM" in line]
    assert len(told) == 1
    assert "off under ModelParallelStrategy, where no process has the whole network" in told[0]
    assert "--trainer trainer/fsdp.yaml" in told[0]


@pytest.mark.parametrize(
    ("name", "units", "share"),
    [
        ("vit_tiny_patch16_224", 12, 0.9),
        ("swin_tiny_patch4_window7_224", 12, 0.9),
        ("convnext_atto", 12, 0.85),
        ("resnet34", 16, 0.95),
        ("regnety_008", 16, 0.8),
        ("mobilenetv3_large_100", 12, 0.7),
    ],
)
def test_most_of_a_network_is_in_blocks(name, units, share):
    with torch.device("meta"):
        network = timm.create_model(name, num_classes=10)
    found = find_units(network)
    seen, sizes = set(), []
    for unit in found:
        own = {p: p.numel() for p in unit.parameters() if p not in seen}
        seen |= own.keys()
        sizes.append(sum(own.values()))
    total = sum(p.numel() for p in network.parameters())
    assert len(found) >= units
    assert share < sum(sizes) / total <= 1
    assert max(sizes) < total / 3
