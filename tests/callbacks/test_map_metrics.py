"""Numbers for the maps of a whole validation, out of its own forward."""

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from litcam.callbacks import GradCAM
from litcam.datamodules import SyntheticDataModule
from litcam.explain import CAM
from litcam.explain.metrics.maps import EnergyInside, PointingGame, Sparseness
from litcam.lightning_modules import Classifier

NAMES = ["pointing_game", "energy_inside", "sparseness", "drift"]


def fit(tmp_path, *callbacks, epochs=1, data=None):
    L.seed_everything(0, verbose=False)
    model = Classifier("test_resnet", 4, warmup_epochs=0, lr=1e-2, scale_lr=False)
    data = data or SyntheticDataModule(128, 48, num_classes=4, image_size=32, batch_size=32)
    trainer = L.Trainer(
        default_root_dir=tmp_path,
        max_epochs=epochs,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=any(isinstance(at, ModelCheckpoint) for at in callbacks),
        num_sanity_val_steps=1,
        log_every_n_steps=1,
        callbacks=list(callbacks),
    )
    trainer.fit(model, data)
    return trainer, model, data


def test_they_are_those_of_every_image(tmp_path):
    trainer, model, data = fit(tmp_path, GradCAM(2, metrics=NAMES))
    logged = {
        name.removeprefix("val/gradcam/"): float(value)
        for name, value in trainer.callback_metrics.items()
        if "gradcam" in name
    }
    assert "drift" not in logged  # there is nothing to compare with yet
    wanted = {"pointing_game": PointingGame(), "energy_inside": EnergyInside()}
    sparseness = Sparseness()
    model.eval()
    for batch in data.val_dataloader():
        batch = data.on_after_batch_transfer(batch, 0)
        with CAM(model.backbone) as cam, torch.no_grad():
            model.backbone(batch["image"])
        maps = cam(batch["label"])
        for metric in wanted.values():
            metric.update(maps, batch["mask"])
        sparseness.update(maps)
    for name, metric in wanted.items():
        assert logged[name] == pytest.approx(float(metric.compute()), abs=1e-5)
        assert logged[f"{name}_chance"] == pytest.approx(float(metric.chance), abs=1e-5)
    assert logged["sparseness"] == pytest.approx(float(sparseness.compute()), abs=1e-5)


def test_training_is_bitwise_the_same_and_a_checkpoint_can_follow_them(tmp_path):
    best = ModelCheckpoint(tmp_path, monitor="val/gradcam/pointing_game", mode="max")
    trainer, measured, _ = fit(tmp_path, GradCAM(2, metrics=NAMES), best, epochs=2)
    _, plain, _ = fit(tmp_path, epochs=2)
    for name, value in plain.state_dict().items():
        assert torch.equal(value, measured.state_dict()[name]), name
    assert best.best_model_score is not None
    assert 0 <= float(trainer.callback_metrics["val/gradcam/drift"]) <= 2


class NoRegions(SyntheticDataModule):
    def on_after_batch_transfer(self, batch, dataloader_idx):
        batch = super().on_after_batch_transfer(batch, dataloader_idx)
        return {"image": batch["image"], "label": batch["label"]}


def test_what_a_batch_lacks_is_said_once_and_the_rest_measured(tmp_path, caplog):
    data = NoRegions(64, 48, num_classes=4, image_size=32, batch_size=16)
    trainer, *_ = fit(tmp_path, GradCAM(2, metrics=NAMES), data=data)
    logged = [name for name in trainer.callback_metrics if "gradcam" in name]
    assert logged == ["val/gradcam/sparseness"]
    lines = [at.message for at in caplog.records if "cannot measure" in at.message]
    assert len(lines) == 3
    assert "the batch has neither mask nor box" in lines[0]


def test_a_misspelt_metric_is_answered_with_close_matches():
    with pytest.raises(ValueError, match="mean pointing_game"):
        GradCAM(metrics=["pointing_gam"])


def test_by_default_what_asks_for_no_forward_more(tmp_path, caplog):
    trainer, *_ = fit(tmp_path, GradCAM(2), epochs=2)
    names = {name.removeprefix("val/gradcam/") for name in trainer.callback_metrics}
    assert names >= {*NAMES, "blank_maps", "pointing_game_chance"} and "road" not in names
    data = NoRegions(64, 48, num_classes=4, image_size=32, batch_size=16)
    trainer, *_ = fit(tmp_path, GradCAM(2), data=data)
    found = {name for name in trainer.callback_metrics if "gradcam" in name}
    assert found == {"val/gradcam/sparseness", "val/gradcam/blank_maps"}
    # Nobody asked for the others.
    assert not [record for record in caplog.records if "cannot measure" in record.message]


def test_two_callbacks_keep_their_states_apart(tmp_path):
    last = ModelCheckpoint(tmp_path, filename="last")
    fit(tmp_path, GradCAM(2), GradCAM(2, method="layercam", name="layercam"), last)
    stored = torch.load(tmp_path / "last.ckpt", weights_only=True)["callbacks"]
    states = {key: state for key, state in stored.items() if key.startswith("GradCAM")}
    assert len(states) == 2 and any("layercam" in key for key in states)
    assert all(len(state["history"]) == 1 for state in states.values())


class WithoutObject(SyntheticDataModule):
    def on_after_batch_transfer(self, batch, dataloader_idx):
        batch = super().on_after_batch_transfer(batch, dataloader_idx)
        return {**batch, "mask": batch["mask"] & (batch["index"] != 3)[:, None, None]}


def test_an_image_without_an_object_is_said_once(tmp_path, caplog):
    data = WithoutObject(64, 48, num_classes=4, image_size=32, batch_size=16)
    fit(tmp_path, GradCAM(2), data=data, epochs=2)
    (line,) = (text for text in caplog.messages if "leaves" in text)
    assert "leaves 1 of 48 images out of pointing_game: no object" in line
