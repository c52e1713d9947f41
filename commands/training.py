"""`litcam fit | validate | test | predict`: LightningCLI with litcam's defaults."""

import logging
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.loggers import WandbLogger as AnyWandbLogger

# Imported so that configs can name these classes without their path.
import litcam.callbacks
import litcam.datamodules
import litcam.lightning_modules  # noqa: F401
from litcam.commands import run_folder
from litcam.commands.config_files import BASE, find_configs, name_of_run

SUBCOMMANDS = ("fit", "validate", "test", "predict")


class SaveConfig(SaveConfigCallback):
    """Keeps the whole resolved config, without secrets, in the run's folder and in W&B."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{**kwargs, "save_to_log_dir": False})

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Asks for the folder on every process, which `save_config` may not."""
        self._folder = Path(trainer.log_dir or trainer.default_root_dir)
        super().setup(trainer, pl_module, stage)

    def save_config(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Writes `config.yaml` and W&B's config, and the W&B run's id for a later resume."""
        if getattr(trainer, "fast_dev_run", False):
            return
        config = run_folder.redact(yaml.safe_load(self.parser.dump(self.config, skip_none=False)))
        self._folder.mkdir(parents=True, exist_ok=True)
        (self._folder / self.config_filename).write_text(yaml.safe_dump(config, sort_keys=False))
        for logger in trainer.loggers:
            if isinstance(logger, AnyWandbLogger):
                logger.experiment.config.update(config, allow_val_change=True)
                (self._folder / run_folder.WANDB_ID).write_text(logger.experiment.id)


class LitcamCLI(LightningCLI):
    """LightningCLI that links data and model, and lets a run go on where it stopped."""

    run_name = "fit"

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Links what model and data have to agree on."""
        target = "model.init_args.num_classes"
        parser.link_arguments("data.num_classes", target, apply_on="instantiate")
        parser.link_arguments("model.init_args.backbone", "data.init_args.backbone")

    def before_instantiate_classes(self) -> None:
        """Decides on the run's folder."""
        if self.subcommand == "fit":
            run_folder.prepare(self.config.fit, self.run_name)

    def after_fit(self) -> None:
        """Says how it went, where everything is, and how to look at it."""
        if self.trainer.is_global_zero and not getattr(self.trainer, "fast_dev_run", False):
            print(summarise(self.trainer))


def run(args: Sequence[str]) -> LitcamCLI:
    """Runs one of `SUBCOMMANDS`, the first of `args`, with the options after it."""
    _calm_console()
    args = find_configs(args)
    LitcamCLI.run_name = name_of_run(args)
    parser = {"default_config_files": [str(BASE)]}
    return LitcamCLI(
        LightningModule,
        LightningDataModule,
        subclass_mode_model=True,
        subclass_mode_data=True,
        save_config_callback=SaveConfig,
        parser_kwargs=dict.fromkeys(SUBCOMMANDS, parser),
        args=args,
    )


def summarise(trainer: Trainer) -> str:
    """The last lines of a run."""
    folder = Path(trainer.log_dir or trainer.default_root_dir)
    metrics = trainer.callback_metrics
    right = (
        f"Right on {metrics['val/acc1']:.1%} of the validation images. "
        if ("val/acc1" in metrics)
        else ""
    )
    lines = [f"{right}Everything is in {folder}"]
    if (folder / "gradcam").exists():
        newest = max((folder / "gradcam").glob("epoch-*/sheet.jpg"), default=None)
        lines.append(f"Where it looks: {newest}")
    for logger in trainer.loggers:
        if isinstance(logger, AnyWandbLogger):
            offline = logger.experiment.settings._offline
            place = Path(logger.experiment.dir).parent
            shown = (
                Path(place).relative_to(Path.cwd()) if place.is_relative_to(Path.cwd()) else place
            )
            lines.append(f"Show the run: wandb leet {shown}" if offline else logger.experiment.url)
    return "\n".join(lines)


def _calm_console() -> None:
    """Silences what a user can do nothing about."""
    for message in (
        "LeafSpec",
        "does not have many workers",
        "is not empty",
        "args parameter",
        "logging interval",
    ):
        warnings.filterwarnings("ignore", f".*{message}.*")
    tips = logging.getLogger("lightning.pytorch.utilities.rank_zero")
    tips.addFilter(lambda record: "Tip:" not in record.getMessage())
