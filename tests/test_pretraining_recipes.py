"""What the pretraining configs build, against what was published, row by row.

The sources are the papers (MAE, arXiv:2111.06377; SimMIM, arXiv:2111.09886; SparK,
arXiv:2301.03580) and their authors' code: facebookresearch/mae (PRETRAIN.md, main_pretrain.py,
models_mae.py, util/lr_sched.py) and
microsoft/SimMIM (configs/swin_base__100ep/simmim_pretrain__swin_base__img192_window6__100ep.yaml,
config.py, optimizer.py, lr_scheduler.py, data/data_simmim.py, models/); keyu-tian/SparK
(pretrain/utils/arg_util.py, lr_control.py and imagenet.py, models/__init__.py, main.py, spark.py,
decoder.py). docs/recipes.md has the same rows for people, with what differs and why.
"""

import math
import re
from pathlib import Path

import pytest
import torch
from begun_run import begin, make_photos, read_config

from litcam.datamodules import ImageNetDataModule
from litcam.lightning_modules import MAE

DOCS = Path(__file__).parents[1] / "docs/recipes.md"
IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
PUBLISHED = {
    "pretrain_mae_vit.yaml": {
        "blocks, width, heads, patch": (12, 768, 12, 16),
        "decoder: blocks, width, heads": (8, 512, 16),
        "image size": 224,
        "crop: share of the area": (0.2, 1.0),
        "crop: ratio of the sides": 4 / 3,
        "interpolation": "bicubic",
        "mirrored": 0.5,
        **IMAGENET,
        "other augmentation": [],
        "visible cells": "49 of 196",
        "loss": ("l2", "norm_pix_loss"),
        "optimiser": ("AdamW", (0.9, 0.95), 1e-8),
        "rate for a batch of 256": 1.5e-4,
        "weight decay": 0.05,
        "epochs": 800,
        "gradient clipping": None,
        "drop path": 0.0,
    },
    "pretrain_mae_swin.yaml": {
        "blocks, width, heads, patch": ((2, 2, 18, 2), 128, (4, 8, 16, 32), 4),
        "decoder": "linear",
        "windows": {6},
        "image size": 192,
        "crop: share of the area": (0.67, 1.0),
        "crop: ratio of the sides": 4 / 3,
        "interpolation": "bilinear",
        "mirrored": 0.5,
        **IMAGENET,
        "other augmentation": [],
        "visible cells": "14 of 36",  # ceil(36 * 0.6) = 22 hidden
        "loss": ("l1", "pixels"),
        "optimiser": ("AdamW", (0.9, 0.999), 1e-8),
        "rate for a batch of 256": 2e-4 * 256 / 512,
        "weight decay": 0.05,
        "epochs": 100,
        "gradient clipping": 5.0,
        "drop path": 0.0,
    },
    "pretrain_mae_cnn.yaml": {
        "blocks, widths": ((3, 4, 6, 3), (256, 512, 1024, 2048)),
        "decoder": "UNet of width 768 over 4 maps",
        "image size": 224,
        "crop: share of the area": (0.67, 1.0),
        "crop: ratio of the sides": 4 / 3,
        "interpolation": "bicubic",
        "mirrored": 0.5,
        **IMAGENET,
        "other augmentation": [],
        "visible cells": "20 of 49",  # round(49 * (1 - 0.6))
        "loss": ("l2", "norm_pix_loss"),
        "optimiser": ("Lamb", (0.9, 0.95), 1e-6),
        "rate for a batch of 256": 2e-4,
        "weight decay": 0.04,
        "weight decay at the end": 0.2,
        "epochs": 1600,
        "gradient clipping": 5.0,
        "drop path": 0.05,
    },
}


def published_mae_rate(epoch):
    """Of the peak; `adjust_learning_rate` with --warmup_epochs 40 --epochs 800, no least rate."""
    if epoch < 40:
        return epoch / 40
    return 0.5 * (1 + math.cos(math.pi * (epoch - 40) / (800 - 40)))


def published_simmim_rate(epoch):
    """Of the peak; timm's CosineLRScheduler, whose warm-up lies over the cosine's beginning."""
    if epoch < 10:
        return (1e-6 + (2e-4 - 1e-6) * epoch / 10) / 2e-4
    return (1e-5 + 0.5 * (2e-4 - 1e-5) * (1 + math.cos(math.pi * epoch / 100))) / 2e-4


def published_spark_rate(epoch):
    """Of the peak; `lr_wd_annealing` with --wp_ep 40 --ep 1600; it ends a step earlier."""
    if epoch < 40:
        return 0.005 + 0.995 * epoch / 40
    return 0.001 + 0.999 * (0.5 + 0.5 * math.cos(math.pi * (epoch - 40) / (1600 - 40)))


RATES = {
    "pretrain_mae_cnn.yaml": published_spark_rate,
    "pretrain_mae_vit.yaml": published_mae_rate,
    "pretrain_mae_swin.yaml": published_simmim_rate,
}

# Standard deviations of initial weights. Xavier's is √(2 / (inputs + outputs)), and the patch
# embedding and the joint matrix of queries, keys and values are one matrix each. A convolution or
# linear layer as torch makes it is uniform within ±1/√inputs.
SPREAD = {
    "pretrain_mae_vit.yaml": {
        "encoder.patch_embed.proj.weight": math.sqrt(2 / (768 + 768)),  # .0361
        "encoder.blocks.0.attn.qkv.weight": math.sqrt(2 / (768 + 3 * 768)),  # .0255
        "encoder.blocks.11.attn.proj.weight": math.sqrt(2 / (768 + 768)),  # .0361
        "encoder.blocks.5.mlp.fc1.weight": math.sqrt(2 / (768 + 4 * 768)),  # .0228
        "encoder.blocks.5.mlp.fc2.weight": math.sqrt(2 / (4 * 768 + 768)),  # .0228
        "encoder.cls_token": 0.02,
        "decoder.embed.weight": math.sqrt(2 / (768 + 512)),
        "decoder.blocks.7.attn.qkv.weight": math.sqrt(2 / (512 + 3 * 512)),
        "decoder.head.weight": math.sqrt(2 / (512 + 768)),
        "decoder.mask_token": 0.02,
        "encoder.patch_embed.proj.bias": 1 / math.sqrt(3 * 768),  # as torch makes it
    },
    "pretrain_mae_swin.yaml": {
        "encoder.patch_embed.proj.weight": 1 / math.sqrt(3 * 48),  # as torch makes it
        "encoder.layers.0.blocks.0.attn.qkv.weight": 0.02,
        "encoder.layers.2.blocks.17.mlp.fc2.weight": 0.02,
        "encoder.layers.3.downsample.reduction.weight": 0.02,
        "encoder.layers.2.blocks.3.attn.relative_position_bias_table": 0.02,
        "hiding.mask_token": 0.02,
        "decoder.head.weight": 1 / math.sqrt(3 * 1024),  # as torch makes it
        "decoder.head.bias": 1 / math.sqrt(3 * 1024),
    },
}


SPREAD["pretrain_mae_cnn.yaml"] = {
    "encoder.layer1.0.conv2.weight": math.sqrt(2 / (9 * 64)),  # timm: kaiming, outputs
    "encoder.layer4.2.conv1.weight": math.sqrt(2 / 512),
    "decoder.blocks.0.0.weight": math.sqrt(2 / (16 * 768)),
    "decoder.blocks.0.1.weight": 0.02,
    "decoder.blocks.4.4.weight": 0.02,
    "decoder.densify.0.proj.weight": 1 / math.sqrt(3 * 2048),
    "decoder.densify.1.proj.weight": 1 / math.sqrt(3 * 9 * 1024),
}


class Built:
    """A config as the command line reads it, made into module, data and a run that begins."""

    def __init__(self, config, root):
        found = read_config(config, root)
        torch.manual_seed(0)
        self.mae = MAE(**found["model"]["init_args"])
        # Two steps an epoch, whatever the batch.
        self.data = ImageNetDataModule(
            **{**found["data"]["init_args"], "batch_size": 2, "num_workers": 0}
        )
        self.options = found["trainer"]
        names = "max_epochs", "gradient_clip_val"
        given = {name: self.options[name] for name in names}
        self.optimizer, self.curve = begin(self.mae, self.data, **given)
        self.groups = {group["name"]: group for group in self.optimizer.param_groups}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return make_photos(tmp_path_factory.mktemp("photos"))


@pytest.fixture(scope="module", params=PUBLISHED)
def config(request):
    return request.param


@pytest.fixture(scope="module")
def built(config, root):
    return Built(config, root)


def rows(built):
    """What is built, in the words of the table."""
    mae, data = built.mae, built.data
    encoder, decoder, hparams = mae.encoder, mae.decoder, mae.hparams
    crop, *rest = data._train_transform.transforms
    group = built.groups["decay"]
    visible = int(mae.num_cells * (1 - hparams["mask_ratio"]))
    ids, _ = mae._choose(torch.zeros(1, 3, mae.image_size, mae.image_size), None)
    assert ids.shape[1] == visible
    drops = [m.drop_prob for m in mae.modules() if type(m).__name__ == "DropPath"]
    found = {
        "image size": mae.image_size,
        "crop: share of the area": tuple(crop.scale),
        "crop: ratio of the sides": crop.RATIO,
        "interpolation": crop.mode,
        "mirrored": crop.hflip,
        "mean": data.mean,
        "std": data.std,
        "other augmentation": rest + [data.random_erasing] * (data.random_erasing > 0),
        "visible cells": f"{visible} of {mae.num_cells}",
        "loss": (hparams["loss"], "norm_pix_loss" if hparams["norm_pix_loss"] else "pixels"),
        "optimiser": (type(built.optimizer).__name__, tuple(group["betas"]), group["eps"]),
        "rate for a batch of 256": round(group["initial_lr"] * 256 / data.batch_size, 12),
        "weight decay": group["weight_decay"],
        "epochs": built.options["max_epochs"],
        "gradient clipping": built.options["gradient_clip_val"],
        "drop path": max(drops, default=0.0),
    }
    if hasattr(encoder, "blocks"):
        heads, patch = encoder.blocks[0].attn.num_heads, encoder.patch_embed.patch_size[0]
        found["blocks, width, heads, patch"] = len(encoder.blocks), encoder.embed_dim, heads, patch
        heads = decoder.blocks[0].attn.num_heads
        found["decoder: blocks, width, heads"] = len(decoder.blocks), decoder.dim, heads
    elif hasattr(encoder, "layer4"):
        stages = [encoder.get_submodule(f"layer{stage}") for stage in range(1, 5)]
        widths = tuple(stage[-1].bn3.num_features for stage in stages)
        found["blocks, widths"] = tuple(map(len, stages)), widths
        found["decoder"] = decoder.describe()
        found["weight decay at the end"] = hparams["weight_decay_end"]
        assert group["max_grad_norm"] is None  # clipped once, by the Trainer
    else:
        depths = tuple(len(stage.blocks) for stage in encoder.layers)
        heads = tuple(stage.blocks[0].attn.num_heads for stage in encoder.layers)
        patch = encoder.patch_embed.patch_size[0]
        found["blocks, width, heads, patch"] = depths, encoder.embed_dim, heads, patch
        found["decoder"] = decoder.describe()
        found["windows"] = {
            side for stage in encoder.layers for b in stage.blocks for side in b.window_size
        }
    return found


@pytest.mark.slow
def test_every_row_is_the_published_one(config, built):
    assert rows(built) == PUBLISHED[config]


def test_every_row_is_in_the_documents(config):
    section = DOCS.read_text().partition(f"`{config}`")[2].partition("\n## ")[0]
    words = {line.split("|")[1].strip() for line in section.splitlines() if line.count("|") > 3}
    assert not PUBLISHED[config].keys() - words


@pytest.mark.slow
def test_the_rate_is_the_published_one_at_every_step(config, built):
    steps_an_epoch = 2
    for step in range(built.options["max_epochs"] * steps_an_epoch):
        published = RATES[config](step / steps_an_epoch)
        assert built.curve(step) == pytest.approx(published, abs=1e-9), step


@pytest.mark.slow
def test_what_is_decayed_is_what_the_authors_decay(config, built):
    """Matrices and kernels, and in MAE the tokens: `add_weight_decay` of timm 0.3.2.

    SparK's tokens are in its `nowd_keys`; here they are vectors.
    """
    decayed = {id(weight) for weight in built.groups["decay"]["params"]}
    trained = {name: w for name, w in built.mae.named_parameters() if w.requires_grad}
    assert len(trained) == sum(len(group["params"]) for group in built.groups.values())
    assert built.groups["no_decay"]["weight_decay"] == 0
    found = {name for name, weight in trained.items() if id(weight) in decayed}
    wanted = {name for name, weight in trained.items() if weight.ndim > 1}
    if "swin" in config:  # as SimMIM names them, though its code misses the tables
        wanted = {name for name in wanted if "relative_position_bias_table" not in name}
        assert "hiding.mask_token" not in found
    elif "vit" in config:
        assert {"encoder.cls_token", "decoder.mask_token"} <= found
        assert "encoder.pos_embed" not in trained
    assert found == wanted


@pytest.mark.slow
def test_initial_weights_spread_as_published(config, built):
    for name, spread in SPREAD[config].items():
        weight = built.mae.get_parameter(name).detach()
        scatter = 4 / math.sqrt(2 * weight.numel())  # four standard errors of a normal's
        assert weight.std().item() == pytest.approx(spread, rel=scatter), name
        assert abs(weight.mean().item()) < 4 * spread / math.sqrt(weight.numel()), name


@pytest.mark.slow
def test_vectors_begin_at_zero_or_one(config, built):
    for name, weight in built.mae.named_parameters():
        module, _, kind = name.rpartition(".")
        layer = built.mae.get_submodule(module)
        drawn = re.search(r"patch_embed.proj|densify.*(proj|mask_token)", name)
        if weight.ndim == 1 and name not in SPREAD[config] and not drawn:
            # The last norm of a block of timm's ResNet begins at zero.
            one = "Norm" in type(layer).__name__ and kind == "weight" and "bn3" not in name
            assert (weight == float(one)).all(), name
