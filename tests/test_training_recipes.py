"""What the configs of classifiers build, against what was published, row by row.

The sources stand beside each table; docs/recipes.md has the same rows for people, with what differs
and why. Rates are of the peak and compared where epochs begin: timm and pycls change them there.
"""

import math
from pathlib import Path

import pytest
from begun_run import begin, make_photos, read_config

from litcam.datamodules import ImageNetDataModule
from litcam.lightning_modules import Classifier

DOCS = Path(__file__).parents[1] / "docs/recipes.md"
IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
USUAL = {
    "image size": 224,
    "crop: share of the area": (0.08, 1.0),
    "mirrored": 0.5,
    **IMAGENET,
    "Mixup, CutMix": (0.0, 0.0),
    "dropout": 0.0,
    "drop path": 0.0,
    "layer decay": 1.0,
    "average of the weights": None,
    "gradient clipping": None,
}
# Of Swin (config.py), DeiT and MAE's fine-tuning (main_finetune.py) alike.
STRONG = {
    "interpolation": "bicubic",
    "test crop": 0.875,
    "RandAugment": "rand-m9-mstd0.5-inc1",
    "random erasing": 0.25,
    "Mixup, CutMix": (0.8, 1.0),
    "loss": "cross-entropy, smoothed by 0.1",
}
PUBLISHED = {
    # ResNet Strikes Back, table 2, and timm's weights resnet34.a1_in1k; mmpretrain's
    # resnet50_8xb256-rsb-a1-600e_in1k.py has the same numbers.
    "train_resnet34.yaml": {
        **USUAL,
        "interpolation": "bicubic",
        "test crop": 0.95,
        "RandAugment": "rand-m7-mstd0.5-inc1",
        "random erasing": 0.0,
        "Mixup, CutMix": (0.2, 1.0),
        "loss": "binary cross-entropy above 0.2, smoothed by 0.1",
        "optimiser": ("Lamb", {"betas": (0.9, 0.999), "eps": 1e-6}),
        "rate for a batch of 256": 5e-3 * 256 / 2048,
        "weight decay": 0.01,
        "drop path": 0.05,
        "epochs": 600,
    },
    # torchvision's references/classification: train.py, and --lr 1e-2 for VGG.
    "train_vgg16.yaml": {
        **USUAL,
        "interpolation": "bilinear",
        "test crop": 0.875,
        "RandAugment": "",
        "random erasing": 0.0,
        "loss": "cross-entropy, smoothed by 0",
        "optimiser": ("SGD", {"momentum": 0.9, "nesterov": False}),
        "rate for a batch of 256": 0.01,
        "weight decay": 1e-4,
        "dropout": 0.5,
        "epochs": 90,
    },
    # timm's hfdocs/source/training_script.mdx: batch 2 × 512.
    "train_mobilenetv3.yaml": {
        **USUAL,
        "interpolation": "bicubic",
        "test crop": 0.875,
        "RandAugment": "rand-m9-mstd0.5",
        "random erasing": 0.2,
        "loss": "cross-entropy, smoothed by 0.1",
        "optimiser": ("RMSpropTF", {"alpha": 0.9, "momentum": 0.9, "eps": 1e-3}),
        "rate for a batch of 256": 0.064 * 256 / 1024,
        "weight decay": 1e-5,
        "dropout": 0.2,
        "drop path": 0.2,
        "average of the weights": 0.9999,
        "epochs": 600,
    },
    # The same page: batch 2 × 384.
    "train_efficientnet_b0.yaml": {
        **USUAL,
        "interpolation": "bicubic",
        "test crop": 0.875,
        "RandAugment": "rand-m9-mstd0.5",
        "random erasing": 0.2,
        "loss": "cross-entropy, smoothed by 0.1",
        "optimiser": ("RMSpropTF", {"alpha": 0.9, "momentum": 0.9, "eps": 1e-3}),
        "rate for a batch of 256": 0.048 * 256 / 768,
        "weight decay": 1e-5,
        "dropout": 0.2,
        "drop path": 0.2,
        "average of the weights": 0.9999,
        "epochs": 450,
    },
    # pycls: RegNetY-800MF_dds_8gpu.yaml, core/config.py.
    "train_regnety.yaml": {
        **USUAL,
        "interpolation": "bilinear",
        "test crop": 224 / 256,
        "RandAugment": "",
        "random erasing": 0.0,
        "loss": "cross-entropy, smoothed by 0",
        "optimiser": ("SGD", {"momentum": 0.9, "nesterov": True}),
        "rate for a batch of 256": 0.8 * 256 / 1024,
        "weight decay": 5e-5,
        "epochs": 100,
    },
    # MAE, appendix A.2, "supervised training of ViT from scratch".
    "train_vit_b16.yaml": {
        **USUAL,
        **STRONG,
        "random erasing": 0.0,
        "optimiser": ("AdamW", {"betas": (0.9, 0.95), "eps": 1e-8}),
        "rate for a batch of 256": 1e-4,
        "weight decay": 0.3,
        "drop path": 0.1,
        "average of the weights": 0.9999,
        "epochs": 300,
    },
    # Swin-Transformer: swin_base_patch4_window7_224.yaml, config.py; rates are for batch 512.
    "train_swin_b.yaml": {
        **USUAL,
        **STRONG,
        "optimiser": ("AdamW", {"betas": (0.9, 0.999), "eps": 1e-8}),
        "rate for a batch of 256": 5e-4 * 256 / 512,
        "weight decay": 0.05,
        "drop path": 0.5,
        "gradient clipping": 5.0,
        "epochs": 300,
    },
    # facebookresearch/mae: FINETUNE.md, main_finetune.py.
    "finetune_vit_b16.yaml": {
        **USUAL,
        **STRONG,
        "optimiser": ("AdamW", {"betas": (0.9, 0.999), "eps": 1e-8}),
        "rate for a batch of 256": 5e-4,
        "weight decay": 0.05,
        "layer decay": 0.65,
        "drop path": 0.1,
        "epochs": 100,
    },
    # facebookresearch/mae: FINETUNE.md, main_linprobe.py, util/lars.py.
    "probe_mae_vit.yaml": {
        **USUAL,
        "interpolation": "bicubic",
        "test crop": 0.875,
        "RandAugment": "",
        "random erasing": 0.0,
        "loss": "cross-entropy, smoothed by 0",
        "optimiser": ("Lars", {"momentum": 0.9, "trust_coeff": 0.001, "always_adapt": True}),
        "rate for a batch of 256": 0.1,
        "weight decay": 0.0,
        "epochs": 90,
    },
    # Swin-Transformer: swin_base_patch4_window7_224_22kto1k_finetune.yaml, config.py.
    "finetune_swin_b.yaml": {
        **USUAL,
        **STRONG,
        "optimiser": ("AdamW", {"betas": (0.9, 0.999), "eps": 1e-8}),
        "rate for a batch of 256": 2e-5 * 256 / 512,
        "weight decay": 1e-8,
        "drop path": 0.2,
        "gradient clipping": 5.0,
        "epochs": 30,
    },
}
# Which groups the published code decays beside matrices and kernels is in docs/recipes.md.


def timms_cosine(epoch, *, peak, warmup, first, last, epochs):
    """timm's CosineLRScheduler and pycls's: the warm-up lies over the cosine's beginning."""
    if epoch < warmup:
        return (first + (peak - first) * epoch / warmup) / peak
    return (last + 0.5 * (peak - last) * (1 + math.cos(math.pi * epoch / epochs))) / peak


def maes_cosine(epoch, *, warmup, epochs, last=0.0):
    """`adjust_learning_rate` of MAE."""
    if epoch < warmup:
        return epoch / warmup
    wave = 0.5 * (1 + math.cos(math.pi * (epoch - warmup) / (epochs - warmup)))
    return last + (1 - last) * wave


def stairs(epoch, *, every, factor, warmup=0, first=0.0):
    """timm's StepLRScheduler, torch's StepLR."""
    if epoch < warmup:
        return first + (1 - first) * epoch / warmup
    return factor ** (epoch // every)


def pycls_rate(epoch):
    """`get_epoch_lr` but for the warm-up, which pycls multiplies into the cosine."""
    return timms_cosine(epoch, peak=0.8, warmup=5, first=0.08, last=0.0, epochs=100)


RATES = {
    "train_resnet34.yaml": lambda e: timms_cosine(
        e, peak=5e-3, warmup=5, first=1e-4, last=1e-6, epochs=600
    ),
    "train_vgg16.yaml": lambda e: stairs(e, every=30, factor=0.1),
    "train_mobilenetv3.yaml": lambda e: stairs(
        e, every=2.4, factor=0.973, warmup=3, first=1e-6 / 0.064
    ),
    "train_efficientnet_b0.yaml": lambda e: stairs(
        e, every=2.4, factor=0.97, warmup=3, first=1e-6 / 0.048
    ),
    "train_regnety.yaml": pycls_rate,
    "train_vit_b16.yaml": lambda e: maes_cosine(e, warmup=20, epochs=300),
    "train_swin_b.yaml": lambda e: timms_cosine(
        e, peak=5e-4, warmup=20, first=5e-7, last=5e-6, epochs=300
    ),
    "finetune_vit_b16.yaml": lambda e: maes_cosine(e, warmup=5, epochs=100, last=1e-6 / 2e-3),
    "probe_mae_vit.yaml": lambda e: maes_cosine(e, warmup=10, epochs=90),
    "finetune_swin_b.yaml": lambda e: timms_cosine(
        e, peak=2e-5, warmup=5, first=2e-8, last=2e-7, epochs=30
    ),
}


class Built:
    """A config as the command line reads it, made into module, data and a run that begins."""

    def __init__(self, config, root):
        found = read_config(config, root)
        arguments = found["model"]["init_args"]
        self.pretrained = arguments["pretrained"]
        # No network here: the weights are random.
        self.module = Classifier(**{**arguments, "num_classes": 2, "pretrained": False})
        self.module._is_trained = self.pretrained
        data = {**found["data"]["init_args"], "batch_size": 2, "num_workers": 0}
        self.data = ImageNetDataModule(**data, backbone=arguments["backbone"])
        self.options = found["trainer"]
        epochs = self.options["max_epochs"]
        self.optimizer, self.curve = begin(self.module, self.data, max_epochs=epochs)
        self.groups = self.optimizer.param_groups


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return make_photos(tmp_path_factory.mktemp("photos"))


def rows(built):
    """What is built, in the words of the table."""
    hparams, data, group = built.module.hparams, built.data, built.groups[-1]
    crop, *rest = data._train_transform.transforms
    names = {"SGD": ("momentum", "nesterov"), "RMSpropTF": ("alpha", "momentum", "eps"),
             "Lars": ("momentum", "trust_coeff", "always_adapt")}  # fmt: skip
    kind = type(built.optimizer).__name__
    options = {name: group[name] for name in names.get(kind, ("betas", "eps"))}
    if "betas" in options:
        options["betas"] = tuple(options["betas"])
    averages = [
        each["init_args"]["decay"]
        for each in built.options["callbacks"]
        if each["class_path"].endswith(".EMA")
    ]
    loss = f"smoothed by {hparams['label_smoothing']:g}"
    threshold = hparams["bce_threshold"]
    form = "cross-entropy" if threshold is None else f"binary cross-entropy above {threshold:g}"
    drops = [m.drop_prob for m in built.module.modules() if type(m).__name__ == "DropPath"]
    resize, center = data._eval_transform.transforms
    assert (resize.size, center.size) == ([int(224 / data.config.crop_pct)], (224, 224))
    assert bool(hparams["drop_path_rate"]) == any(drops)
    return {
        "image size": crop.size,
        "crop: share of the area": tuple(crop.scale),
        "mirrored": crop.hflip,
        "interpolation": crop.mode,
        "mean": data.mean,
        "std": data.std,
        "test crop": data.config.crop_pct,
        "RandAugment": rest[0].recipe if rest else "",
        "random erasing": data.random_erasing,
        "Mixup, CutMix": (hparams["mixup"], hparams["cutmix"]),
        "loss": f"{form}, {loss}",
        "optimiser": (kind, options),
        "rate for a batch of 256": pytest.approx(
            max(each["initial_lr"] for each in built.groups) * 256 / data.batch_size
        ),
        "weight decay": max(each["weight_decay"] for each in built.groups),
        "layer decay": hparams["layer_decay"],
        "dropout": built.module.backbone.drop_rate
        if hasattr(built.module.backbone, "drop_rate")
        else 0.0,
        "drop path": hparams["drop_path_rate"],
        "average of the weights": averages[0] if averages else None,
        "gradient clipping": built.options["gradient_clip_val"],
        "epochs": built.options["max_epochs"],
    }


@pytest.mark.slow
@pytest.mark.parametrize("config", PUBLISHED)
def test_a_config_builds_what_was_published(config, root):
    built = Built(config, root)
    assert rows(built) == PUBLISHED[config]
    assert built.pretrained != config.startswith("train")
    for epoch in range(built.options["max_epochs"]):  # of two steps
        assert built.curve(2 * epoch) == pytest.approx(RATES[config](epoch), rel=1e-4, abs=1e-9)
    decayed = {id(p) for each in built.groups if each["weight_decay"] for p in each["params"]}
    for name, weight in built.module.backbone.named_parameters():
        exempt = any(word in name for word in ("pos_embed", "cls_token", "position_bias_table"))
        expected = weight.ndim > 1 and not exempt and PUBLISHED[config]["weight decay"] > 0
        assert (id(weight) in decayed) == expected, name
    if built.module.hparams["layer_decay"] < 1:
        assert_layers_decay(built)


def assert_layers_decay(built):
    """`param_groups_lrd` of MAE: the embedding is layer 0, the head above the last block."""
    rates = {id(p): group["initial_lr"] for group in built.groups for p in group["params"]}
    named, peak = dict(built.module.backbone.named_parameters()), max(rates.values())
    for name, steps in (
        ("head.weight", 0),
        ("blocks.11.attn.qkv.weight", 1),
        ("blocks.0.attn.qkv.weight", 12),
        ("patch_embed.proj.weight", 13),
    ):
        assert rates[id(named[name])] / peak == pytest.approx(0.65**steps), name


@pytest.mark.parametrize("config", PUBLISHED)
def test_every_row_is_in_the_documents(config):
    section = DOCS.read_text().partition(f"`{config}`")[2].partition("\n## ")[0]
    words = {line.split("|")[1].strip() for line in section.splitlines() if line.count("|") > 3}
    assert not PUBLISHED[config].keys() - words
