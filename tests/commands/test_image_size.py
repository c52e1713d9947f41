"""One option for the size of the images: network and data agree, or it is said in a line."""

import json
from pathlib import Path

import pytest
import timm
import yaml

from litcam.datamodules import ImageNetDataModule
from litcam.datamodules.pixels.data_config import data_config, fixed_image_size
from litcam.train import main

ONE_STEP = {
    "trainer": "trainer/cpu.yaml",
    "trainer.max_steps": "1",
    "trainer.limit_val_batches": "1",
    "trainer.num_sanity_val_steps": "0",
    "trainer.callbacks": "null",
    "trainer.logger.offline": "true",
    "trainer.enable_progress_bar": "false",
    "data.batch_size": "2",
    "data.num_workers": "0",
}
TINY_VIT = ["--model.backbone=vit_tiny_patch16_224", "--model.backbone_args={depth: 1}"]
SCRATCH = ["--model.pretrained=false", "--model.layer_decay=1"]


@pytest.fixture
def fit(photos, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "disabled")

    def fit(config, *words):
        options = [f"--{name}={value}" for name, value in ONE_STEP.items()]
        main(["fit", f"--config={config}", f"--data.root={photos}", *options, *words])
        text = Path("runs", Path(config).stem, "version_0/config.yaml").read_text()
        return yaml.safe_load(text)["model"]["init_args"]

    return fit


@pytest.mark.slow
def test_a_vit_is_made_for_the_images(fit):
    made = fit("finetune_vit_b16.yaml", *TINY_VIT, *SCRATCH, "--data.image_size=96")
    assert made["backbone_args"] == {"depth": 1, "img_size": 96}


@pytest.mark.slow
def test_mae_follows_the_data_over_its_config(fit):
    words = ["--model.decoder_depth=1", "--model.decoder_dim=32", "--data.image_size=64"]
    assert fit("pretrain_mae_cifar10.yaml", *words)["image_size"] == 64


@pytest.mark.parametrize(
    ("config", "words", "said"),
    [
        ("pretrain_mae_cifar10.yaml", ["--model.image_size=64"], "disagrees with --model.image_si"),
        (
            "finetune_vit_b16.yaml",
            ["--data.image_size=100"],
            "multiple of the patch size 16 of the",
        ),
        ("finetune_vit_b16.yaml", ["--data.image_size=9"], "got 9; take 16"),
    ],
)
def test_sizes_that_do_not_go_together_are_a_line(fit, capsys, config, words, said):
    small = [*TINY_VIT, *SCRATCH] if "vit_b16" in config else []
    with pytest.raises(SystemExit):
        fit(config, *words, *small)
    assert said in capsys.readouterr().err.splitlines()[-1]


def test_what_timm_fixes_is_known_for_every_way_to_name_a_network(tmp_path):
    network = timm.create_model("vit_tiny_patch16_224", depth=1)
    timm.models.save_for_hf(network, tmp_path / "mine", model_config={"label_names": ["a", "b"]})
    name = f"local-dir:{tmp_path / 'mine'}"
    assert fixed_image_size(name) == fixed_image_size("vit_tiny_patch16_224") == 224
    assert fixed_image_size("resnet34") is None
    assert data_config(name) == data_config("vit_tiny_patch16_224")


def test_a_folder_of_timm_is_a_backbone_of_the_data(photos, tmp_path):
    network = timm.create_model("resnet10t")
    timm.models.save_for_hf(network, tmp_path / "mine")
    config = tmp_path / "mine/config.json"
    told = json.loads(config.read_text())
    told["pretrained_cfg"]["mean"] = [0.1, 0.2, 0.3]
    config.write_text(json.dumps(told))
    assert ImageNetDataModule(photos, backbone=f"local-dir:{tmp_path / 'mine'}").mean == (
        0.1,
        0.2,
        0.3,
    )
    with pytest.raises(ValueError, match=r"backbone 'local-dir:nowhere' cannot be read: .*nowhere"):
        data_config("local-dir:nowhere")
    with pytest.raises(ValueError, match="valid sources: hf-hub, local-dir"):
        data_config("hf-hup:timm/resnet18")
