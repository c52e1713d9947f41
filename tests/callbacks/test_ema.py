"""The moving average: its formula, what is validated and saved, and that a run goes on from it."""

import lightning.pytorch as pl
import pytest
import torch
from safetensors.torch import load_file
from torch.utils.data import DataLoader

from litcam.callbacks import EMA
from litcam.lightning_modules import MAE, Classifier
from litcam.lightning_modules.weights.saving import read_facts

pytestmark = pytest.mark.filterwarnings("ignore:The '.*_dataloader' does not have many workers")


class Seen(pl.Callback):
    """The weights after every step, and those of every validation."""

    def __init__(self):
        self.steps, self.validated = [], []

    def on_train_batch_end(self, trainer, module, *args):
        self.steps.append(vector(module))

    def on_validation_batch_start(self, trainer, module, *args):
        self.validated.append(vector(module))


def vector(module):
    return torch.cat([p.detach().flatten().clone() for p in module.parameters()])


def module():
    torch.manual_seed(0)
    return Classifier("resnet10t", 4, backbone_args={"channels": (8, 8, 16, 16)}, lr=0.5)


def fit(epochs, decay=0.9, checkpoint=None):
    generator = torch.Generator().manual_seed(1)
    rows = [(torch.randn(3, 32, 32, generator=generator), i % 4) for i in range(12)]
    seen, net = Seen(), module()
    quiet = dict.fromkeys(["logger", "enable_progress_bar", "enable_model_summary"], False)
    run = pl.Trainer(
        accelerator="cpu", devices=1, max_epochs=epochs, num_sanity_val_steps=0,
        callbacks=[EMA(decay), seen], enable_checkpointing=False, **quiet,
    )  # fmt: skip
    data = DataLoader(rows, batch_size=4)
    run.fit(net, data, DataLoader(rows[:4], batch_size=4), ckpt_path=checkpoint)
    return run, net, seen


def test_the_average_is_validated_saved_and_gone_on_from(tmp_path):
    _, net, seen = fit(6)
    kept = seen.steps[0]  # the first weights that there are
    for step, now in enumerate(seen.steps[1:], start=1):
        decay = min(0.9, (1 + step) / (10 + step))
        kept = decay * kept + (1 - decay) * now
        if (step + 1) % 3 == 0:
            torch.testing.assert_close(seen.validated[step // 3], kept)
    torch.testing.assert_close(vector(net), kept)
    assert not torch.allclose(kept, seen.steps[-1], atol=1e-4)
    assert len(seen.validated) == 6

    stopped, *_ = fit(3)
    stopped.save_checkpoint(tmp_path / "average.ckpt")
    loaded = Classifier.load_from_checkpoint(tmp_path / "average.ckpt", weights_only=True)
    torch.testing.assert_close(vector(loaded), vector(stopped.lightning_module))


class SaveHalfway(pl.Callback):
    def __init__(self, file):
        self.file = file

    def on_train_epoch_end(self, trainer, module):
        if trainer.current_epoch == 1:
            trainer.save_checkpoint(self.file)


def test_a_resumed_run_is_the_run_that_never_stopped(tmp_path, monkeypatch):
    file = tmp_path / "halfway.ckpt"
    plain = pl.Trainer.__init__

    def with_a_save(self, *args, callbacks, **options):
        plain(self, *args, callbacks=[*callbacks, SaveHalfway(file)], **options)

    monkeypatch.setattr(pl.Trainer, "__init__", with_a_save)
    _, whole, _ = fit(4)
    monkeypatch.undo()
    _, resumed, _ = fit(4, checkpoint=file)
    assert torch.equal(vector(resumed), vector(whole))


def test_a_short_run_does_not_stay_where_it_began():
    _, net, seen = fit(2, decay=0.9999)
    moved = (vector(net) - seen.steps[0]).norm() / (seen.steps[-1] - seen.steps[0]).norm()
    assert moved > 0.3


class StopError(Exception):
    pass


class StopInValidation(Seen):
    """In the second validation, after its weights were seen."""

    def on_validation_batch_end(self, trainer, *args):
        if trainer.current_epoch == 1:
            raise StopError


def quiet(folder, *callbacks):
    return pl.Trainer(
        accelerator="cpu", devices=1, max_epochs=2, num_sanity_val_steps=0, callbacks=[*callbacks],
        logger=False, enable_progress_bar=False, enable_model_summary=False,
        default_root_dir=folder, enable_checkpointing=any(
            isinstance(each, pl.callbacks.ModelCheckpoint) for each in callbacks
        ),
    )  # fmt: skip


def loader(length=12):
    generator = torch.Generator().manual_seed(1)
    rows = [(torch.randn(3, 32, 32, generator=generator), i % 4) for i in range(length)]
    return DataLoader(rows, batch_size=4)


def weights(state, like):
    return torch.cat([state[name].flatten() for name, _ in like.named_parameters()])


@pytest.mark.parametrize("only", [False, True], ids=["checkpoints", "save_weights_only"])
def test_what_was_validated_is_what_is_kept(only, tmp_path):
    seen = Seen()
    keep = pl.callbacks.ModelCheckpoint(
        tmp_path, monitor="val/loss", filename="best", save_last=True, save_weights_only=only
    )
    net = module()
    quiet(tmp_path, keep, EMA(0.9), seen).fit(net, loader(), loader(4))
    best, last = (
        torch.load(tmp_path / f"{name}.ckpt", weights_only=True) for name in ("best", "last")
    )
    assert torch.equal(weights(best["state_dict"], net), seen.validated[best["epoch"]])
    assert torch.equal(weights(last["state_dict"], net), seen.validated[-1])
    assert not torch.allclose(seen.validated[-1], seen.steps[-1], atol=1e-4)


def test_a_stop_within_a_validation_keeps_the_average_apart(tmp_path):
    seen = StopInValidation()
    keep = pl.callbacks.ModelCheckpoint(tmp_path, filename="last", save_on_exception=True)
    net = module()
    with pytest.raises(StopError):
        quiet(tmp_path, keep, EMA(0.9), seen).fit(net, loader(), loader(4))
    (file,) = tmp_path.glob("last*.ckpt")
    kept = torch.load(file, weights_only=True)
    assert torch.equal(weights(kept["state_dict"], net), seen.validated[-1])
    assert torch.equal(weights(kept["current_model_state"], net), seen.steps[-1])


def test_the_encoder_is_written_as_it_was_validated(tmp_path):
    torch.manual_seed(0)
    small = {"depth": 1, "embed_dim": 32, "num_heads": 2}
    net = MAE(
        "vit_tiny_patch16_224", image_size=32, backbone_args=small, decoder_dim=32, decoder_depth=1,
        lr=0.5, warmup_epochs=0,
    )  # fmt: skip
    seen, keep = Seen(), pl.callbacks.ModelCheckpoint(tmp_path, filename="last")
    run = quiet(tmp_path, keep, EMA(0.9), seen)
    run.fit(net, loader(), loader(4))
    torch.testing.assert_close(vector(net), seen.validated[-1])
    for name, part in (("encoder", net.encoder), ("decoder", net.decoder)):
        written = weights(load_file(tmp_path / f"{name}.safetensors"), part)
        torch.testing.assert_close(written, vector(part), atol=0, rtol=0)
    assert read_facts(tmp_path / "encoder.safetensors")["averaged"]


def test_a_decay_of_one_is_refused():
    with pytest.raises(ValueError, match=r"EMA: decay must be in \[0, 1\), got 1"):
        EMA(1)
