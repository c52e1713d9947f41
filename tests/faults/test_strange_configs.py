"""Config files that are wrong, hostile or no files: one line, in time, and nothing runs."""

import os
import random
import time
from collections import Counter
from functools import partial
from pathlib import Path

import pytest
from mutations import change_config
from outcomes import READ, made, outcome, parser, read_by  # noqa: F401

from litcam.commands.cli.config_files import CONFIGS, find_configs, packaged_configs
from litcam.commands.explaining.words import parse

FOUND = Path(__file__).parent / "found"
FILES = packaged_configs()
# Inputs that the whole parser reads (0.05 s each), and the first ones of which all is made (0.3 s).
WHOLE, MADE = 1_500, 1_500


def doubled(start, step, times):
    return start + "".join(step.format(before=i, now=i + 1) for i in range(times))


HOSTILE = {
    "ten to the twelfth words": doubled(
        "a0: &a0 [x]\n", "a{now}: &a{now} [" + ", ".join(["*a{before}"] * 10) + "]\n", 12
    ),
    "two to the fortieth by merging": doubled(
        "a0: &a0 {x: 1}\n", "a{now}: &a{now} {{<<: [*a{before}, *a{before}]}}\n", 40
    ),
    "a list in itself": "trainer: &a [*a]",
    "a name in itself": "trainer: &a {callbacks: *a}",
    "merged with itself": "trainer: &a {<<: *a}",
    "os.system by a tag": "trainer: !!python/object/apply:os.system ['touch pwned']",
    "a module by a tag": "trainer: !!python/module:pwned",
    "a class by a tag": "trainer: !!python/object:subprocess.Popen {args: touch pwned}",
    "100,000 brackets": "trainer: " + "[" * 100_000,
    "60 levels": "trainer: " + "[" * 60 + "]" * 60,
    "3,000 levels of indentation": "".join(f"{' ' * n}a:\n" for n in range(3000)),
    "a name twice": "model:\n  class_path: Classifier\n  init_args:\n    lr: 1.0e-3\n    lr: 1.0\n",
    "a group twice": "trainer: {max_epochs: 1}\ntrainer: {max_epochs: 2}\n",
    "a tab": "trainer:\n\tmax_epochs: 1\n",
    "a NUL": "trainer: {max_epochs: 1}\0",
    "a bell": "trainer: {max_epochs: 1\a}",
    "a list": "- trainer\n- model\n",
    "a word": "trainer",
    "a number": "3",
    "two documents": "trainer: {}\n---\ntrainer: {}\n",
    "a number as a name": "1: 2",
    "nothing as a name": "null: {}",
    "yes as a name": "yes: 1",
    "a list as a name": "? [a]\n: 1\n",
    "a number in a group": "trainer: {1: 2}",
    "no such tag": "trainer: !lit 1",
    "not an int": "trainer: {max_epochs: !!int x}",
    "an empty float": "trainer: {max_epochs: !!float ''}",
    "no such date": "trainer: !!timestamp x",
    "5,000 digits": "trainer: {max_epochs: " + "9" * 5000 + "}",
    "20,000 values": "trainer: [" + "1," * 20_000 + "]",
    "no such alias": "trainer: *nothing",
    "an anchor twice": "a: &a 1\nb: &a 2\ntrainer: {max_epochs: *a}",
    "unclosed": "trainer: {max_epochs: 1",
    "markers of a merge": "<<<<<<< HEAD\ntrainer: {}\n=======\n",
}  # fmt: skip
BYTES = {
    "bytes at random": random.Random(0).randbytes(10_000),
    "Latin-1": "# Größe\ntrainer: {}".encode("latin-1"),
    "UTF-16": "trainer: {}".encode("utf-16"),
    "half a letter": "# é".encode()[:-1],
    "a PNG": b"\x89PNG\r\n\x1a\n" + bytes(100),
}


def words_of(file):
    return ["fit", "--config", "demo.yaml", "--config", str(file)]


def commands_that_read(parser, file):  # noqa: F811
    """The four ways by which a user's YAML comes in."""
    yield read_by(parser, words_of(file))
    yield read_by(parser, ["fit", "--config", "demo.yaml", f"--trainer={file}"])
    yield read_by(parser, ["validate", "-c", "demo.yaml", "--model", str(file)])
    yield lambda: parse(["photo.png", "--models", "resnet34", "--config", str(file)])


def test_hostile_yaml(parser, tell):  # noqa: F811
    Path("pwned.py").write_text("open('pwned', 'w')")
    slowest = tried = 0
    for text in [*(text.encode() for text in HOSTILE.values()), *BYTES.values()]:
        Path("mine.yaml").write_bytes(text)
        for run in commands_that_read(parser, "mine.yaml"):
            start = time.process_time()
            assert outcome(run) != READ, text[:100]
            slowest, tried = max(slowest, time.process_time() - start), tried + 1
    # What the command line says itself is YAML too.
    for name, text in HOSTILE.items():
        if len(text) < 100_000 and "\0" not in text:
            start = time.process_time()
            words = ["fit", "--config", "demo.yaml", "--config", text]
            assert outcome(read_by(parser, words)) != READ, name
            slowest, tried = max(slowest, time.process_time() - start), tried + 1
    assert not Path("pwned").exists()
    assert slowest < 1
    tell(
        "A config that bites: aliases that grow to 10^12 words, anchors in themselves, YAML tags "
        "that call a program, 100,000 brackets, a name twice, binary files",
        caused="each given as --config, --trainer FILE, --model FILE, on the command line and to "
        "`litcam explain`",
        times=tried,
        happened=f"one line and exit code 2 within {slowest:.1f} s; nothing was executed",
    )


def test_what_is_no_file(parser, tell):  # noqa: F811
    Path("folder.yaml").mkdir()
    os.mkfifo("pipe.yaml")
    Path("zero.yaml").symlink_to("/dev/zero")
    Path("loop.yaml").symlink_to("loop.yaml")
    with Path("huge.yaml").open("wb") as file:
        file.truncate(10**12)  # a hole: it takes no room
    long = "x" * 300 + ".yaml"
    files = "folder.yaml pipe.yaml zero.yaml /dev/zero loop.yaml huge.yaml none.yaml ~/none.yaml"
    address = "https://127.0.0.1:1/a.yaml"
    files = [*files.split(), "", "mine\udcff.yaml", long, address]
    tried = 0
    for file in files:
        for run in commands_that_read(parser, file):
            assert outcome(run, seconds=2) != READ, file
            tried += 1
    tell(
        "A config that is no file: a folder, a pipe, /dev/zero, a link to itself, 1 TB, a name of "
        "300 letters, an address",
        caused="each given as --config, --trainer FILE, --model FILE and to `litcam explain`",
        times=tried,
        happened="one line and exit code 2 within 2 s",
    )


def reads(parser, name, file):  # noqa: F811
    """How a packaged file is given to the program, with another in its place."""
    if name.startswith("paper/"):
        return lambda: parse(["photo.png", "--config", file])
    if name.startswith("trainer/"):
        return read_by(parser, ["fit", "--config", "demo.yaml", "--trainer", file])
    return read_by(parser, ["fit", "--config", file, "--data.root", "photos"])


@pytest.mark.parametrize("case", sorted(FOUND.glob("*.yaml")), ids=lambda path: path.stem)
def test_what_was_found_in_configs(case, parser):  # noqa: F811
    """Its first line names the file in whose place it stood."""
    text = case.read_text()
    name = text.partition("\n")[0].removeprefix("# ")
    Path("mine.yaml").write_text(text)
    assert outcome(reads(parser, name, "mine.yaml"), seconds=2) != READ


def test_fuzzed_configs(parser, made, fuzz, tell):  # noqa: F811
    texts = {name: (CONFIGS / name).read_text() for name in FILES}
    Path("photo.png").touch()
    counts = Counter()
    for number in range(fuzz):
        rng = random.Random(number)
        name = rng.choice(FILES)
        text = change_config(texts[name], rng)
        Path("mine.yaml").write_bytes(text.encode(errors="surrogatepass"))
        run, kind = reads(parser, name, "mine.yaml"), "read whole"
        if number < MADE and name == "demo.yaml":
            run, kind = made(["fit", "--config", "mine.yaml"]), "made"
        elif number >= WHOLE:
            run, kind = partial(find_configs, ["--config", "mine.yaml"]), "read as YAML"
        try:
            end = outcome(run)
        except BaseException as error:
            raise AssertionError(f"input {number}, in place of {name}:\n{text[:2000]}") from error
        counts[kind] += 1
        counts["taken" if end == READ else "refused"] += 1
    assert {path.name for path in Path().iterdir()} <= {"mine.yaml", "photo.png", "wandb-config"}
    tell(
        "A config with mistakes in it",
        caused="packaged YAML files with one to three values of another type, names misspelt, "
        "groups moved, lines doubled or lost, characters changed: "
        f"{counts['read whole']:,} read whole by the program's parser, {counts['made']:,} up to "
        f"model, data and trainer, {counts['read as YAML']:,} by the reader of YAML alone",
        times=fuzz,
        happened=f"{counts['refused']:,} refused in one line with exit code 2, {counts['taken']:,} "
        "still mean something; no traceback, nothing executed, no file written",
    )
