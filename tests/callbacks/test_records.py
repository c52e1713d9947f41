"""What W&B, TensorBoard and the folder really hold, read back after real runs."""

from pathlib import Path

import lightning.pytorch.loggers as loggers
import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import Callback
from PIL import Image
from strangers import CALM, Pictures, SmallCNN, Stranger, make_trainer, read_lines
from torch.utils.data import DataLoader
from torchvision import transforms
from torchvision.datasets import ImageFolder
from wandb_files import read_history

import litcam.callbacks
from litcam.callbacks import GradCAM

KEYS = ["val/gradcam/predicted", "val/gradcam/true"]
GAP = 4


class PetModule(Stranger):
    """Real photos, from class folders."""

    def __init__(self, root):
        super().__init__(SmallCNN(2), batch_size=4)
        self.root = root

    def loader(self, **kwargs):
        steps = [transforms.Resize((64, 96)), transforms.ToTensor()]
        steps.append(transforms.Normalize([0.5, 0.4, 0.3], [0.2, 0.3, 0.4]))
        data = ImageFolder(self.root, transforms.Compose(steps))
        places = [*range(6), *range(len(data) - 6, len(data))]
        return DataLoader(torch.utils.data.Subset(data, places), self.batch_size, **kwargs)

    train_dataloader = val_dataloader = test_dataloader = loader


@pytest.mark.parametrize("kind", ["litcam", "lightning"])
def test_wandb_keeps_what_was_shown(kind, photos):
    import wandb

    owner = litcam.callbacks if kind == "litcam" else loggers
    logger = owner.WandbLogger(project="pets", offline=True)
    trainer = make_trainer(GradCAM(), logger=logger, max_epochs=3)
    trainer.fit(PetModule(photos / "val"))
    files = Path(wandb.run.dir)
    wandb.finish()
    items = read_history(files.parent)
    shown = [item for item in items if "val/gradcam/true.count" in item]
    metrics = [item for item in items if "val/loss" in item]
    assert len(shown) == len(metrics) == 3
    for epoch, (item, lightning) in enumerate(zip(shown, metrics, strict=True)):
        keys = [name.removesuffix("._type") for name in item if name.endswith("._type")]
        assert keys == KEYS
        assert item["epoch"] == epoch
        assert item["trainer/global_step"] == lightning["trainer/global_step"] == 3 * epoch + 2
        for key in KEYS:
            check_view(item, key, epoch, files)
    for image in range(8):
        maps = [read(files / item[f"{KEYS[0]}.filenames"][image])[1] for item in shown]
        assert np.abs(maps[0] - maps[-1]).max() > 10, "maps must change while the model learns"


def test_pytorch_lightning_is_lightning(tmp_path):
    """The same classes by another import, with loggers of their own."""
    import pytorch_lightning as other
    import wandb
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    class Module(other.LightningModule):
        def __init__(self):
            super().__init__()
            self.net = SmallCNN()

        training_step = Stranger.training_step
        validation_step = Stranger.validation_step
        classify = Stranger.classify
        configure_optimizers = Stranger.configure_optimizers

    board = other.loggers.TensorBoardLogger(tmp_path / "board")
    logger = other.loggers.WandbLogger(project="other", offline=True)
    options = {**CALM, "logger": [board, logger], "max_epochs": 2}
    trainer = other.Trainer(callbacks=[GradCAM()], **options)
    trainer.fit(Module(), DataLoader(Pictures(12), 4), DataLoader(Pictures(12), 4))
    files = Path(wandb.run.dir)
    wandb.finish()
    items = read_history(files.parent)
    assert [item["epoch"] for item in items if "val/gradcam/true.count" in item] == [0, 1]
    events = EventAccumulator(board.log_dir).Reload()
    tags = [tag for tag in events.Tags()["images"] if tag.startswith("val/gradcam/true/")]
    assert len(tags) == 8 and all(len(events.Images(tag)) == 2 for tag in tags)


def read(file):
    """The photo half and the overlay half."""
    picture = np.asarray(Image.open(file)).astype(float)
    width = (picture.shape[1] - GAP) // 2
    return picture[:, :width], picture[:, -width:]


def check_view(item, key, epoch, files):
    assert item[f"{key}._type"] == "images/separated" and item[f"{key}.count"] == 8
    assert item[f"{key}.width"] == 2 * 336 + GAP and item[f"{key}.height"] == 224
    overlays = []
    for name, caption in zip(item[f"{key}.filenames"], item[f"{key}.captions"], strict=True):
        photo, heat = read(files / name)
        assert photo.shape == (224, 336, 3) and photo.mean() > 10 and photo.std() > 10
        assert np.abs(photo - heat).mean() > 5 or "flat" in caption
        overlays.append(heat - photo)
        assert caption.startswith(f"epoch {epoch}, step {3 * epoch + 2} | image ")
        assert ("right" in caption) != ("wrong" in caption)
        assert "true cat | predicted" in caption or "true dog | predicted" in caption
        assert "map of " in caption and ", max " in caption
    assert all(np.abs(overlays[0] - other).mean() > 3 for other in overlays[1:])


def test_tensorboard_keeps_pictures_and_captions(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    logger = loggers.TensorBoardLogger(tmp_path, "tb")
    make_trainer(GradCAM(), logger=logger).fit(Stranger())
    events = EventAccumulator(logger.log_dir, {"images": 0, "tensors": 0}).Reload()
    tags = events.Tags()["images"]
    assert len(tags) == 16 and "val/gradcam/true/000003" in tags
    steps = [event.step for event in events.Images("val/gradcam/true/000003")]
    assert steps == [event.step for event in events.Scalars("val/loss")] == [2, 5]
    text = events.Tensors("val/gradcam/true/000003/text_summary")[0].tensor_proto.string_val[0]
    assert b"true ant" in text
    assert read_lines(Path(logger.log_dir) / "gradcam")


def test_folder_is_readable_while_the_run_goes_on(tmp_path):
    seen = []

    class Reader(Callback):
        def on_validation_end(self, trainer, module):
            if not trainer.sanity_checking:
                seen.append(read_lines(tmp_path / "gradcam"))

    make_trainer(GradCAM(), Reader(), max_epochs=3).fit(Stranger())
    assert [len(lines) for lines in seen] == [16, 32, 48]
    for line in seen[-1]:
        photo, _ = read(tmp_path / "gradcam" / line["file"])
        assert photo.shape == (224, 224, 3) and photo.mean() > 10
        assert {"layer", "grid", "method", "probability", "map_max", "correct"} <= line.keys()
        assert line["step"] == 3 * line["epoch"] + 2
    assert len(list((tmp_path / "gradcam").glob("epoch-*/sheet.jpg"))) == 3


def test_maps_differ_between_classes(tmp_path):
    make_trainer(GradCAM(classes=[0, 1, 2]), max_epochs=3).fit(Stranger())
    lines = [line for line in read_lines(tmp_path / "gradcam") if line["index"] == 4]
    heats = [read(tmp_path / "gradcam" / line["file"])[1] for line in lines[-3:]]
    assert np.abs(heats[0] - heats[1]).mean() > 3 or np.abs(heats[1] - heats[2]).mean() > 3


class Shuffled(Stranger):
    def val_dataloader(self):
        return self.loader(shuffle=True)


@pytest.mark.parametrize("make", [Stranger, Shuffled])
def test_a_run_whose_images_have_no_index_says_so_in_its_record(make, tmp_path):
    """The report then draws no map of another epoch on a photo (`tests/report`)."""
    make_trainer(GradCAM(), max_epochs=2).fit(make())
    known = {line["index_known"] for line in read_lines(tmp_path / "gradcam")}
    assert known == {make is Stranger}
