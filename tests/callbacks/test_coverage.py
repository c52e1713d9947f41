"""What an epoch showed, counted; the runs on several processes are in tests/datamodules."""

import lightning as L
import pytest
import torch
from torch.utils.data import DataLoader, Dataset, Subset

from litcam.callbacks import Coverage


class Dots(Dataset):
    """Images with an index, or with what a stranger might call so."""

    def __init__(self, count, shift=0):
        self.count, self.shift = count, shift

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        image = torch.zeros(3, 4, 4)
        return {"image": image, "index": torch.tensor(index + self.shift)}


class Module(L.LightningModule):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(48, 1)

    def training_step(self, batch, batch_idx):
        return self.layer(batch["image"].flatten(1)).sum()

    def validation_step(self, batch, batch_idx, dataloader_idx=0):
        pass

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


def fit(train, val, **kwargs):
    trainer = L.Trainer(
        accelerator="cpu",
        max_epochs=2,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[Coverage()],
        **kwargs,
    )
    loaders = [
        DataLoader(data, 4, drop_last=data is train) if isinstance(data, Dataset) else data
        for data in (train, val)
    ]
    trainer.fit(Module(), *loaders)
    return {
        name: int(n)
        for name, n in trainer.callback_metrics.items()
        if "/images_" in name and "per_second" not in name
    }


def counts(split, unique, repeated, missing):
    found = {"unique": unique, "repeated": repeated, "missing": missing}
    return {f"{split}/images_{name}": value for name, value in found.items()}


@pytest.fixture(autouse=True)
def few_workers(recwarn):
    import warnings

    warnings.filterwarnings("ignore", ".*does not have many workers.*")
    warnings.filterwarnings("ignore", ".*logging interval.*")


def test_counts_of_an_epoch():
    found = fit(Dots(10), Dots(7))
    assert found == counts("train", 8, 0, 2) | counts("val", 7, 0, 0)


def test_a_part_of_a_dataset():
    part = Subset(Dots(10), [1, 3, 5, 9])
    assert fit(Dots(4), part) == counts("train", 4, 0, 0) | counts("val", 4, 0, 0)


def test_an_inexact_validation_is_said_aloud(caplog):
    loader = DataLoader(Dots(4), 2, sampler=[0, 1, 1, 2])
    assert fit(Dots(4), loader) == counts("train", 4, 0, 0) | counts("val", 3, 1, 1)
    (line,) = [record.message for record in caplog.records if "exact" in record.message]
    assert "of 4 images 1 were not seen and 1 seen again" in line


def test_an_index_of_something_else_ends_nothing():
    assert fit(Dots(4, shift=100), Dots(4, shift=-2)) == counts("train", 0, 0, 4) | counts(
        "val", 2, 0, 2
    )


@pytest.mark.parametrize("limit", [{"limit_val_batches": 1}, {"fast_dev_run": 1}])
def test_runs_of_a_few_batches_are_not_counted(limit):
    assert "val/images_missing" not in fit(Dots(8), Dots(8), **limit)
