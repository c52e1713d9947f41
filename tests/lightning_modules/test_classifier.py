"""The recipe end to end on tiny models: modes, metrics, mixing, checkpoints and errors."""

import logging

import lightning.pytorch as pl
import pytest
import timm
import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks import EMAWeightAveraging, LearningRateMonitor, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from timm.data import ImageNetInfo
from torch.utils.data import DataLoader

from litcam.lightning_modules import Classifier
from litcam.lightning_modules.backbones import create_backbone, warn_of_class_order

FAMILIES = {
    "cnn": ("resnet10t", {"channels": (8, 16, 16, 24)}, "layer1"),
    "vit": (
        "vit_tiny_patch16_224",
        {"img_size": 32, "patch_size": 8, "depth": 2, "embed_dim": 24},
        "blocks.0",
    ),
    "swin": (
        "swin_tiny_patch4_window7_224",
        {
            "img_size": 32,
            "window_size": 2,
            "embed_dim": 16,
            "depths": (1, 1, 1, 1),
            "num_heads": (1, 1, 2, 2),
        },
        "layers.0",
    ),
}
pytestmark = pytest.mark.filterwarnings(
    "ignore:The '.*_dataloader' does not have many workers",
    "ignore:.*treespec, LeafSpec.*:FutureWarning",  # lightning 2.6.6 on torch 2.15
)


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """Tiny tensors: a second thread costs more than it brings."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


class Data(pl.LightningDataModule):
    """Seeded noise with labels, as dicts or as pairs."""

    def __init__(self, num_classes=8, *, batch_size=4, val_length=10, pairs=False):
        super().__init__()
        torch.manual_seed(1)
        self.num_classes, self.batch_size, self.pairs = num_classes, batch_size, pairs
        self.images = torch.randn(16, 3, 32, 32)
        self.labels = torch.arange(16) % num_classes
        self.val_length = val_length

    def rows(self, length):
        if self.pairs:
            return [(self.images[i], self.labels[i]) for i in range(length)]
        names = ("image", "label", "index")
        return [
            dict(zip(names, (self.images[i], self.labels[i], i), strict=True))
            for i in range(length)
        ]

    def train_dataloader(self):
        return DataLoader(self.rows(16), batch_size=self.batch_size)

    def val_dataloader(self):
        return DataLoader(self.rows(self.val_length), batch_size=self.batch_size)

    test_dataloader = predict_dataloader = val_dataloader


def trainer(**options):
    quiet = dict.fromkeys(
        ["logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"], False
    )
    settings = {"max_epochs": 1, "num_sanity_val_steps": 0, **quiet, **options}
    return pl.Trainer(accelerator="cpu", devices=1, **settings)


def make(family, **options):
    torch.manual_seed(0)
    name, backbone_args, _ = FAMILIES[family]
    return Classifier(
        name, **{"num_classes": 8, "lr": 0.05, "backbone_args": backbone_args, **options}
    )


def snapshot(module):
    return {key: value.clone() for key, value in module.backbone.state_dict().items()}


def changed(module, before):
    after = module.backbone.state_dict()
    return {key for key, value in before.items() if not torch.equal(value, after[key])}


@pytest.fixture(params=FAMILIES)
def family(request):
    return request.param


def test_backbone_is_timms_own(family):
    module = make(family)
    name, backbone_args, _ = FAMILIES[family]
    torch.manual_seed(0)
    plain = timm.create_model(name, num_classes=8, **backbone_args)
    assert type(module.backbone) is type(plain)
    assert list(module.backbone.state_dict()) == list(plain.state_dict())
    images = torch.randn(2, 3, 32, 32)
    assert torch.equal(module.eval()(images), plain.eval()(images))


@pytest.mark.parametrize("pairs", [False, True])
def test_metrics_equal_a_count_over_every_validation_image(family, pairs):
    module, data = make(family), Data(pairs=pairs)
    with torch.no_grad():
        for parameter in module.backbone.get_classifier().parameters():
            parameter.mul_(20)  # away from equal probabilities, so that calibration is off
    found = trainer().validate(module, data, verbose=False)[0]
    with torch.inference_mode():
        logits = module.eval()(data.images[:10])
    labels, probabilities = data.labels[:10], logits.softmax(-1)
    ranks = (logits > logits.gather(1, labels[:, None])).sum(1)
    confidence, predicted = probabilities.max(-1)
    bins = (confidence * 15).ceil().clamp(min=1)
    gaps = [
        (confidence[bins == b] - (predicted == labels)[bins == b].float()).sum().abs()
        for b in bins.unique()
    ]
    assert found == {
        "val/loss": pytest.approx(F.cross_entropy(logits, labels).item(), rel=1e-4),
        "val/acc1": pytest.approx((ranks < 1).float().mean().item()),
        "val/acc5": pytest.approx((ranks < 5).float().mean().item()),
        "val/ece": pytest.approx(sum(gaps).item() / 10, rel=1e-4),
    }
    tested = trainer().test(module, data, verbose=False)[0]
    assert tested == {key.replace("val", "test"): value for key, value in found.items()}


def test_top1_and_top5_stay_apart_after_a_first_batch_that_is_all_right():
    module, data = make("cnn"), Data()
    with torch.inference_mode():
        order = module.eval()(data.images).argsort(dim=-1, descending=True)
    data.labels = order[:, 0].clone()
    data.labels[4:] = order[4:, 1]
    found = trainer().validate(module, data, verbose=False)[0]
    assert (found["val/acc1"], found["val/acc5"]) == (pytest.approx(0.4), 1.0)


def test_five_classes_have_no_top5():
    found = trainer().validate(make("cnn", num_classes=5), Data(5), verbose=False)[0]
    assert "val/acc5" not in found


def test_training_learns_and_logs(family):
    module, data = (
        make(family, warmup_epochs=1, label_smoothing=0.0, scale_lr=False, lr=3e-3),
        Data(),
    )
    run = trainer(max_epochs=15)
    run.fit(module, data)
    assert run.callback_metrics["train/loss"] < 1.5  # 2.1 at the start


@pytest.mark.parametrize("mixing", [{"mixup": 0.8}, {"cutmix": 1.0}, {"mixup": 0.8, "cutmix": 1.0}])
def test_mixing_trains_and_leaves_the_batch_alone(mixing, family):
    module, data = make(family, **mixing), Data()
    before, images = snapshot(module), data.images.clone()
    run = trainer()
    run.fit(module, data)
    assert changed(module, before)
    assert torch.equal(data.images, images)
    assert run.callback_metrics["train/loss"].isfinite()


def test_mixed_loss_is_the_mean_over_both_labels(monkeypatch):
    module = make("cnn", mixup=1.0, label_smoothing=0.0).eval()
    monkeypatch.setattr("numpy.random.beta", lambda *_, **__: 0.3)
    monkeypatch.setattr(module, "log", lambda *_, **__: None)
    images, labels = torch.randn(4, 3, 32, 32), torch.tensor([0, 1, 2, 3])
    loss = module.training_step((images, labels), 0)
    logits = module(0.3 * images + 0.7 * images.flip(0))
    both = [F.cross_entropy(logits, each) for each in (labels, labels.flip(0))]
    torch.testing.assert_close(loss, 0.3 * both[0] + 0.7 * both[1])


def test_an_odd_batch_cannot_be_mixed():
    with pytest.raises(ValueError, match="a train batch has 5; use an even batch_size"):
        trainer().fit(make("cnn", mixup=0.5), Data(batch_size=5))


def test_frozen_stages_stand_still(family):
    stage = FAMILIES[family][2]
    module = make(family, freeze=[stage])
    before = snapshot(module)
    trainer(max_epochs=2).fit(module, Data())
    moved = changed(module, before)
    assert moved
    assert not [key for key in moved if key.startswith(f"{stage}.")]
    assert not module.train().backbone.get_submodule(stage).training
    assert module.backbone.training


def test_linear_probe_trains_the_head_alone(family):
    module = make(family, linear_probe=True)
    before = snapshot(module)
    trainer().fit(module, Data())
    head = module.backbone.pretrained_cfg["classifier"]
    assert changed(module, before) == {f"{head}.weight", f"{head}.bias"}


def test_ema_runs_and_keeps_its_own_weights(family):
    module = make(family)
    averaging = EMAWeightAveraging(decay=0.5)
    run = trainer(callbacks=[averaging], max_epochs=2)
    run.fit(module, Data())
    assert run.callback_metrics["val/loss"].isfinite()


def test_checkpoint_loads_weights_only_without_encoder_or_network(family, tmp_path, monkeypatch):
    from litcam.lightning_modules.weights.saving import save_encoder

    name, backbone_args, stage = FAMILIES[family]
    encoder = timm.create_model(name, num_classes=0, **backbone_args)
    file = save_encoder(encoder, tmp_path / "encoder.safetensors")
    module = make(family, weights=str(file), freeze=[stage])
    run = trainer(enable_checkpointing=True, default_root_dir=tmp_path)
    run.fit(module, Data())
    file.unlink()
    restored = Classifier.load_from_checkpoint(
        run.checkpoint_callback.best_model_path, weights_only=True
    )
    assert not changed(restored, snapshot(module))
    assert restored.hparams["weights"] == ""
    assert module.hparams["weights"] == str(file)


@pytest.mark.filterwarnings("ignore:The dirpath has changed")
def test_a_resumed_run_ends_where_an_unbroken_one_does(tmp_path):
    def fit(folder, **options):
        module = make("cnn")
        keep = ModelCheckpoint(tmp_path / folder, save_top_k=-1, filename="{epoch}")
        run = trainer(max_epochs=4, enable_checkpointing=True, callbacks=[keep])
        run.fit(module, Data(), **options)
        return module

    whole = fit("whole")
    resumed = fit("resumed", ckpt_path=str(tmp_path / "whole" / "epoch=1.ckpt"))
    assert not changed(resumed, snapshot(whole))


def test_learning_rate_monitor_gets_readable_names(tmp_path):
    run = trainer(
        logger=CSVLogger(tmp_path), callbacks=[LearningRateMonitor()], log_every_n_steps=1
    )
    with pytest.warns(UserWarning, match="layer_decay=0.7 nearly stops the first layers"):
        run.fit(make("vit", layer_decay=0.7, norm_lr_scale=0.5), Data())
    names = {key for key in run.callback_metrics if key.startswith("lr-")}
    assert {"lr-AdamW/layer00_decay", "lr-AdamW/layer02_norm"} <= names


def test_predictions(family):
    module, data = make(family), Data()
    batches = trainer().predict(module, data)
    with torch.inference_mode():
        probability, label = module.eval()(data.images[:10]).softmax(-1).max(-1)
    assert torch.cat([b["index"] for b in batches]).tolist() == list(range(10))
    assert torch.equal(torch.cat([b["label"] for b in batches]), label)
    torch.testing.assert_close(torch.cat([b["probability"] for b in batches]), probability)


def test_nan_logits_show_in_the_loss_and_break_nothing():
    module = make("cnn")
    with torch.no_grad():
        module.backbone.get_classifier().weight.fill_(float("nan"))
    found = trainer().validate(module, Data(), verbose=False)[0]["val/loss"]
    assert found != found


def test_the_learning_rate_is_told_in_one_line(caplog):
    with caplog.at_level(logging.INFO):
        trainer().fit(make("cnn", lr=0.064), Data())
    lines = [r.message for r in caplog.records if r.message.startswith("learning rate")]
    assert lines == ["learning rate 0.001 (0.064 × batch 4 / 256); warm-up 0 of 4 steps"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"backbone": "resnet43"}, "timm has no backbone 'resnet43'; close: resnet34,"),
        ({"backbone": "resnet34.nope"}, "no weights 'nope'; it has: resnet34.a1_in1k"),
        (
            {"backbone": "vgg11", "drop_path_rate": 0.1},
            "vgg11 cannot be made with .*drop_path_rate",
        ),
        ({"freeze": ["layer9"]}, "freeze: 'layer9' is not in the backbone; close: layer"),
        ({"freeze": ["stem!"]}, "'stem!' is not in the backbone; close: "),
        ({"pretrained": True, "weights": "a"}, "a: there is no such file"),
        ({"step_decay": (0, 0.1)}, r"step_decay must be a number of epochs .* got \(0, 0.1\)"),
        ({"bce_threshold": 1.0}, r"bce_threshold must be in \[0, 1\), got 1.0"),
        ({"weights": "missing.safetensors"}, "missing.safetensors: there is no such file"),
        ({"num_classes": 1}, "num_classes must be at least 2, got 1"),
        ({"label_smoothing": 1.5}, r"label_smoothing must be in \[0, 1\), got 1.5"),
        ({"layer_decay": 0.0}, r"layer_decay must be in \(0, 1\], got 0.0"),
        ({"optimizer": "adm"}, "optimizer must be a name of timm's, got 'adm'"),
        ({"lr": 0.0}, "lr must be positive, got 0.0"),
    ],
)
def test_bad_arguments_get_one_line(options, message):
    with pytest.raises((ValueError, FileNotFoundError), match=message) as raised:
        Classifier(**{"backbone": "resnet10t", "num_classes": 8, **options})
    assert "\n" not in str(raised.value)
    assert raised.value.__suppress_context__ or raised.value.__context__ is None


def test_freezing_everything_leaves_nothing_to_train():
    children = [name for name, _ in make("cnn").backbone.named_children()]
    with pytest.raises(ValueError, match="leaves nothing to train"):
        make("cnn", freeze=children)


def test_unreachable_pretrained_weights_say_what_to_do(monkeypatch):
    def offline(*_, **__):
        raise OSError("cannot reach the hub.\nTry again")

    monkeypatch.setattr(timm, "create_model", offline)
    with pytest.raises(ValueError, match=r"OSError: cannot reach the hub.*weights=FILE") as raised:
        create_backbone("resnet18", 10, pretrained=True)
    assert "\n" not in str(raised.value)


def test_a_class_count_that_disagrees_names_both():
    with pytest.raises(
        ValueError, match="num_classes=8 but Data has 7 classes; pass num_classes=7"
    ):
        trainer().fit(make("cnn"), Data(7))


@pytest.mark.filterwarnings("default")
def test_class_order_is_held_against_the_pretrained_head(recwarn):
    backbone = timm.create_model("resnet10t", channels=(8, 8, 8, 8))
    synsets = ImageNetInfo().label_names()
    words = [each.split(", ")[0] for each in ImageNetInfo().label_descriptions()]
    warn_of_class_order(backbone, synsets)
    warn_of_class_order(backbone, words)
    warn_of_class_order(backbone, ["cat", "dog"])
    assert not recwarn.list
    swapped = [*synsets[:3], synsets[4], synsets[3], *synsets[5:]]
    with pytest.warns(UserWarning, match=r"class 3 for 'n01491361' \(tiger shark.*'n01494475'"):
        warn_of_class_order(backbone, swapped)


def test_an_option_that_is_off_is_left_out_where_the_network_has_none():
    assert Classifier("vgg11", 2, drop_rate=0.5).backbone.head.drop.p == 0.5
    with pytest.raises(ValueError, match="unexpected keyword argument 'drop_path_rate'"):
        Classifier("vgg11", 2, drop_path_rate=0.1)
