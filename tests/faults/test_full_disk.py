"""A full disk and torn lines: what was there stays, and the rest is read."""

import json
import os
import random
import shutil
import subprocess

import pytest
from test_resume import diary
from tiny_runs import LAST, fit, load, rows, run_in, same_training

from litcam.files import append_text, read_rows
from litcam.report.pictures import read_lines
from litcam.report.writing import write_report

pytest_plugins = ["whole_runs"]

AFTER_AN_EPOCH = ["--trainer.callbacks+=resumed_run.Stop", "--trainer.callbacks.how=SIGTERM"]
AFTER_AN_EPOCH += ["--trainer.callbacks.where=epoch", "--trainer.callbacks.epoch=0"]
AFTER_AN_EPOCH += ["--trainer.callbacks.batch=0"]


@pytest.fixture
def small_disk(tmp_path):
    """A file system of its own, of some megabytes."""
    place = tmp_path / "disk"
    place.mkdir()
    words = ["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", str(place)]
    if os.getuid() or subprocess.run(words, capture_output=True).returncode:
        pytest.skip("a file system can be mounted by root only")
    yield place
    subprocess.run(["umount", "--lazy", str(place)], check=True)


def fill(place, left):
    """Leaves so many bytes of a file system free."""
    status = os.statvfs(place)
    with (place / "full").open("wb") as file:
        file.write(bytes(max(0, status.f_bavail * status.f_frsize - left)))


@pytest.mark.timeout(400)
def test_a_full_disk(forking, root, whole, small_disk, tell):
    spaces = (0, 100_000, 4_000_000)
    for left in spaces:
        folder = small_disk / str(left)
        stopped = forking.run([*fit(root), *AFTER_AN_EPOCH], folder)
        assert stopped.code == 143, stopped.said
        before = run_in(folder)
        kept = (before / "metrics.csv").read_bytes()
        fill(small_disk, left)
        done = forking.run(fit(root, *LAST), folder)
        assert done.code == 2, done.said
        assert "Traceback" not in done.said, done.said
        line = [each for each in done.said.splitlines() if each.startswith("litcam: ")][-1]
        assert "No space left on device" in line and "stays as it was" in line, line
        assert load(folder)["global_step"] in (6, 12)
        assert not list(before.rglob("*.partial"))
        assert (before / "config.yaml").stat().st_size > 1000
        assert (before / "metrics.csv").read_bytes().count(b"\n") >= kept.count(b"\n")
        assert "</html>" in (before / "report.html").read_text()
        (small_disk / "full").unlink()
        done = forking.run(fit(root, *LAST), folder)
        assert done.code == 0, done.said
        assert same_training(folder, whole)
        assert diary(folder) == diary(whole) and rows(folder) == rows(whole)
        shutil.rmtree(folder)
    tell(
        "a full disk in a training",
        caused="a tmpfs filled up to some bytes; then room is made",
        times=len(spaces),
        happened="one line; checkpoints, table, configuration and report are the old ones, whole; "
        "gone on with, bitwise the run that had room",
    )


def tear(file, data, chance):
    """Leaves a file as a kill or a power cut may: cut, cut and lengthened by zeros, or by noise.

    Returns how many lines were left whole.
    """
    place = chance.randrange(len(data))
    zeros, noise = bytes(chance.randrange(1, 600)), chance.randbytes(chance.randrange(1, 99))
    file.write_bytes(data[:place] + chance.choice([b"", zeros, noise]))
    return data[:place].count(b"\n")


def test_torn_lines(whole, tmp_path, fuzz, tell):
    chance, run = random.Random(0), tmp_path / "run"
    shutil.copytree(run_in(whole), run)
    table, lines, config = run / "metrics.csv", run / "gradcam/images.jsonl", run / "config.yaml"
    data = {file: file.read_bytes() for file in (table, lines, config)}
    all_rows, all_lines, following = read_rows(table), read_lines(lines), {"key": "the next"}
    for _ in range(fuzz):
        left = max(0, tear(table, data[table], chance) - 1)
        assert read_rows(table)[:left] == all_rows[:left]
        left = tear(lines, data[lines], chance)
        append_text(lines, json.dumps(following) + "\n")
        *found, last = read_lines(lines)
        assert found[:left] == all_lines[:left] and last == following
    for _ in range(min(fuzz, 30)):
        for file, whole_file in data.items():
            tear(file, whole_file, chance)
        assert "</html>" in write_report(run).read_text()
    tell(
        "torn `metrics.csv` and `images.jsonl`",
        caused="cut at seeded random bytes, half of them with zeros or noise behind",
        times=2 * fuzz,
        happened="the other rows are read, the next line is added beside the torn one, and the "
        "report is made",
        lost="the torn row",
    )


@pytest.mark.timeout(400)
def test_a_resume_with_a_torn_table(forking, root, whole, tmp_path, tell):
    ends = (b"", b"1,0.5", bytes(512), b'"\xff\xfe\r\n,')
    for number, end in enumerate(ends):
        folder = tmp_path / str(number)
        assert forking.run([*fit(root), *AFTER_AN_EPOCH], folder).code == 143
        table = run_in(folder) / "metrics.csv"
        table.write_bytes(table.read_bytes() + end)
        with (run_in(folder) / "gradcam/images.jsonl").open("ab") as lines:
            lines.write(b'{"file": "a')
        done = forking.run(fit(root, *LAST), folder)
        assert done.code == 0, done.said
        assert same_training(folder, whole) and rows(folder) == rows(whole)
        seen = read_lines(run_in(folder) / "gradcam/images.jsonl")
        assert {line["epoch"] for line in seen} == {0, 1, 2}
    tell(
        "gone on with, with a torn `metrics.csv` and `images.jsonl`",
        caused="half a row, zeros or noise at the end",
        times=len(ends),
        happened="weights and every row as without",
    )


@pytest.mark.timeout(400)
def test_going_on_with_a_finished_run(forking, root, whole, tmp_path, tell):
    folder = tmp_path / "run"
    shutil.copytree(whole, folder)
    before = (run_in(folder) / "metrics.csv").read_bytes()
    page = (run_in(folder) / "report.html").read_bytes()
    for _ in range(2):
        done = forking.run(fit(root, *LAST), folder)
        assert done.code == 0 and done.said.count("Nothing left to train") == 1, done.said
        assert (run_in(folder) / "metrics.csv").read_bytes() == before
        assert (run_in(folder) / "report.html").read_bytes() == page
    tell(
        "`--ckpt_path last` of a run that is finished",
        caused="the same command again",
        times=2,
        happened="one line says that nothing is left to train",
    )
