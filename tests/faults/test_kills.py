"""SIGKILL at any moment, twice in a row; in the end there is what there is without it."""

import random
import shutil
import time
from collections import Counter

import pytest
from phases import PHASES, marks
from test_resume import diary
from tiny_runs import LAST, fit, rows, run_in, same_training

pytest_plugins = ["whole_runs"]

SEED = 20
# Of a fit, two in a row each; "any" is any moment of it.
PAIRS = [
    ("any", "validation"),
    ("checkpoint", "any"),
    ("validation", "checkpoint"),
    ("any", "report"),
    ("validation", "validation"),
    ("checkpoint", "checkpoint"),
    ("any", "any"),
    ("report", "report"),
    ("metrics", "any"),
    ("any", "metrics"),
]
# Seconds into a phase at which it is killed, at most.
WITHIN = {"validation": 0.05, "checkpoint": 0.01, "metrics": 0.002, "report": 0.2}


def kill(child, seen, kind, chance, seconds):
    """Kills a process in a phase, or within some seconds; in which phase it died, if it did."""
    if kind == "any":
        _pause(child, chance.uniform(0, 0.8 * seconds))
    else:
        number = 8 + PHASES.index(kind)
        times = 1 if kind == "report" else chance.randint(1, 3)
        if child.wait_for(lambda: seen[number] >= times):
            _pause(child, chance.uniform(0, WITHIN[kind]))
    child.kill()
    return PHASES[seen[0]] if child.wait() == -9 else None


def _pause(child, seconds):
    until = time.monotonic() + seconds
    child.wait_for(lambda: time.monotonic() > until)


def trained(folder):
    """How often each image was trained in each epoch, in the run that came of it."""
    return Counter((at[0], index) for at, seen in diary(folder).items() for index in seen)


def told(where):
    return ", ".join(f"{count} in {phase}" for phase, count in sorted(where.items()))


@pytest.mark.timeout(400)
def test_fit(forking, root, whole, tmp_path, tell):
    chance, where, lost = random.Random(SEED), Counter(), 0
    seconds = float((whole / "seconds").read_text())
    for number, kinds in enumerate(PAIRS):
        folder = tmp_path / f"{number}"
        folder.mkdir()
        file = folder / "marks"
        seen = marks(file)
        for kind in kinds:
            child = forking.start(fit(root, *LAST, every=3), folder, marks=file)
            where[kill(child, seen, kind, chance, seconds)] += 1
        done = forking.run(fit(root, *LAST, every=3), folder)
        assert done.code == 0, done.said
        assert same_training(folder, whole), kinds
        assert trained(folder) == trained(whole), kinds
        assert set(trained(folder).values()) == {1}
        assert diary(folder, "val") == diary(whole, "val"), kinds
        missing = Counter(rows(whole)) - Counter(rows(folder))
        assert not [row for row in missing if "val/" in row], kinds
        assert not Counter(rows(folder)) - Counter(rows(whole)), kinds
        lost += missing.total()
        assert len(list(run_in(folder).rglob("*.partial"))) <= 1
        assert "</html>" in (run_in(folder) / "report.html").read_text()
    kills = sum(count for phase, count in where.items() if phase)
    assert kills >= 16  # a start that was faster than the first may end before
    assert {"validation", "checkpoint", "training", "report"} <= {*where}
    tell(
        "a training killed twice in a row",
        caused=f"SIGKILL at seeded random moments ({told({k: v for k, v in where.items() if k})})",
        times=kills,
        happened="with `--ckpt_path last` weights and optimiser bitwise those of the run that was "
        "not killed, each image trained once, every validation there once",
        lost=f"{lost} of {len(PAIRS) * len(rows(whole))} rows of metrics.csv; of an epoch "
        "that was gone on with, `train/loss` is that of its rest, and `drift` is not measured",
    )


def timed(forking, words, folder):
    """Runs it to its end; in how many seconds."""
    began = time.monotonic()
    done = forking.run(words, folder)
    assert done.code == 0, done.said
    return time.monotonic() - began


@pytest.mark.timeout(400)
def test_explain(forking, root, whole, tmp_path, tell):
    chance, photo = random.Random(SEED), root / "val/cat/0.jpg"
    checkpoint = run_in(whole) / "checkpoints/last.ckpt"
    words = ["explain", str(photo), "--models", str(checkpoint), "--methods", "gradcam", "eigencam"]
    words += ["--device", "cpu", "--out", "out"]
    seconds = timed(forking, words, tmp_path / "whole")
    expected = files(tmp_path / "whole/out")
    died = partial = 0
    for number in range(20):
        folder = tmp_path / str(number)
        for _ in range(2):
            child = forking.start(words, folder)
            _pause(child, chance.uniform(0, seconds))
            child.kill()
            died += child.wait() == -9
            found = files(folder / "out")
            partial += len(found.keys() - expected.keys())
            assert all(found[name] == expected[name] for name in found.keys() & expected.keys())
            assert all(name.endswith(".partial") for name in found.keys() - expected.keys())
        seconds = min(seconds, timed(forking, words, folder))
        assert expected.items() <= files(folder / "out").items()
        if died >= 20:
            break
    assert died >= 20
    tell(
        "`litcam explain` killed twice in a row",
        caused=f"SIGKILL at seeded random moments, {partial} of them half way through a file",
        times=died,
        happened="every file is whole or not there, and the next start writes the same bytes",
    )


@pytest.mark.timeout(400)
def test_report(forking, whole, tmp_path, tell):
    chance, run = random.Random(SEED), tmp_path / "run"
    shutil.copytree(run_in(whole), run)
    words, page = ["report", "run"], run / "report.html"
    seconds = timed(forking, words, tmp_path)
    expected = page.read_bytes()
    where, file = Counter(), tmp_path / "marks"
    seen = marks(file)
    for number in range(20):
        old = b"the report before" if number % 2 else None
        page.unlink()
        if old:
            page.write_bytes(old)
        for _ in range(2):
            child = forking.start(words, tmp_path, marks=file)
            _pause(child, chance.uniform(0, seconds))
            child.kill()
            if child.wait() == -9:
                where[PHASES[seen[0]]] += 1
            assert (page.read_bytes() if page.exists() else None) in (old, expected)
        seconds = min(seconds, timed(forking, words, tmp_path))
        assert page.read_bytes() == expected
        if where.total() >= 20:
            break
    assert where.total() >= 20 and where["report"]
    tell(
        "`litcam report` killed twice in a row",
        caused=f"SIGKILL at seeded random moments ({told(where)})",
        times=where.total(),
        happened="the old page or the new one, whole; the next start writes the same bytes",
    )


def files(folder):
    """What is in a folder, by its path there."""
    found = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in found}
