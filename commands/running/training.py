"""`litcam fit | validate | test | predict`: LightningCLI with litcam's defaults."""

import inspect
import logging
import signal
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
import yaml
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.accelerators import CUDAAccelerator
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.loggers import WandbLogger as AnyWandbLogger
from lightning.pytorch.utilities import rank_zero_info, rank_zero_only
from lightning.pytorch.utilities.exceptions import SIGTERMException

# Imported so that configs can name these classes without their path.
import litcam.callbacks
import litcam.lightning_modules  # noqa: F401
from litcam.callbacks.places.redaction import redact, redact_words
from litcam.commands.cli.config_files import BASE, find_configs, name_of_run
from litcam.commands.cli.errors import end, trouble_elsewhere
from litcam.commands.cli.parser import Parser
from litcam.commands.running import run_folder, slurm
from litcam.commands.running.image_size import check_patches, follow_data
from litcam.commands.running.of_seed import fill_in_seed
from litcam.commands.running.predictions import PredictionsFile
from litcam.commands.running.summary import describe, report, summarise
from litcam.commands.running.versions import keep_versions
from litcam.datamodules import ImageNetDataModule, SyntheticDataModule  # noqa: F401
from litcam.files import write_whole
from litcam.lightning_modules.atomic_checkpoints import save_atomically

SUBCOMMANDS = ("fit", "validate", "test", "predict")


class SaveConfig(SaveConfigCallback):
    """Keeps the whole resolved config, without secrets, in the run's folder and in W&B."""

    folder: Path | None = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{**kwargs, "save_to_log_dir": False})

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Asks for the folder on every process, which `save_config` may not."""
        SaveConfig.folder = self._folder = Path(trainer.log_dir or trainer.default_root_dir)
        run_folder.settle(trainer, self._folder)
        super().setup(trainer, pl_module, stage)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Puts back what a resumed run measured before."""
        run_folder.restore_metrics(trainer)

    def save_config(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Writes `config.yaml` and W&B's config, and the W&B run's id for a later resume."""
        if getattr(trainer, "fast_dev_run", False):
            return
        config = yaml.safe_load(self.parser.dump(self.config, skip_none=False))
        config = redact(run_folder.without_place(config))
        write_whole(self._folder / self.config_filename, yaml.safe_dump(config, sort_keys=False))
        slurm.sign(self._folder, LitcamCLI.words)
        keep_versions(trainer, self._folder)
        for logger in trainer.loggers:
            if isinstance(logger, AnyWandbLogger):
                logger.log_hyperparams(config)
                write_whole(self._folder / run_folder.WANDB_ID, logger.experiment.id)


class LitcamCLI(LightningCLI):
    """LightningCLI that links data and model, and lets a run go on where it stopped."""

    run_name = "fit"
    words: Sequence[str] = ()

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Links what model and data have to agree on, and adds what no group of options holds."""
        parser.add_argument(
            "--matmul_precision",
            type=Literal["highest", "high", "medium"],
            default="high",
            help="of float32 matrix products on a CUDA GPU; high is TF32",
        )
        parser.add_argument(
            "--run_folder",
            type=str | None,
            default=None,
            help="where this run lies, instead of the next runs/NAME/version_N",
        )
        target = "model.init_args.num_classes"
        parser.link_arguments("data.num_classes", target, apply_on="instantiate")
        parser.link_arguments("model.init_args.backbone", "data.init_args.backbone")

    def before_instantiate_classes(self) -> None:
        """Decides on the run's folder and the size that the network is made for."""
        config = self.config[self.subcommand]
        follow_data(config, self.words)
        fill_in_seed(config)
        # The link would replace it without a word.
        self._asked_classes = config.model.get("init_args", {}).get("num_classes")
        nothing_left = run_folder.prepare(
            config, self.run_name, self.subcommand or "fit", self.words
        )
        if nothing_left:
            _say_nothing_is_left(nothing_left, run_folder.run_of(Path(config.ckpt_path)))
            sys.exit(0)
        if not config.trainer.logger:
            # It refuses to run without a logger.
            config.trainer.callbacks = [
                callback
                for callback in config.trainer.callbacks or []
                if not callback.class_path.endswith("LearningRateMonitor")
            ]
        if self.subcommand != "fit" and not config.get("ckpt_path"):
            rank_zero_info("No --ckpt_path: the weights are those the model starts with")

    def after_instantiate_classes(self) -> None:
        """Suits checkpoints and float32, and holds classes and patches against the data.

        Raises:
            ValueError: they differ.
        """
        save_atomically(self.trainer)
        if self.config[self.subcommand].trainer.default_root_dir is None:
            run_folder.keep_apart(self.trainer)
        # Not on a CPU, where litcam promises the same bits; Lightning would warn of the default.
        if isinstance(self.trainer.accelerator, CUDAAccelerator):
            torch.set_float32_matmul_precision(self.config[self.subcommand].matmul_precision)
        check_patches(self.model, getattr(self.datamodule, "image_size", None))
        asked, found = self._asked_classes, getattr(self.datamodule, "num_classes", None)
        parameter = inspect.signature(type(self.model)).parameters.get("num_classes")
        default = parameter and parameter.default
        if asked not in (None, default, found):
            raise ValueError(
                f"--model.num_classes {asked} disagrees with the data, which have {found} classes; "
                "leave it out: it comes from the data"
            )

    def before_fit(self) -> None:
        """Says what is trained."""
        rank_zero_info(describe(self.model))

    def after_fit(self) -> None:
        """Says how it went, where everything is, and how to look at it."""
        if self.trainer.is_global_zero and not getattr(self.trainer, "fast_dev_run", False):
            folder = SaveConfig.folder or Path()
            print(summarise(self.trainer, folder))
            print(report(folder))

    after_validate = after_test = after_fit

    def before_predict(self) -> None:
        """Has the answers written to a file."""
        self._predictions = PredictionsFile()
        self.trainer.callbacks.append(self._predictions)  # type: ignore[attr-defined]

    def after_predict(self) -> None:
        """Says where the answers are."""
        if self.trainer.is_global_zero:
            print(f"What is on every image: {self._predictions.file}")


def run(args: Sequence[str]) -> None:
    """Runs one of `SUBCOMMANDS`, the first of `args`, with the options after it."""
    _calm_console()
    SaveConfig.folder = None
    LitcamCLI.run_name = name_of_run(args)
    LitcamCLI.words = redact_words(args)
    words = ["--help" if arg == "--help-all" else arg for arg in find_configs(args)]
    parser = {"default_config_files": [str(BASE)]}
    try:
        LitcamCLI(
            LightningModule,
            LightningDataModule,
            subclass_mode_model=True,
            subclass_mode_data=True,
            save_config_callback=SaveConfig,
            parser_class=Parser,
            parser_kwargs=dict.fromkeys(SUBCOMMANDS, parser),
            args=words,
        )
    except BaseException as error:
        # Ctrl-C as well: Lightning has made an exit of it, and saved last.ckpt.
        if args[0] == "fit" and (line := run_folder.how_to_go_on(SaveConfig.folder, args)):
            _say_how_to_go_on(line)
        if isinstance(error, SystemExit) and (reason := trouble_elsewhere(error)):
            end(reason)
        if code := _code_of_signal(error):
            sys.exit(code)
        raise


def _code_of_signal(error: BaseException) -> int | None:
    """128 and the signal's number, as shells have it; Lightning exits with 0 and 1."""
    if isinstance(error, SIGTERMException):
        return 128 + signal.SIGTERM
    by_hand = error.__context__ if isinstance(error, SystemExit) else error
    if isinstance(by_hand, KeyboardInterrupt):
        return 128 + signal.SIGINT
    return None


@rank_zero_only
def _say_how_to_go_on(line: str) -> None:
    print(report(SaveConfig.folder or Path()))
    print(line)


@rank_zero_only
def _say_nothing_is_left(line: str, folder: Path) -> None:
    print(line)
    if (folder / "metrics.csv").exists():  # a kill may have left it without its report
        print(report(folder))


def _calm_console() -> None:
    """Silences what a user can do nothing about."""
    for message in (
        "LeafSpec",
        "does not have many workers",
        "worker processes in total",
        "is not empty",
        "args parameter",
        "logging interval",
        "The dirpath has changed",
        "images_(unique|repeated|missing)",  # `Coverage` has added them up itself
    ):
        warnings.filterwarnings("ignore", f".*{message}.*")
    logger = logging.getLogger("lightning.pytorch.utilities.rank_zero")
    logger.addFilter(_is_news)


def _is_news(record: logging.LogRecord) -> bool:
    message = record.getMessage()
    return not any(noise in message for noise in ("Tip:", "TPU available", "HPU available"))
