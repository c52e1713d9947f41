"""The first and the last lines of a run."""

from pathlib import Path

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.loggers import WandbLogger as AnyWandbLogger

from litcam.report.writing import write_report


def describe(model: LightningModule) -> str:
    """What is trained, and how large it is."""
    sizes = [(weights.numel(), weights.requires_grad) for weights in model.parameters()]
    total, trained = (sum(n for n, grad in sizes if grad or every) for every in (True, False))
    hparams = model.hparams
    name = hparams.get("backbone") or type(model).__name__
    return f"{name}: {total / 1e6:.2f} M parameters, {trained / 1e6:.2f} M of them trained"


def summarise(trainer: Trainer, folder: Path) -> str:
    """How good the model is, where everything is, and which command shows it.

    Args:
        trainer: That is done.
        folder: Of the run. Not asked of the trainer: that would wait for the other processes.
    """
    lines = [f"{_quality(trainer)}Everything is in {_short(folder)}"]
    for name, title in (("gradcam", "Where it looks"), ("reconstructions", "What it guesses")):
        sheets = (folder / name).glob("epoch-*/sheet.jpg")
        if newest := max(sheets, key=lambda path: path.stat().st_mtime, default=None):
            lines.append(f"{title}: {_short(newest)}")
    if (encoder := folder / "checkpoints" / "encoder.safetensors").exists():
        lines.append(f"To fine-tune: litcam fit --config FILE --model.weights {_short(encoder)}")
    for logger in trainer.loggers:
        if isinstance(logger, AnyWandbLogger):
            run = logger.experiment
            if run.settings._offline:
                lines.append(f"Show the run: wandb leet {_short(Path(run.dir).parent)}")
            elif run.url:  # W&B may be switched off altogether
                lines.append(run.url)
    return "\n".join(lines)


def report(folder: Path) -> str:
    """The line that tells where a run's report is, or why there is none."""
    try:
        return f"The whole run on one page: {_short(write_report(folder))}"
    except ValueError:  # without a logger and without pictures
        return "No report.html: nothing was logged or drawn that could be shown in it"
    except Exception as error:  # a page is never worth a run
        return f"No report.html: {type(error).__name__}: {error}"


def _quality(trainer: Trainer) -> str:
    measured = trainer.callback_metrics
    for stage, images in (("val", "validation"), ("test", "test")):
        if (accuracy := measured.get(f"{stage}/acc1")) is not None:
            return f"Right on {accuracy:.1%} of the {images} images. "
    if (explained := measured.get("val/explained_variance")) is not None:
        psnr = measured["val/psnr"]
        return f"Hidden pixels: {explained:.0%} of their variance explained, {psnr:.1f} dB. "
    return ""


def _short(path: Path) -> Path:
    """Relative to the current folder where it lies in it."""
    here = Path.cwd()
    return path.relative_to(here) if path.is_relative_to(here) else path
