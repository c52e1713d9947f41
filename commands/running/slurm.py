"""Which run a SLURM job that was requeued had begun: the same job with the same command."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from lightning.pytorch.plugins.environments import SLURMEnvironment

from litcam.files import write_whole

FILE = "slurm.yaml"


def sign(folder: Path, words: Sequence[str]) -> None:
    """Leaves in a run's folder which job began it or goes on with it, if any does."""
    if job := _job():
        told = {"job": job, "command": [*words]}
        write_whole(folder / FILE, yaml.safe_dump(told, sort_keys=False))


def find_runs(experiment: Path, words: Sequence[str]) -> list[Path]:
    """The folders of runs that this job began with this command, before it was requeued."""
    job = _job()
    found = [path for path in experiment.glob(f"version_*/{FILE}") if job]
    return [path.parent for path in found if _read(path) == {"job": job, "command": [*words]}]


def was_requeued() -> bool:
    """Whether SLURM says that this job was started before."""
    return os.environ.get("SLURM_RESTART_COUNT", "0") != "0"


def _job() -> str:
    if not SLURMEnvironment.detect():
        return ""
    if array := os.environ.get("SLURM_ARRAY_JOB_ID"):
        return f"{array}_{os.environ.get('SLURM_ARRAY_TASK_ID', '')}"
    return os.environ.get("SLURM_JOB_ID", "")


def _read(file: Path) -> Any:
    try:
        return yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        return None
