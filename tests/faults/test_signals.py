"""SIGTERM, Ctrl-C, and SLURM's signal: the exit code, the line to go on, and what comes after."""

import os
import signal

import pytest
import yaml
from test_resume import diary
from tiny_runs import LAST, fit, load, rows, rows_of, run_in, same_training

pytest_plugins = ["whole_runs"]

JOB = {
    "SLURM_JOB_ID": "4711",
    "SLURM_JOB_NAME": "train",
    "SLURM_NTASKS": "1",
    "SLURM_PROCID": "0",
    "SLURM_LOCALID": "0",
    "SLURM_NODEID": "0",
}


def steps(folder):
    return len(diary(folder)) if (folder / "diary-0.jsonl").exists() else 0


def lines(child):
    return [line for line in child.said().splitlines() if line.strip()]


@pytest.mark.timeout(400)
def test_sigterm_and_ctrl_c(forking, root, whole, tmp_path, tell):
    stops = ((signal.SIGTERM, 143, (1, 15)), (signal.SIGINT, 130, (2, 9)))
    for number, code, places in stops:
        for place in places:
            folder = tmp_path / f"{number}-{place}"
            child = forking.start(fit(root), folder)
            assert child.wait_for(lambda at=folder, least=place: steps(at) >= least)
            child.kill(number)
            assert child.wait() == code, child.said()
            assert "Traceback" not in child.said()
            assert lines(child)[-1].startswith("Stopped. To go on: litcam fit")
            assert lines(child)[-1].endswith("--ckpt_path last")
            assert load(folder)["global_step"] < load(whole)["global_step"]
            done = forking.run(fit(root, *LAST), folder)
            assert done.code == 0, done.said
            assert same_training(folder, whole)
            assert diary(folder) == diary(whole) and rows(folder) == rows(whole)
    tell(
        "SIGTERM and Ctrl-C",
        caused="the signal in the first epoch and in a later one",
        times=sum(len(places) for _, _, places in stops),
        happened="a checkpoint of that step, the line to go on, exit code 143 and 130; gone on "
        "with, bitwise the run that was not stopped",
    )


@pytest.fixture
def cluster(tmp_path):
    """What a job of SLURM finds; `scontrol` writes down what it was asked."""
    scontrol = tmp_path / "bin/scontrol"
    scontrol.parent.mkdir()
    scontrol.write_text(f'#!/bin/sh\necho "$@" >> "{tmp_path}/asked"\n')
    scontrol.chmod(0o755)
    return {**JOB, "PATH": f"{scontrol.parent}:{os.environ['PATH']}"}


@pytest.mark.timeout(400)
def test_a_requeued_job(forking, root, whole, tmp_path, tell, cluster):
    folder, asked, times = tmp_path / "experiment", tmp_path / "asked", 0
    environment = dict(cluster)
    for place in (4, 10):
        child = forking.start(fit(root), folder, **environment)
        assert child.wait_for(lambda least=place: steps(folder) >= least)
        child.kill(signal.SIGUSR1)
        times += 1
        assert child.wait_for(lambda: asked.exists())
        # SLURM ends the job that it has queued again: in its time, or at once.
        child.kill(signal.SIGTERM if place == 4 else signal.SIGKILL)
        assert child.wait() in (143, -9)
        assert asked.read_text().split() == ["requeue", "4711"]
        asked.unlink()
        assert not list(folder.glob("*.ckpt"))
        config = yaml.safe_load((run_in(folder) / "config.yaml").read_text())
        assert config["trainer"]["default_root_dir"] is None
        environment["SLURM_RESTART_COUNT"] = str(times)
    # Another experiment in the same folder, in another job, begins at its own beginning.
    other = forking.run(fit(root), folder, **{**cluster, "SLURM_JOB_ID": "4712"})
    assert other.code == 0 and "Restoring states" not in other.said
    assert run_in(folder).name == "version_1" and same_training(folder, whole)
    done = forking.run(fit(root), folder, **environment)
    assert done.code == 0 and "Goes on from runs/fit/version_0/" in done.said, done.said
    assert sorted(path.name for path in run_in(folder).parent.iterdir()) == [
        "version_0",
        "version_1",
    ]
    run_in(folder).rename(folder / "other")
    assert same_training(folder, whole) and rows(folder) == rows(whole)
    assert diary(folder) == diary(whole)
    # The same job, once it is done, has nothing left to train.
    assert "Nothing left to train" in forking.run(fit(root), folder, **environment).said
    tell(
        "SLURM's signal, and the job queued again",
        caused="SIGUSR1 with a `scontrol` on the path, then SIGTERM or SIGKILL; another experiment "
        "in the same folder meanwhile",
        times=times,
        happened="the same command goes on in its own run's folder, bitwise; the other experiment "
        "begins at its beginning",
    )


@pytest.mark.timeout(400)
def test_runs_that_start_at_once(forking, root, whole, tmp_path, tell):
    rounds, at_once = 2, 4
    for number in range(rounds):
        folder = tmp_path / str(number)
        words = fit(root, **{"trainer.max_epochs": 1})
        children = [forking.start(words, folder) for _ in range(at_once)]
        assert [child.wait() for child in children] == [0] * at_once
        runs = sorted((folder / "runs/fit").iterdir())
        assert [run.name for run in runs] == [f"version_{i}" for i in range(at_once)]
        tables = {tuple(rows_of(run)) for run in runs}
        assert len(tables) == 1
        assert all((run / "checkpoints/last.ckpt").exists() for run in runs)
    tell(
        "several trainings of one name at the same moment",
        caused=f"{at_once} started at once in one folder",
        times=rounds,
        happened="each takes a folder of its own; equal seeds, equal numbers",
    )
