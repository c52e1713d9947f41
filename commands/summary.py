"""The first and the last lines of a run."""

from pathlib import Path

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.loggers import WandbLogger as AnyWandbLogger


def describe(model: LightningModule) -> str:
    """What is trained, and how large it is."""
    sizes = [(weights.numel(), weights.requires_grad) for weights in model.parameters()]
    total, trained = (sum(n for n, grad in sizes if grad or every) for every in (True, False))
    hparams = model.hparams
    name = hparams.get("backbone") or type(model).__name__
    return f"{name}: {total / 1e6:.2f} M parameters, {trained / 1e6:.2f} M of them trained"


def summarise(trainer: Trainer) -> str:
    """How right the model is, where everything is, and which command shows it."""
    folder = Path(trainer.log_dir or trainer.default_root_dir)
    lines = [f"{_accuracy(trainer)}Everything is in {_short(folder)}"]
    sheets = (folder / "gradcam").glob("epoch-*/sheet.jpg")
    if newest := max(sheets, key=lambda path: path.stat().st_mtime, default=None):
        lines.append(f"Where it looks: {_short(newest)}")
    for logger in trainer.loggers:
        if isinstance(logger, AnyWandbLogger):
            run = logger.experiment
            place = _short(Path(run.dir).parent)
            offline = run.settings._offline
            lines.append(f"Show the run: wandb leet {place}" if offline else str(run.url))
    return "\n".join(lines)


def _accuracy(trainer: Trainer) -> str:
    for stage, images in (("val", "validation"), ("test", "test")):
        accuracy = trainer.callback_metrics.get(f"{stage}/acc1")
        if accuracy is not None:
            return f"Right on {accuracy:.1%} of the {images} images. "
    return ""


def _short(path: Path) -> Path:
    """Relative to the current folder where it lies in it."""
    here = Path.cwd()
    return path.relative_to(here) if path.is_relative_to(here) else path
