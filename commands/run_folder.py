"""Where a run lies, and how a resumed one goes on in the same place and the same W&B run."""

import csv
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.utilities import rank_zero_info, rank_zero_only

from litcam.callbacks.places.redaction import redact_words

WANDB_ID = "wandb_run_id.txt"
EARLIER = "metrics-earlier.csv"


def find_last(experiment: Path) -> Path | None:
    """The newest `last.ckpt` among the versions of an experiment."""
    found = experiment.glob("version_*/checkpoints/last.ckpt")
    return max(found, key=lambda path: path.stat().st_mtime, default=None)


def prepare(config: Any, name: str, subcommand: str = "fit") -> None:
    """Points loggers and `ckpt_path` at the run's folder, before they are made.

    A fresh `fit` gets the next `runs/NAME/version_N`. With `--ckpt_path last`, or a checkpoint in
    such a folder, it goes on there: same folder, same W&B run, earlier metrics kept. The other
    subcommands read `last` alike, and write to `runs/NAME/SUBCOMMAND/version_N`.

    Raises:
        FileNotFoundError: there is no such checkpoint.
    """
    table = _find_logger(config.trainer.logger, "CSVLogger")
    save_dir, experiment = (table.save_dir, table.name) if table else ("runs", None)
    experiment = Path(save_dir) / (name if experiment in (None, "lightning_logs") else experiment)
    checkpoint = _find_checkpoint(config, experiment, subcommand)
    if table is None:
        return
    table.name = str(experiment.relative_to(save_dir))
    if subcommand != "fit":
        table.name += f"/{subcommand}"
    elif checkpoint is not None and checkpoint.absolute().parents[2] == experiment.absolute():
        _go_on_in(checkpoint.parent.parent, config, table)


def _find_checkpoint(config: Any, experiment: Path, subcommand: str) -> Path | None:
    """The file of `ckpt_path`, with `last` made into a path."""
    asked = config.get("ckpt_path")
    if asked == "last":
        last = find_last(experiment)
        config.ckpt_path = None if last is None else str(last)
        if last is None and subcommand != "fit":
            raise FileNotFoundError(f"no last.ckpt under {experiment}; pass --ckpt_path FILE")
        if last is None:
            rank_zero_info(f"No last.ckpt under {experiment}: the run starts anew")
        return last
    # Lightning has names of its own ("best", "hpc", "registry:…") and reads remote files.
    if not asked or asked in ("best", "hpc") or ":" in asked:
        return None
    if not Path(asked).is_file():
        raise FileNotFoundError(f"ckpt_path {asked} does not exist; check the path, or say `last`")
    return Path(asked)


def _go_on_in(folder: Path, config: Any, table: Any) -> None:
    table.version = folder.name
    _keep_metrics(folder)
    wandb = _find_logger(config.trainer.logger, "Wandb")
    if wandb is not None and (folder / WANDB_ID).exists():
        wandb.id = (folder / WANDB_ID).read_text().strip()
    rank_zero_info(f"Goes on from {config.ckpt_path}")


@rank_zero_only
def _keep_metrics(folder: Path) -> None:
    """Lightning's CSVLogger deletes `metrics.csv` of a folder it finds; this one is kept."""
    metrics, earlier = folder / "metrics.csv", folder / EARLIER
    if metrics.exists() and not earlier.exists():
        metrics.rename(earlier)


def restore_metrics(trainer: Trainer) -> None:
    """Puts back the metrics up to the checkpoint; later steps are about to be done again."""
    for logger in trainer.loggers:
        if not isinstance(logger, CSVLogger) or not trainer.is_global_zero:
            continue
        earlier = Path(logger.log_dir) / EARLIER
        if not earlier.exists():
            continue
        with earlier.open(newline="") as file:
            rows = [row for row in csv.DictReader(file) if int(row["step"]) < trainer.global_step]
        known = [{name: value for name, value in row.items() if value} for row in rows]
        logger.experiment.metrics[:0] = known
        logger.save()
        earlier.unlink()


def how_to_go_on(folder: Path | None, args: Sequence[str]) -> str:
    """The line for a run that stopped early, or an empty one where there is nothing to go on from.

    Args:
        folder: of the run.
        args: the words of the command line.
    """
    last = folder / "checkpoints" / "last.ckpt" if folder else None
    if last is None or not last.exists():
        return ""
    words = redact_words(args)
    if "--ckpt_path" in words:
        place = words.index("--ckpt_path")
        del words[place : place + 2]
    words = [word for word in words if not word.startswith("--ckpt_path=")]
    return f"Stopped. To go on: litcam {shlex.join(words)} --ckpt_path last"


def without_place(config: dict[str, Any]) -> dict[str, Any]:
    """A config that starts a run of its own when it is used again."""
    loggers = config["trainer"]["logger"]
    for logger in loggers if isinstance(loggers, list) else [loggers]:
        arguments = logger.get("init_args", {}) if isinstance(logger, dict) else {}
        arguments.update({name: None for name in ("version", "id") if name in arguments})
    return {**config, "ckpt_path": None}


def _find_logger(loggers: Any, kind: str) -> Any:
    """The `init_args` of the first logger of a kind, or None."""
    for logger in loggers if isinstance(loggers, list) else []:
        if kind in logger.class_path:
            return logger.init_args
    return None
