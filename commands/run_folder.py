"""Where a run lies, and how a resumed one goes on in the same place and the same W&B run."""

import re
from pathlib import Path
from typing import Any

from lightning.pytorch.utilities import rank_zero_info, rank_zero_only

WANDB_ID = "wandb_run_id.txt"


def find_last(experiment: Path) -> Path | None:
    """The newest `last.ckpt` among the versions of an experiment."""
    found = experiment.glob("version_*/checkpoints/last.ckpt")
    return max(found, key=lambda path: path.stat().st_mtime, default=None)


def prepare(config: Any, name: str) -> None:
    """Points loggers and `ckpt_path` of a `fit` at the run's folder, before they are made.

    A fresh run gets the next `runs/NAME/version_N`. With `--ckpt_path last`, or a checkpoint inside
    such a folder, the run goes on there: same folder, same W&B run, earlier metrics kept.
    """
    csv, wandb = (_find_logger(config.trainer.logger, kind) for kind in ("CSVLogger", "Wandb"))
    if csv is None:
        return
    csv.name = csv.name if csv.name not in (None, "lightning_logs") else name
    experiment = Path(csv.save_dir) / csv.name
    checkpoint = config.get("ckpt_path")
    if checkpoint == "last":
        checkpoint = find_last(experiment)
        config.ckpt_path = None if checkpoint is None else str(checkpoint)
        if checkpoint is None:
            rank_zero_info(f"No last.ckpt under {experiment}: the run starts anew")
    if not checkpoint:
        return
    folder = Path(checkpoint).parent.parent
    if folder.parent != experiment:
        return
    csv.version = folder.name
    _keep_metrics(folder)
    if wandb is not None and (folder / WANDB_ID).exists():
        wandb.id = (folder / WANDB_ID).read_text().strip()
    rank_zero_info(f"Goes on from {checkpoint}")


def redact(tree: Any, name: str = "") -> Any:
    """A config without anything that looks like a key."""
    if isinstance(tree, dict):
        return {key: redact(value, str(key)) for key, value in tree.items()}
    if isinstance(tree, list):
        return [redact(value, name) for value in tree]
    secret_name = re.search(r"(^|_)(key|token|secret|password|credentials?)s?$", name.lower())
    if isinstance(tree, str) and tree:
        # What W&B and cloud keys look like, and passwords in addresses.
        looks_secret = re.fullmatch(r"[0-9a-f]{40,}|wandb_v1_\w+|AKIA[0-9A-Z]{16}", tree)
        if secret_name or looks_secret:
            return "(removed)"
        return re.sub(r"://[^/@\s]+@", "://(removed)@", tree)
    return tree


@rank_zero_only
def _keep_metrics(folder: Path) -> None:
    """Lightning's CSVLogger deletes `metrics.csv` of a folder it finds; this one keeps it."""
    metrics = folder / "metrics.csv"
    if metrics.exists():
        part = len(list(folder.glob("metrics-part*.csv"))) + 1
        metrics.rename(folder / f"metrics-part{part}.csv")


def _find_logger(loggers: Any, kind: str) -> Any:
    """The `init_args` of the first logger of a kind, or None."""
    for logger in loggers if isinstance(loggers, list) else []:
        if kind in logger.class_path:
            return logger.init_args
    return None
