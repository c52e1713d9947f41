"""Where a run lies, and how a resumed one goes on in the same place and the same W&B run."""

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.utilities import rank_zero_info, rank_zero_only

from litcam.callbacks import SafeCSVLogger
from litcam.callbacks.places.redaction import redact_words
from litcam.commands.running import slurm
from litcam.lightning_modules.atomic_checkpoints import newest_readable, read_checkpoint

WANDB_ID = "wandb_run_id.txt"
# In a run's folder: what ModelCheckpoint writes, and what Lightning writes for SLURM.
TO_GO_ON_FROM = ("checkpoints/last.ckpt", "hpc_ckpt_*.ckpt")


def find_last(*folders: Path) -> Path | None:
    """The newest checkpoint to go on from among those of some runs."""
    found = [path for folder in folders for kind in TO_GO_ON_FROM for path in folder.glob(kind)]
    return max(found, key=lambda path: path.stat().st_mtime, default=None)


def prepare(config: Any, name: str, subcommand: str, words: Sequence[str]) -> str:
    """Points loggers and `ckpt_path` at the run's folder, before they are made.

    A fresh `fit` gets the next `runs/NAME/version_N`, or its `--run_folder`. With `--ckpt_path
    last`, or a checkpoint in such a folder, it goes on there: same folder, same W&B run, earlier
    metrics kept. So does one that SLURM requeued. The other subcommands read `last` alike, and
    write to `runs/NAME/SUBCOMMAND/version_N`.

    Args:
        config: of the subcommand.
        name: of the experiment.
        subcommand: fit, validate, test or predict.
        words: of the command line.

    Returns:
        A line where there is nothing left to train, else an empty one.

    Raises:
        FileNotFoundError: there is no such checkpoint.
        ValueError: it is damaged, or holds weights only; or the run's folder holds a run.
    """
    table = _find_logger(config.trainer.logger, "CSVLogger")
    if table is not None and table.class_path.startswith(("lightning.", "pytorch_lightning.")):
        table.class_path = "litcam.callbacks.SafeCSVLogger"  # whose table a stop does not take away
    save_dir, experiment = "runs", None
    if table is not None:
        table = table.init_args
        save_dir, experiment = table.save_dir, table.name
    place = Path(save_dir) / (name if experiment in (None, "lightning_logs") else experiment)
    asked = _asked_folder(config, table)
    if asked is not None:
        save_dir, place = str(asked.parent), asked.parent
    runs = [*place.glob("version_*")] if asked is None else [asked]
    checkpoint = _find_checkpoint(config, place, runs, subcommand, words)
    left = "" if checkpoint is None else _look_into(checkpoint, config, subcommand)
    if table is None or left:
        return left
    if asked is not None:
        table.save_dir, table.version = str(save_dir), asked.name
    table.name = str(place.relative_to(save_dir))
    if subcommand != "fit":
        table.name += f"/{subcommand}"
        return ""
    if checkpoint is not None and (folder := run_of(checkpoint)).parent == place.absolute():
        _go_on_in(place / folder.name, config, table)
    return ""


def _asked_folder(config: Any, table: Any) -> Path | None:
    """The folder that the user wants, free for a run or of the one that goes on."""
    asked = config.get("run_folder")
    if not asked:
        return None
    folder = Path(asked)
    if table is None:
        raise ValueError(f"--run_folder {asked} needs a CSVLogger among --trainer.logger")
    if not config.get("ckpt_path") and (folder / "metrics.csv").exists():
        raise ValueError(
            f"--run_folder {asked} holds a run; add --ckpt_path last to go on, or give another"
        )
    return folder


def _find_checkpoint(
    config: Any, experiment: Path, runs: Sequence[Path], subcommand: str, words: Sequence[str]
) -> Path | None:
    """The file to go on from, with `last` made into a path."""
    own = find_last(*slurm.find_runs(experiment, words)) if subcommand == "fit" else None
    if own is not None and (slurm.was_requeued() or own.name.startswith("hpc_ckpt_")):
        config.ckpt_path = str(own)
        return own
    asked = config.get("ckpt_path")
    if asked == "last":
        last = find_last(*runs)
        config.ckpt_path = None if last is None else str(last)
        if last is None and subcommand != "fit":
            raise FileNotFoundError(f"no last.ckpt under {experiment}; pass --ckpt_path FILE")
        if last is None:
            rank_zero_info(f"No last.ckpt under {experiment}: the run starts anew")
        return last
    # Lightning has names of its own ("best", "hpc", "registry:…") and reads remote files.
    if not asked or asked in ("best", "hpc") or ":" in asked:
        return None
    if Path(asked).is_dir():
        inside = newest_readable(Path(asked))
        there = f"the newest in it is {inside}" if inside else "there is no checkpoint in it"
        raise FileNotFoundError(f"ckpt_path {asked} is a folder; {there}")
    if not Path(asked).is_file():
        raise FileNotFoundError(f"ckpt_path {asked} does not exist; check the path, or say `last`")
    return Path(asked)


def _look_into(file: Path, config: Any, subcommand: str) -> str:
    """Refuses a checkpoint that is of no use; a line where it is of the end of a training."""
    found = read_checkpoint(file, weights_only=config.get("weights_only"), whole=False)
    if subcommand != "fit":
        return ""
    if "loops" not in found or "optimizer_states" not in found:
        raise ValueError(
            f"checkpoint {file} holds weights only, and a training cannot go on from it; to begin "
            f"one with its weights: --model.weights {file}"
        )
    trainer, current = config.trainer, found["loops"]["fit_loop"]["epoch_progress"]["current"]
    limits = {"max_epochs": current["processed"], "max_steps": found["global_step"]}
    for limit, done in limits.items():
        most = trainer.get(limit)
        if most is not None and 0 <= most <= done:
            return f"Nothing left to train: {file} is at --trainer.{limit} {most}"
    return ""


def run_of(checkpoint: Path) -> Path:
    """The folder of the run that a checkpoint is of."""
    folder = checkpoint.absolute().parent
    return folder.parent if folder.name == "checkpoints" else folder


def _go_on_in(folder: Path, config: Any, table: Any) -> None:
    table.version = folder.name
    _clear(folder)
    wandb = _find_logger(config.trainer.logger, "Wandb")
    if wandb is not None and (folder / WANDB_ID).exists():
        wandb.init_args.id = (folder / WANDB_ID).read_text().strip()
    rank_zero_info(f"Goes on from {config.ckpt_path}")


@rank_zero_only
def _clear(folder: Path) -> None:
    """Removes what a kill left of files that were not whole."""
    for partial in (*folder.glob("*.partial"), *folder.glob("checkpoints/*.partial")):
        partial.unlink(missing_ok=True)


def keep_apart(trainer: Trainer) -> None:
    """Has Lightning look for SLURM's checkpoints where another run's are not; before a training."""
    for logger in trainer.loggers:
        if isinstance(logger, SafeCSVLogger):
            trainer._default_root_dir = logger.root_dir  # type: ignore[attr-defined]


def settle(trainer: Trainer, folder: Path) -> None:
    """Has Lightning write SLURM's checkpoints into the run's folder, once that is known."""
    if Path(trainer.default_root_dir).absolute() == folder.absolute().parent:
        trainer._default_root_dir = str(folder)  # type: ignore[attr-defined]


def restore_metrics(trainer: Trainer) -> None:
    """Keeps the metrics up to the checkpoint; later steps are about to be done again."""
    for logger in trainer.loggers:
        if isinstance(logger, SafeCSVLogger) and trainer.is_global_zero:
            logger.go_on(trainer.global_step)


def how_to_go_on(folder: Path | None, args: Sequence[str]) -> str:
    """The line for a run that stopped early, or an empty one where there is nothing to go on from.

    Args:
        folder: of the run.
        args: the words of the command line.
    """
    if folder is None or find_last(folder) is None:
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
    """The first logger of a kind, or None."""
    for logger in loggers if isinstance(loggers, list) else []:
        if kind in logger.class_path:
            return logger
    return None
