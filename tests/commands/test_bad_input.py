"""Mistakes of a user: one line, exit code 2, no traceback, nothing lost."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from litcam.commands.running import training
from litcam.datamodules.order import as_images
from litcam.lightning_modules import classifier
from litcam.train import main

OPTIONS = {
    "trainer.accelerator": "cpu",
    "trainer.logger.offline": "true",
    "trainer.enable_progress_bar": "false",
    "trainer.max_epochs": "1",
    "model.backbone": "resnet10t",
    "model.pretrained": "false",
    "data.image_size": "32",
    "data.batch_size": "4",
}
SMALL = [f"--{name}={value}" for name, value in OPTIONS.items()]
FIT = ["fit", "--config", "finetune_resnet34.yaml", *SMALL]


@pytest.fixture
def photos(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_MODE", "disabled")
    root = tmp_path / "photos"
    generator = torch.Generator().manual_seed(0)
    for split in ("train", "val"):
        for name in ("cat", "dog"):
            folder = root / split / name
            folder.mkdir(parents=True)
            for index in range(8):
                noise = torch.randint(0, 256, (40, 40, 3), generator=generator, dtype=torch.uint8)
                Image.fromarray(noise.numpy()).save(folder / f"{index}.jpg")
    (tmp_path / "empty").mkdir()
    (tmp_path / "flat" / "train").mkdir(parents=True)
    (tmp_path / "flat/train/a.jpg").write_bytes((root / "val/cat/0.jpg").read_bytes())
    for split in ("train", "val"):
        (tmp_path / "one" / split / "cat").mkdir(parents=True)
        image = tmp_path / "one" / split / "cat" / "a.jpg"
        image.write_bytes((root / "val/cat/0.jpg").read_bytes())
    return root


@pytest.fixture
def refuse(photos, capsys):
    def refuse(args):
        with pytest.raises(SystemExit) as end:
            main(args)
        assert end.value.code == 2
        lines = capsys.readouterr().err.strip().splitlines()
        mine = [line for line in lines if line.startswith("litcam: ")]
        assert len(mine) == 1
        assert lines[-1] == mine[0]
        assert "Traceback" not in "".join(lines)
        return mine[0]

    return refuse


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--data.root", "nowhere"], ["nowhere does not exist"]),
        (["--data.root", "empty"], ["empty is empty", "train/<class>"]),
        (["--data.root", "flat"], ["is flat", "sort the images"]),
        (["--data.root", "one"], ["only one class, 'cat'"]),
        ([], ["missing: --data.root"]),
        (["--data.root", "photos", "--model.backbone", "resnet43"], ["resnet43", "resnet34"]),
        (["--data.root", "photos", "--model.num_classes", "7"], ["7", "2 classes"]),
        (["--data.root", "photos", "--model.learning_rate", "3"], ["exist; did you mean lr?"]),
        (["--data.root", "photos", "--model.lrr", "3"], ["--model", "'lrr'", "lr"]),
        (["--data.root", "photos", "--data.rot", "3"], ["'rot'", "mean root"]),
        (["--data.root", "photos", "--model.lr", "abc"], ["--model.lr: expected float, got abc"]),
        (
            ["--data.root", "photos", "--model.linear_probe", "bn"],
            ["--model.linear_probe: expected bool or 'batchnorm', got bn"],
        ),
        (["--data.root", "photos", "--data.batch_size", "0"], ["batch_size must be at least 1"]),
        (["--data.root", "photos", "--trainer.max_epochs", "abc"], ["max_epochs: expected int"]),
        (["--data.root", "photos", "--trainer.max_epochz", "3"], ["mean --trainer.max_epochs"]),
        (["--data.root", "photos", "--ckpt_path", "none.ckpt"], ["none.ckpt does not exist"]),
        (["--data.root", "photos", "--model", "Clasifier"], ["'Clasifier'", "mean Classifier"]),
        (["--data.root", "photos", "--trainer.callbacks+=GradCM"], ["'GradCM'", "GradCAM"]),
        (["--data.root", "photos", "--trainer.callbacks.num_imags", "4"], ["mean num_images"]),
        (["--data.root", "photos", "--trainer.callbacks.target_layer", "layr4"], ["layr4"]),
        (
            ["--data.root", "photos", "--data.crop_scale", "null"],
            ["--data.crop_scale must not be null"],
        ),
        (["--data.root", "photos", "--model.lr", "1e400"], ["--model.lr must be a finite number"]),
        (["--data.root", "photos", "--ckpt_path", ""], ["--ckpt_path is empty"]),
        (["--data.root", "photos", "--trainer.devices", "[1,"], ["these options do not work"]),
        (["--data.root", "photos", "--seed_everything", "-1"], ["--seed_everything must be from"]),
        (["--data.root", "photos", "--trainer.gradient_clip_val", "-1"], ["must be at least 0"]),
        (["--data.root", "photos", "--trainer.accumulate_grad_batches", "0"], ["at least 1"]),
        (["--data.root", "photos", "photos"], ["'photos' is no option"]),
        (["--data.root", "ph\udcfftos"], ["'ph\\udcfftos' is no text in UTF-8", "rename"]),
        (["--trainer.logger+", "/dev/zero"], ["/dev/zero is a pipe or a device"]),
        (["--config", ""], ["--config is empty"]),
        (["--config", "photos"], ["config photos is no ordinary file"]),
        (["--config", "{trainer: {max_epochs: 1, max_epochs: 2}}"], ["'max_epochs' stands twice"]),
        (["--config", "{trainer: {max_epochz: 1}}"], ["did you mean --trainer.max_epochs"]),
        (["--trainer", "x" * 300 + ".yaml"], ["File name too long"]),
    ],
)
def test_a_mistake_is_one_line(refuse, options, said):
    line = refuse([*FIT, *options])
    assert all(part in line for part in said)


def test_a_command_that_does_not_exist(refuse):
    assert "'fitt' does not exist; did you mean fit" in refuse(["fitt"])


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_no_gpu(refuse):
    trainer = ["--trainer", "trainer/gpu.yaml", "--data.root", "photos", "--model.pretrained=false"]
    line = refuse(["fit", "--config", "finetune_resnet34.yaml", *trainer])
    assert "trainer/cpu.yaml" in line


@pytest.mark.parametrize("workers", [0, 1])
def test_an_unreadable_image_keeps_what_was_written(refuse, photos, workers):
    # One of the last batch, so that there is something to keep.
    (last,) = as_images([range(15, 16)], 16, None, seed=0, epoch=0)
    name = f"train/{'cat' if last < 8 else 'dog'}/{last % 8}.jpg"
    (photos / name).write_bytes(b"nonsense")
    options = ["--data.num_workers", str(workers), "--data.max_broken", "0"]
    line = refuse([*FIT, "--data.root", "photos", *options])
    assert name in line
    assert "max_broken=0" in line
    run = photos.parent / "runs/finetune_resnet34/version_0"
    assert (run / "config.yaml").exists()
    assert (run / "checkpoints/last.ckpt").exists()


def test_a_configs_mistakes_are_told_with_file_and_line(refuse):
    for text, said in {
        "model:\n  lr: 1\n  lr: 2\n": "line 3: 'lr' stands twice",
        "trainer: &a [*a]": "line 1: an anchor that contains itself",
        "trainer:\n\tmax_epochs: 1": "line 2: found character",
        "- trainer": "must hold options",
        "": "must hold options",
    }.items():
        Path("mine.yaml").write_text(text)
        assert f"config mine.yaml{': ' * ('line' in said)}" in (
            line := refuse([*FIT, "--config", "mine.yaml"])
        )
        assert said in line


def test_a_checkpoint_does_not_choose_the_class(refuse):
    """LightningCLI imports and makes what a checkpoint names, though it is read as weights."""
    Path("elsewhere.py").write_text("open('pwned', 'w')\n\nclass Model: pass\n")
    named = {"_class_path": "elsewhere.Model", "backbone": "resnet10t"}
    torch.save({"state_dict": {}, "hyper_parameters": named}, "evil.ckpt")
    line = refuse([*FIT, "--data.root", "photos", "--ckpt_path", "evil.ckpt"])
    assert "--ckpt_path is of 'elsewhere.Model', and --model is" in line
    assert not Path("pwned").exists()


def test_the_command_line_wins_over_a_checkpoints_options(monkeypatch):
    """LightningCLI lets a checkpoint's win, without a word."""
    stored = {"_class_path": "litcam.lightning_modules.Classifier", "lr": 0.004, "drop_rate": 0.3}
    torch.save({"state_dict": {}, "hyper_parameters": stored}, "old.ckpt")
    made = []

    class Stop(BaseException):
        pass

    def stop(cli):
        made.append(cli)
        raise Stop

    monkeypatch.setattr(training.LitcamCLI, "instantiate_classes", stop)
    words = ["validate", "--config", "finetune_resnet34.yaml", "--data.root", "photos"]
    for option in (["--model.lr", "0.5"], ["--model.init_args.lr=0.5"], []):
        with pytest.raises(Stop):
            main([*words, *option, "--ckpt_path", "old.ckpt"])
        options = made[-1].config.validate.model.init_args
        assert (options.lr, options.drop_rate) == (0.5 if option else 0.004, 0.3)


def test_a_mistake_of_litcams_own_is_no_wrong_option(photos, monkeypatch):
    monkeypatch.setattr(classifier, "check_arguments", None)
    with pytest.raises(ValueError, match="'NoneType' object is not callable"):  # and not one line
        main([*FIT, "--data.root", "photos"])


def test_the_help_needs_no_torch():
    program = "import sys; from litcam.train import main; main(['fit', '--help']); "
    program += "print(sys.modules.keys() & {'torch', 'lightning', 'timm'} or 'none of them')"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert "--data.root DIR" in done.stdout
    assert done.stdout.endswith("none of them\n")


def test_a_run_without_a_logger_and_pictures_has_no_report(photos, capsys):
    off = ["--trainer.logger=false", "--trainer.callbacks=null", "--trainer.max_steps=1"]
    main([*FIT[:3], *[word for word in SMALL if "logger" not in word], "--data.root=photos", *off])
    last = capsys.readouterr().out.splitlines()[-1]
    assert last == "No report.html: nothing was logged or drawn that could be shown in it"


def test_a_single_logger(photos, capsys):
    logger = ["--trainer.logger=CSVLogger", "--trainer.logger.save_dir=logs"]
    main([*FIT, "--data.root", "photos", *logger, "--trainer.limit_train_batches=1"])
    assert "No report" not in capsys.readouterr().out
