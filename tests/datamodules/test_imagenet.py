import json
import os
import subprocess
import sys
import warnings
from pathlib import Path

import lightning as L
import numpy as np
import pytest
import torch
from PIL import Image
from timm.data import ImageNetInfo
from torch import nn

from litcam.datamodules import ImageNetDataModule
from litcam.datamodules.sources.folders import readable_names

SYNSETS = ["n02123045", "n02328150", "n03126707"]


def write_images(folder: Path, count: int, *, start: int = 0, suffix: str = ".jpg") -> None:
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    for number in range(start, start + count):
        pixels = rng.integers(0, 256, (20, 24, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number:03d}{suffix}")


def write_tree(root: Path, *, train: int = 4, val: int = 3, names=("cat", "dog")) -> Path:
    for split, count in (("train", train), ("val", val)):
        for name in names:
            write_images(root / split / name, count)
    return root


def write_kaggle(root: Path, *, with_csv: bool = True) -> Path:
    base = root / "ILSVRC" / "Data" / "CLS-LOC"
    for synset in SYNSETS:
        write_images(base / "train" / synset, 2, suffix=".JPEG")
    write_images(base / "val", 6, suffix=".JPEG")
    write_images(base / "test", 2, suffix=".JPEG")
    rows = [f"{i:03d},{SYNSETS[i % 3]} 1 2 3 4 {SYNSETS[0]} 5 6 7 8 " for i in (3, 1, 0, 5, 4, 2)]
    if with_csv:
        text = "\n".join(["ImageId,PredictionString", *rows]) + "\n"
        (root / "LOC_val_solution.csv").write_text(text)
    return root


@pytest.fixture(scope="module")
def pets():
    if "LITCAM_TEST_DATA" not in os.environ:
        pytest.skip("LITCAM_TEST_DATA does not name the folder of real photos")
    return Path(os.environ["LITCAM_TEST_DATA"], "pets")


def module(root: Path, batch_size: int = 2, **kwargs) -> ImageNetDataModule:
    return ImageNetDataModule(root, batch_size, num_workers=0, image_size=16, **kwargs)


def tell(error: pytest.ExceptionInfo[Exception]) -> str:
    message = str(error.value)
    assert "\n" not in message
    return message


@pytest.fixture
def tree(tmp_path):
    return write_tree(tmp_path / "pets")


class Tiny(L.LightningModule):
    """A network with BatchNorm that remembers what it was shown."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(1), nn.Flatten()
        )
        self.seen: dict[str, list[int]] = {"train": [], "val": []}
        self.batches = 0

    def training_step(self, batch, batch_idx):
        assert batch["image"].dtype == torch.float32
        self.seen["train"] += batch["index"].tolist()
        return nn.functional.cross_entropy(self.net(batch["image"]), batch["label"])

    def validation_step(self, batch, batch_idx):
        self.net(batch["image"])
        self.batches += 1
        self.seen["val"] += batch["index"].tolist()

    def test_step(self, batch, batch_idx):
        self.validation_step(batch, batch_idx)

    def predict_step(self, batch, batch_idx):
        return batch["index"]

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


def quiet_trainer(**kwargs) -> L.Trainer:
    return L.Trainer(
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **kwargs,
    )


@pytest.mark.parametrize("val", ["val", "valid", "validation"])
def test_class_folders_are_found(tmp_path, val):
    root = write_tree(tmp_path / "pets")
    (root / "val").rename(root / val)
    (root / "train" / ".ipynb_checkpoints").mkdir()
    (root / "train" / "cat" / "._000.jpg").write_bytes(b"macOS")
    data = module(root)
    assert data.classes == data.class_names == ["cat", "dog"]
    assert data.num_classes == 2
    data.setup("fit")
    dataset = data.train_dataloader().dataset
    assert dataset.classes == ["cat", "dog"]
    assert list(dataset.keys) == [
        f"{name}/{i:03d}.jpg" for name in ("cat", "dog") for i in range(4)
    ]
    sample = dataset[5]
    assert sample["image"].shape == (3, 16, 16)
    assert sample["image"].dtype == torch.uint8
    assert (int(sample["label"]), int(sample["index"])) == (1, 5)


def test_any_two_folders_will_do(tmp_path):
    root = write_tree(tmp_path / "pets")
    (root / "train").rename(root / "a")
    (root / "val").rename(tmp_path / "b")
    data = module(root, train_dir="a", val_dir=str(tmp_path / "b"))
    assert (data.source.layout.train, data.source.layout.val) == (root / "a", tmp_path / "b")


@pytest.mark.parametrize("at", ["", "ILSVRC/Data/CLS-LOC"])
def test_kaggles_layout_takes_its_labels_from_the_csv(tmp_path, at, caplog):
    root = write_kaggle(tmp_path / "kaggle")
    data = module(root / at)
    assert data.class_names == ["tabby cat", "Angora rabbit", "crane"]
    data.setup("validate")
    dataset = data.val_dataloader().dataset
    assert list(dataset.keys) == [f"{i:03d}.JPEG" for i in range(6)]
    assert dataset.labels.tolist() == [0, 1, 2, 0, 1, 2]
    assert not data.source.has_test
    assert len(data.test_dataloader().dataset) == 6
    assert "what is tested are the validation images" in caplog.text


def test_two_classes_of_one_name_are_told_apart():
    both = ["n02012849", "n03126707", "my_dog"]
    assert readable_names(both) == ["crane (n02012849)", "crane (n03126707)", "my_dog"]
    names = readable_names(ImageNetInfo().label_names())
    assert len(set(names)) == 1000


def test_the_config_of_the_backbone_is_used(tree):
    data = module(tree, backbone="vit_base_patch16_224")
    assert data.mean == data.std == (0.5, 0.5, 0.5)
    images = torch.tensor([0, 255], dtype=torch.uint8).repeat(2, 3, 4, 2)
    batch = {"image": images, "label": torch.tensor([0, 1])}
    after = data.on_after_batch_transfer(batch, 0)
    assert after["image"].dtype == torch.float32
    assert sorted(after["image"].unique().tolist()) == pytest.approx([-1, 1])
    assert after["label"] is batch["label"]
    assert batch["image"] is images
    assert data.on_after_batch_transfer(after, 0) is after


def test_other_batches_pass_untouched(tree):
    pair = (torch.zeros(1, 3, 4, 4), torch.zeros(1))
    assert module(tree).on_after_batch_transfer(pair, 0) is pair


def missing(root):
    return root.with_name("pet")


def emptied(root):
    (root.parent / "empty").mkdir()
    return root.parent / "empty"


def flat_root(root):
    write_images(root.parent / "flat", 2)
    return root.parent / "flat"


def a_file(root):
    (root.parent / "pets.tar").write_bytes(b"")
    return root.parent / "pets.tar"


def no_train(root):
    return root / "train"


def no_val(root):
    (root / "val").rename(root / "holdout")
    return root


def flat_train(root):
    write_images(root.parent / "odd" / "train", 2)
    return root.parent / "odd"


def flat_val(root):
    (root / "val").rename(root / "old")
    write_images(root / "val", 2)
    return root


def empty_val(root):
    (root / "val").rename(root / "old")
    (root / "val").mkdir()
    return root


@pytest.mark.parametrize(
    ("damage", "parts"),
    [
        (missing, ["/pet does not exist", "did you mean pets?"]),
        (emptied, ["/empty is empty", "train/<class>/*.jpg"]),
        (flat_root, ["/flat is flat", "train/<class>/*.jpg"]),
        (a_file, ["/pets.tar is a file", "unpack"]),
        (no_train, ["no training folder in ", "looked for train", "found cat, dog", "train_dir"]),
        (
            no_val,
            ["no validation folder", "val, valid, validation", "holdout", "/val/<class>/*.jpg"],
        ),
        (flat_train, ["/train is flat", "/train/<class>/"]),
        (flat_val, ["/val is flat", "LOC_val_solution.csv", "/val/<class>/"]),
        (empty_val, ["/val is empty", "/val/<class>/"]),
    ],
)
def test_a_folder_that_is_missing_or_wrong_is_told(tree, damage, parts):
    with pytest.raises(FileNotFoundError) as error:
        module(damage(tree))
    message = tell(error)
    for part in parts:
        assert part in message


def test_one_class_is_not_enough(tmp_path):
    with pytest.raises(
        ValueError, match=r"only one class, 'cat', in .*train; .* two class"
    ) as error:
        module(write_tree(tmp_path, names=["cat"]))
    tell(error)


@pytest.mark.parametrize("split", ["val", "test"])
def test_a_class_that_training_lacks_is_named(tree, split):
    write_images(tree / split / "emu", 1)
    with pytest.raises(ValueError, match=f"{split} has classes .*: emu; add") as error:
        module(tree)
    tell(error)


def test_kaggle_without_its_csv_names_the_file(tmp_path):
    root = write_kaggle(tmp_path / "kaggle", with_csv=False)
    with pytest.raises(FileNotFoundError, match=f"put Kaggle's LOC_val_solution.csv into {root}"):
        module(root)


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("003,", "999,", "1 images are in only one .* lacks 003"),
        ("n02328150", "n99999999", "csv has classes that no training folder has: n99999999"),
        ("ImageId", "Id", "is not Kaggle's csv"),
        ("n02328150 1 2 3 4 n02123045 5 6 7 8 ", "", "is not Kaggle's csv"),
    ],
)
def test_a_csv_that_does_not_fit_is_told(tmp_path, old, new, words):
    solution = write_kaggle(tmp_path) / "LOC_val_solution.csv"
    solution.write_text(solution.read_text().replace(old, new))
    data = module(tmp_path)
    with pytest.raises(ValueError, match=words) as error:
        data.setup("validate")
    tell(error)


def test_an_empty_class_keeps_its_number(tmp_path):
    root = write_tree(tmp_path, names=["ape", "bee", "cow"])
    for path in (root / "train" / "bee").iterdir():
        path.unlink()
    data = module(root)
    with pytest.warns(UserWarning, match="1 of 3 class folders in .*: bee; they keep") as record:
        data.setup("fit")
    assert len(record) == 1
    dataset = data.train_dataloader().dataset
    assert sorted(set(dataset.labels.tolist())) == [0, 2]
    assert data.num_classes == 3


def test_no_images_at_all_is_an_error(tmp_path):
    for name in ("train/cat", "train/dog", "val/cat"):
        (tmp_path / name).mkdir(parents=True)
    with pytest.raises(
        FileNotFoundError, match=r"no images in the class folders of .*train; looked"
    ):
        module(tmp_path).setup("fit")


def test_a_batch_larger_than_the_data_is_an_error(tree):
    data = module(tree, batch_size=9)
    data.setup("fit")
    with pytest.raises(ValueError, match=r"batch_size must be at most 8 .* got 9") as error:
        data.train_dataloader()
    tell(error)


@pytest.mark.parametrize(
    "argument",
    [
        {"batch_size": 0},
        {"image_size": 0},
        {"num_workers": -1},
        {"hflip": 1.5},
        {"random_erasing": -0.1},
        {"crop_scale": (0.5, 0.1)},
        {"crop_scale": None},
        {"auto_augment": "autoaugment"},
        {"backbone": "resnet_34"},
    ],
)
def test_a_bad_argument_is_named_with_its_value(tree, argument):
    ((name, value),) = argument.items()
    with pytest.raises(ValueError, match=f"^{name} must be") as error:
        ImageNetDataModule(tree, **argument)
    assert str(value) in tell(error)


# After an error in a worker torch takes ten seconds to end the workers.
@pytest.mark.parametrize("num_workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_an_unreadable_image_is_named_through_the_workers(tree, num_workers):
    (tree / "val" / "dog" / "001.jpg").write_bytes(b"broken")
    data = ImageNetDataModule(tree, 2, num_workers=num_workers, image_size=16)
    data.setup("validate")
    with pytest.raises(ValueError, match=r"cannot read image .*val/dog/001.jpg: .*; replace it"):
        list(data.val_dataloader())


def test_loaders_shuffle_in_training_only(tree):
    data = module(tree, batch_size=3)
    data.setup("fit")
    train, val = data.train_dataloader(), data.val_dataloader()
    assert (len(train), len(val)) == (2, 2)
    orders = []
    for _ in range(2):
        torch.manual_seed(0)
        orders.append([batch["index"].tolist() for batch in train])
    assert orders[0] == orders[1]
    assert orders[0] != [[0, 1, 2], [3, 4, 5]]
    assert [batch["index"].tolist() for batch in val] == [[0, 1, 2], [3, 4, 5]]


def test_a_whole_run_sees_what_it_should_and_warns_of_nothing(tree):
    write_images(tree / "test" / "dog", 5)
    data, model = module(tree, batch_size=3, random_erasing=0.5), Tiny()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", ".*LeafSpec.*")
        trainer = quiet_trainer(max_epochs=1, num_sanity_val_steps=0, log_every_n_steps=1)
        trainer.fit(model, data)
        assert len(set(model.seen["train"])) == 6
        assert model.seen["val"] == list(range(6))
        model.seen["val"].clear()
        trainer.test(model, data, verbose=False)
        assert model.seen["val"] == list(range(5))
        predicted = trainer.predict(model, data)
    assert torch.cat(predicted).tolist() == list(range(6))


def test_the_batch_takes_the_modules_precision_and_erases_in_training_only(tree):
    data = module(tree, random_erasing=1.0)
    model = Tiny().to(torch.bfloat16)
    trainer = quiet_trainer(max_epochs=1)
    trainer.strategy._lightning_module = model
    data.trainer = trainer
    batch = {"image": torch.zeros(4, 3, 16, 16, dtype=torch.uint8)}
    trainer.validating = True
    plain = data.on_after_batch_transfer(batch, 0)["image"]
    assert plain.dtype == torch.bfloat16
    assert all(len(channel.unique()) == 1 for channel in plain.transpose(0, 1))
    trainer.training = True
    erased = data.on_after_batch_transfer(batch, 0)["image"]
    assert (erased != plain).flatten(1).any(dim=1).all()


@pytest.mark.parametrize(("world", "count"), [(2, 5), (3, 4)])
def test_every_rank_gets_its_share(tmp_path, monkeypatch, world, count):
    data = module(write_tree(tmp_path, val=count))
    data.setup("fit")
    shares, val = [], []
    for rank in range(world):
        ranks = {"num_replicas": world, "rank": rank}
        monkeypatch.setattr(data, "_ranks", lambda ranks=ranks: ranks)
        loader = data.train_dataloader()
        shares.append([int(i) for batch in loader for i in batch["index"]])
        val += [int(i) for batch in data.val_dataloader() for i in batch["index"]]
    assert len({len(share) for share in shares}) == 1
    train = [index for share in shares for index in share]
    assert len(set(train)) == len(train)
    assert sorted(val) == list(range(2 * count))


def test_fewer_images_than_processes_is_an_error(tree, monkeypatch):
    data = module(tree)
    monkeypatch.setattr(data, "_ranks", lambda: {"num_replicas": 7, "rank": 0})
    with pytest.raises(ValueError, match=r"val has 6 images for 7 processes.*; use fewer") as error:
        data.val_dataloader()
    tell(error)


def run_two_ranks(root: str) -> None:
    """Runs in both processes of the test below, and prints what each of them saw."""
    L.seed_everything(0, verbose=False)
    data, model = module(Path(root), batch_size=16), Tiny()
    trainer = quiet_trainer(
        max_epochs=2, devices=2, strategy="ddp", num_sanity_val_steps=2, log_every_n_steps=1
    )
    trainer.validate(model, data, verbose=False)
    validated = model.seen.pop("val"), model.batches
    model.seen["val"] = []
    trainer.fit(model, data)
    report = {"validated": validated, "train": model.seen["train"], "val": model.seen["val"]}
    Path(root, f"rank{trainer.global_rank}.json").write_text(json.dumps(report))


@pytest.mark.slow
def test_two_ranks_with_unequal_numbers_of_batches_see_everything_once(tmp_path):
    # 33 validation images are 17 and 16 for two ranks: 2 batches of 16 and 1.
    write_tree(tmp_path, train=17, val=16)
    write_images(tmp_path / "val" / "cat", 1, start=16)
    subprocess.run(
        [sys.executable, __file__, str(tmp_path)],
        check=True,
        timeout=120,
        env={**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"},
        capture_output=True,
    )
    zero, one = (json.loads((tmp_path / f"rank{rank}.json").read_text()) for rank in (0, 1))
    assert (zero["validated"][1], one["validated"][1]) == (2, 1)
    assert sorted(zero["validated"][0] + one["validated"][0]) == list(range(33))
    # in fit: two batches of sanity check, then two epochs
    assert sorted(zero["val"] + one["val"]) == sorted(3 * list(range(33)))
    assert len(zero["train"]) == len(one["train"]) == 32
    for epoch in (slice(0, 16), slice(16, 32)):
        assert len(set(zero["train"][epoch] + one["train"][epoch])) == 32
    assert zero["train"][:16] != zero["train"][16:]


def test_real_photos_give_normal_batches(pets):
    data = ImageNetDataModule(pets, 32, num_workers=2, image_size=64, backbone="resnet34")
    assert data.classes == ["cat", "dog"]
    data.setup("fit")
    torch.manual_seed(0)
    batch = data.on_after_batch_transfer(next(iter(data.train_dataloader())), 0)
    assert batch["image"].shape == (32, 3, 64, 64)
    assert abs(float(batch["image"].mean())) < 0.7
    assert 0.7 < float(batch["image"].std()) < 1.4
    labels = torch.cat([val["label"] for val in data.val_dataloader()])
    assert labels.bincount().tolist() == [100, 100]


if __name__ == "__main__":
    run_two_ranks(sys.argv[1])
