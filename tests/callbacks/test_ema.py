"""The moving average: its formula, what is validated and saved, and that a run goes on from it."""

import lightning.pytorch as pl
import pytest
import torch
from torch.utils.data import DataLoader

from litcam.callbacks import EMA
from litcam.lightning_modules import Classifier

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


def test_a_decay_of_one_is_refused():
    with pytest.raises(ValueError, match=r"EMA: decay must be in \[0, 1\), got 1"):
        EMA(1)
