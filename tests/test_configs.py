"""Every config file goes through the parser, and does what the command line promises."""

from itertools import product
from pathlib import Path
from types import SimpleNamespace

import pytest
import timm
import torch
import yaml
from lightning.pytorch.accelerators import CPUAccelerator, CUDAAccelerator

from litcam.commands.running.training import LitcamCLI
from litcam.lightning_modules import MAE
from litcam.lightning_modules.backbones import create_backbone
from litcam.train import main

CONFIGS = Path(__file__).parents[1] / "configs"
EXPERIMENTS = sorted(path.name for path in CONFIGS.glob("*.yaml") if path.name != "base.yaml")
SWEEPS = sorted(f"sweep/{path.name}" for path in CONFIGS.glob("sweep/*.yaml"))
TRAINERS = sorted(f"trainer/{path.name}" for path in CONFIGS.glob("trainer/*.yaml"))


@pytest.fixture
def resolve(tmp_path, monkeypatch, capsys):
    """The config that a command line means, from a folder that is not the checkout."""
    monkeypatch.chdir(tmp_path)

    def resolve(config, *args):
        root = [] if "demo" in config else ["--data.root", "photos"]
        with pytest.raises(SystemExit) as end:
            main(["fit", "--config", config, *root, *args, "--print_config"])
        assert not end.value.code
        return yaml.safe_load(capsys.readouterr().out)

    return resolve


@pytest.mark.parametrize("config", EXPERIMENTS)
def test_a_file_parses_and_is_short(resolve, config):
    found = resolve(config)
    backbone = found["model"]["init_args"]["backbone"]
    assert timm.is_model(backbone)
    # The number of classes comes from the data, the data's normalisation from the backbone.
    assert "num_classes" not in found["model"]["init_args"]
    assert "backbone" not in found["data"]["init_args"]
    shows = "Reconstructions" if "pretrain" in config else "GradCAM"
    last = found["trainer"]["callbacks"][-1]
    assert last["class_path"] == f"litcam.callbacks.{shows}"
    assert len((CONFIGS / config).read_text().splitlines()) <= 20


@pytest.mark.parametrize("config", [name for name in EXPERIMENTS if "pretrain" not in name])
def test_its_network_can_be_made(resolve, config):
    found = resolve(config)["model"]["init_args"]
    options = {name: found[name] for name in ("drop_rate", "drop_path_rate")}
    with torch.device("meta"):
        create_backbone(found["backbone"], 5, **options, **(found["backbone_args"] or {}))


@pytest.mark.parametrize("trainer", TRAINERS)
@pytest.mark.parametrize(
    "config",
    [
        # Beside every one of them is a finetune_ file, which the quick tests parse.
        pytest.param(name, marks=pytest.mark.slow if name.startswith("train_") else ())
        for name in EXPERIMENTS
    ],
)
def test_a_file_parses_with_each_trainer(resolve, config, trainer):
    found = resolve(config, "--trainer", trainer)["trainer"]
    wanted = yaml.safe_load((CONFIGS / trainer).read_text())
    assert_holds(found, wanted)
    assert found["max_epochs"] == resolve(config)["trainer"]["max_epochs"]


def assert_holds(found, wanted):
    """What is wanted is there; a class has the rest of its options besides."""
    if not isinstance(wanted, dict):
        assert found == wanted
        return
    for name, value in wanted.items():
        assert_holds(found[name], value)


@pytest.mark.parametrize("trainer", [name for name in TRAINERS if "cpu" not in name])
def test_the_recipe_for_gpus(trainer):
    """Each of these lines has its reason in the file; docs/gpu.md has them all."""
    found = yaml.safe_load((CONFIGS / trainer).read_text())
    assert found["accelerator"] == "gpu"
    assert found["precision"] == "bf16-mixed"
    if "fsdp" in trainer:
        return
    assert found["benchmark"] is True
    if "gpu" not in trainer:
        options = found["strategy"]["init_args"]
        assert options == {"gradient_as_bucket_view": True, "find_unused_parameters": False}


@pytest.mark.parametrize("accelerator", [CUDAAccelerator(), CPUAccelerator()])
def test_float32_is_multiplied_in_tf32_on_a_gpu_alone(resolve, accelerator):
    assert resolve("finetune_resnet34.yaml")["matmul_precision"] == "high"
    folder = SimpleNamespace(default_root_dir="runs")
    config = {"fit": SimpleNamespace(matmul_precision="high", trainer=folder)}
    # No GPU here: Lightning's word for one, and torch's setting.
    strategy = SimpleNamespace(checkpoint_io=None)
    trainer = SimpleNamespace(accelerator=accelerator, strategy=strategy)
    names = {"model": torch.nn.Identity(), "datamodule": None, "_asked_classes": None}
    before = torch.get_float32_matmul_precision()
    try:
        LitcamCLI.after_instantiate_classes(
            SimpleNamespace(trainer=trainer, config=config, subcommand="fit", **names)
        )
        found = torch.get_float32_matmul_precision()
    finally:
        torch.set_float32_matmul_precision(before)
    assert found == ("high" if isinstance(accelerator, CUDAAccelerator) else before)


def test_another_strategy_wins_over_that_of_a_file(resolve):
    options = ["--trainer", "trainer/ddp.yaml", "--trainer.strategy"]
    found = resolve("finetune_resnet34.yaml", *options, "ddp_spawn")
    assert found["trainer"]["strategy"] == "ddp_spawn"
    options[-1] += ".find_unused_parameters"
    found = resolve("finetune_resnet34.yaml", *options, "true")
    assert found["trainer"]["strategy"]["init_args"]["find_unused_parameters"] is True


@pytest.mark.slow
@pytest.mark.parametrize("sweep", SWEEPS)
def test_every_value_of_a_sweep_parses(sweep, resolve, tmp_path):
    """As `wandb agent` would call it."""
    described = yaml.safe_load((CONFIGS / sweep).read_text())
    env, program, subcommand, *words, args = described["command"]
    assert (env, program, subcommand, args) == ("${env}", "litcam", "fit", "${args}")
    varied = described["parameters"].get("config", {"values": []})["values"]
    name = words[words.index("--config") + 1] if "--config" in words else varied[0]
    words = [word for word in words if word not in ("--config", name)]
    values = {
        key: choice["values"] if "values" in choice else [choice["value"]]
        for key, choice in described["parameters"].items()
    }
    only_seeds = {key for key, choice in values.items() if len(choice) > 1} == {"seed_everything"}
    # Losses compare where nothing but the seed differs.
    assert only_seeds or described["metric"]["name"] in ("val/knn_acc1", "val/acc1")
    arms = [dict(zip(values, arm, strict=True)) for arm in product(*values.values())]
    assert len(arms) >= (3 if only_seeds else 7)
    tried = set()
    for arm in arms:
        if arm.items() <= tried:
            continue
        tried |= arm.items()
        given = [f"--{key}={value}" for key, value in arm.items()]
        found = resolve(name, *words, *given)
        for key, value in arm.items():
            if key == "config":  # not an option but a file of them
                own = yaml.safe_load((CONFIGS / value).read_text())["model"]["init_args"]
                assert found["model"]["init_args"]["backbone"] == own["backbone"]
                continue
            group, _, option = key.partition(".")
            place = found[group] if option else found
            place = place.get("init_args", place) if option else place
            assert place[option or group] == value


def test_options_win_over_files(resolve):
    options = ["--model.lr", "3e-4", "--trainer.max_epochs", "2"]
    found = resolve("configs/finetune_resnet34.yaml", *options, "--trainer.callbacks.num_images=4")
    assert found["model"]["init_args"]["lr"] == 3e-4
    assert found["trainer"]["max_epochs"] == 2
    assert found["trainer"]["callbacks"][-1]["init_args"]["num_images"] == 4


def test_callbacks_are_added_by_a_plus(resolve, tmp_path):
    callback = "{class_path: EarlyStopping, init_args: {monitor: val/loss}}"
    (tmp_path / "mine.yaml").write_text(f"trainer: {{callbacks+: [{callback}]}}\n")
    names = [
        callback["class_path"].rpartition(".")[2]
        for callback in resolve("demo.yaml", "--config", "mine.yaml")["trainer"]["callbacks"]
    ]
    assert names[-2:] == ["GradCAM", "EarlyStopping"]
    assert names[:3] == ["LearningRateMonitor", "ModelCheckpoint", "ModelCheckpoint"]


def test_short_names_of_classes(resolve):
    classes = ["--model", "Classifier", "--data", "SyntheticDataModule"]
    found = resolve("demo.yaml", *classes, "--trainer.callbacks+=GradCAM")
    assert found["model"]["class_path"] == "litcam.lightning_modules.Classifier"
    assert found["data"]["class_path"] == "litcam.datamodules.SyntheticDataModule"
    assert len(found["trainer"]["callbacks"]) == 7


def test_a_misspelt_file_is_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as end:
        main(["fit", "--config", "configs/finetune_resnet43.yaml"])
    assert end.value.code == 2
    line = capsys.readouterr().err
    assert line.count("\n") == 1
    assert "'finetune_resnet43.yaml' does not exist" in line
    assert "finetune_resnet34.yaml" in line


def test_a_folder_named_by_its_options(resolve, tmp_path):
    """As sweeps name them."""
    folder = tmp_path / "lr=1,epochs=7"
    folder.mkdir()
    (folder / "config.yaml").write_text("trainer: {max_epochs: 7}")
    for words in (
        ["--config", "lr=1,epochs=7/config.yaml"],
        ["--config=lr=1,epochs=7/config.yaml"],
    ):
        assert resolve("demo.yaml", *words)["trainer"]["max_epochs"] == 7


def test_figures_3_and_4_are_drawn_at_a_tenth_of_the_paper_s_epochs(resolve):
    found = resolve("paper/reconstructions_small.yaml")
    every, last = (found["trainer"][name] for name in ("check_val_every_n_epoch", "max_epochs"))
    assert {6, 20, 27, 41} <= set(range(every - 1, last, every))
    shows = found["trainer"]["callbacks"][-1]["init_args"]
    # CIFAR-10 has a thousand validation photos of each category.
    assert len({index // 1000 for index in shows["indices"]}) == 8
    assert MAE(**found["model"]["init_args"]).num_cells == 256
