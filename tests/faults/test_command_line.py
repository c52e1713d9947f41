"""Words of the command line that make no sense: every command, one line, nothing started."""

import os
import random
from collections import Counter
from functools import partial
from pathlib import Path

import numpy as np
from mutations import misspelt
from outcomes import READ, outcome, parser, read_by  # noqa: F401
from PIL import Image

from litcam.commands import COMMANDS, demo
from litcam.commands.cli.config_files import find_configs
from litcam.commands.convert import _parser as convert_parser
from litcam.commands.explaining import named_photos
from litcam.commands.explaining.words import parse
from litcam.commands.running import training
from litcam.train import main

WORDS = """
- -- --= -x = --x= nan inf -inf -1 0 1e400 0x10 null true [ *a . zero pipe ~ ~nobody/x
$HOME `touch|pwned` %s%n @words src photo.png os.system subprocess.Popen pwned.Callback s3://
https://127.0.0.1:1/x file:///etc/hosts cuda:-1 fit none.yaml none.ckpt photo.png.yaml 1,2 last
trainer/cpu.yaml {a:1,a:2} mine\udcff.yaml \udcff é中\u202e \x1b[31m
"""
ODD = [*WORDS.split(), "", " ", "a\nb", "; touch pwned", "{a: 1, a: 2}", "{a: &a [*a]}", "9" * 5000]
ODD += ["x" * 300, "x" * 20_000, "--" + "x" * 5000]
# Inputs that LightningCLI's parser reads, 0.05 s each; of the others only the files are looked for.
WHOLE = 1_500
RIGHT = {
    **dict.fromkeys(
        training.SUBCOMMANDS,
        "--config demo.yaml --trainer.max_epochs 1 --model.lr 1e-3 --data.image_size 32 "
        "--trainer.callbacks+=EarlyStopping --trainer.callbacks.monitor val/loss "
        "--trainer.logger.offline true --model.backbone_args {stem_width:32} --seed_everything 1 "
        "--trainer trainer/cpu.yaml --ckpt_path none.ckpt",
    ),
    "predict": "photo.png src --ckpt_path none.ckpt --topk 2 --out out.csv --device cpu "
    "--batch_size 3",
    "demo": "--data.num_train 8 --trainer.max_epochs 1 --data.shortcut true",
    "explain": "photo.png --models resnet34 --classes 1 --methods gradcam --out out --device cpu "
    "--target_layer layer4 --pretrained --config paper/swin.yaml",
    "convert": "src dst --short_side 16 --num_workers 0 --chunk_mb 1 --seed 1 --skip_broken",
    "report": "run --explained explained --out page.html",
    "export": "run --ckpt_path none.ckpt --out exported --onnx --overwrite --no_pictures",
}


def options_of(command, parser):  # noqa: F811
    if command in training.SUBCOMMANDS and command != "predict":
        within = parser._subcommands_action._name_parser_map[command]
        return list(within._option_string_actions)
    if command == "convert":
        return list(convert_parser()._option_string_actions)
    return [word for word in RIGHT[command].split() if word.startswith("--")] + ["-h", "--help"]


def change(words, options, rng):
    """One to three words lost, doubled, misspelt, exchanged, or odd ones put in."""
    words = list(words)
    for _ in range(rng.randrange(1, 4)):
        at = rng.randrange(len(words) + 1)
        kind = rng.randrange(7) if words and at < len(words) else 6
        if kind == 0:
            words.pop(at)
        elif kind == 1:
            words.insert(at, words[at])
        elif kind == 2:
            words[at] = misspelt(words[at], rng)
        elif kind == 3:
            words[at] = rng.choice(ODD)
        elif kind == 4 and words[at].startswith("--"):
            words[at] = f"{rng.choice(options)}={rng.choice(ODD)}"
        elif kind == 5:
            words[at] = f"{words[at]}{rng.choice(['.', '+', '=', '+=', '.x', '.help'])}"
        else:
            words[at:at] = [rng.choice(options), rng.choice(ODD)][: rng.randrange(1, 3)]
    # What cannot be in a word that a system hands over.
    return [word.replace("\0", "") for word in words]


def reads(command, words, parser, *, whole=True):  # noqa: F811
    """Everything that a command does with its words; the work itself only where it is quick."""
    if command == "predict":  # of photos; of a data set it takes the words of `litcam fit`
        return partial(named_photos.parse, words)
    if not whole and command in (*training.SUBCOMMANDS, "demo"):
        return partial(find_configs, words)
    if command in training.SUBCOMMANDS:
        return read_by(parser, [command, *words])
    if command == "explain":
        return partial(parse, words)
    if command == "demo":
        return read_by(parser, [*demo.FIT, *words])
    return partial(main, [command, *words])


def make_files():
    rng = np.random.default_rng(0)
    for split in ("train", "val"):
        for name in ("cat", "dog"):
            folder = Path("src", split, name)
            folder.mkdir(parents=True)
            pixels = rng.integers(0, 256, (20, 20, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / "0.png")
    Image.fromarray(pixels).save("photo.png")
    Path("photo.png.yaml").write_bytes(Path("photo.png").read_bytes())
    Path("pwned.py").write_text("open('pwned', 'w')")
    # A link, so that whatever takes its place does not take that of the device.
    Path("zero").symlink_to("/dev/zero")
    os.mkfifo("pipe")
    for name in ("run", "explained"):
        Path(name).mkdir()
    Path("run/metrics.csv").write_text("epoch,step,val/loss\n0,1,0.5\n")
    Image.fromarray(pixels).save("explained/figure.png")
    Path("explained/explain.json").write_text("[]")


def test_fuzzed_words(parser, fuzz, tell, tmp_path, monkeypatch):  # noqa: F811
    place = tmp_path / "here"
    place.mkdir()
    monkeypatch.chdir(place)
    make_files()
    options = {command: options_of(command, parser) for command in RIGHT}
    beside = sorted(tmp_path.iterdir())
    counts = Counter()
    for number in range(fuzz):
        rng = random.Random(number)
        command = rng.choice(list(RIGHT))
        words = change(RIGHT[command].split(), options[command], rng)
        run = reads(command, words, parser, whole=number < WHOLE)
        if rng.random() < 0.02:
            command = rng.choice([*ODD, misspelt(command, rng)])
            run = partial(main, [command, *words]) if command not in COMMANDS else run
        try:
            end = outcome(run)
        except BaseException as error:
            raise AssertionError(f"input {number}: {command!r} {words!r}"[:3000]) from error
        counts["read" if end == READ else "refused"] += 1
    assert sorted(tmp_path.iterdir()) == beside
    assert not list(tmp_path.rglob("pwned"))
    assert Path("zero").is_char_device()
    assert Path("pipe").is_fifo()
    tell(
        "Words of the command line that make no sense",
        caused=f"{len(RIGHT)} commands; words lost, doubled, misspelt, empty, of 20,000 letters, "
        "no text, nan, inf, code, wrong paths, devices and pipes for files; the whole parser of "
        f"LightningCLI read the first {min(fuzz, WHOLE):,}",
        times=fuzz,
        happened=f"{counts['refused']:,} refused in one line with exit code 2, {counts['read']:,} "
        "still mean something; no traceback, nothing executed, no file written elsewhere",
    )


def test_a_pipe_for_any_option(parser, tell):  # noqa: F811
    """Found by the words below: whoever opens a pipe waits for somebody to write."""
    os.mkfifo("pipe")
    found = options_of("fit", parser)
    for option in found:
        for words in ([option, "pipe"], [f"{option}=pipe"]):
            assert outcome(read_by(parser, ["fit", "--config", "demo.yaml", *words])) != READ
    tell(
        "A pipe as the value of an option",
        caused="each option of `litcam fit`, as two words and as one",
        times=2 * len(found),
        happened="one line and exit code 2 (some waited for ever)",
    )


def test_a_report_does_not_take_the_place_of_a_device(tell):
    make_files()
    for out in ("zero", "pipe", "run"):
        said = outcome(partial(main, ["report", "run", "--out", out]))
        assert f"--out {out} is no ordinary file" in said
    assert Path("zero").is_char_device()
    assert Path("pipe").is_fifo()
    tell(
        "`litcam report --out` on a device, a pipe or a folder",
        caused="a link to /dev/zero, a pipe, a folder",
        times=3,
        happened="one line; they are what they were (a page had taken the place of the device)",
    )


def test_what_the_demo_cannot_read_is_told_before_it_trains(tell):
    wrong = ["--trainer.max_epochz=1", "--model.lrr=1", "--trainer.max_epochs=x", "--data.sed=1"]
    for option in wrong:
        assert outcome(partial(demo.demo, [option])) != READ
    assert not Path("runs").exists()
    tell(
        "A misspelt option of `litcam demo`",
        caused="options of the model, the data, the trainer",
        times=len(wrong),
        happened="one line before it trains",
    )
