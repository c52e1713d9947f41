"""Lightning's `WandbLogger` that never keeps a run from starting, going on, or ending."""

import logging
import os
import secrets
import subprocess
import sys
import urllib.error
import urllib.request
from argparse import Namespace
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from http.client import HTTPException
from pathlib import Path
from textwrap import shorten
from typing import Any

import lightning.pytorch.loggers as loggers
import pydantic
import wandb
from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.pytorch.callbacks import ModelCheckpoint
from requests.utils import get_netrc_auth

from litcam.callbacks.places.redaction import redact, redact_text, redact_words

log = logging.getLogger("lightning.pytorch.callbacks.litcam")

OFFLINE = ("offline", "dryrun", "disabled")
# How often W&B's own process is started again.
RESTARTS = 3


class WandbLogger(loggers.WandbLogger):
    """Logs to Weights & Biases, and offline where there is no key, no network or no server.

    Offline loses nothing: one line says why, how to upload the run later, and how to look at it
    in the terminal. Where W&B's own settings (`WANDB_MODE`) say what to do, they hold. Where W&B
    cannot write either, or its process dies, training goes on without it, and what it missed is
    counted at the end. What looks like a key is taken out of the command line, the hyperparameters
    and the address of the git remote before W&B records them.

    Args:
        project: W&B project.
        name: name of the run; W&B makes one up otherwise.
        offline: do not even try the network.
        connect_timeout: seconds to wait for the server before going offline.
        finish_timeout: seconds to wait at the end for the rest of the upload; what is not up by
            then lies in W&B's folder, for `wandb sync`.
        kwargs: as in Lightning's `WandbLogger`.
    """

    def __init__(
        self,
        project: str = "litcam",
        name: str = "",
        *,
        offline: bool = False,
        connect_timeout: float = 10.0,
        finish_timeout: float = 120.0,
        **kwargs: Any,
    ) -> None:
        # Lightning's own `offline` sets WANDB_MODE for the whole process.
        super().__init__(name=name or None, project=project, **kwargs)
        # Lightning passes it on, and W&B warns that it has no effect.
        self._wandb_init.pop("anonymous", None)
        for name in ("config", "notes"):
            if name in kwargs:
                self._wandb_init[name] = redact(kwargs[name])
        given = self._wandb_init.get("settings") or {}
        if isinstance(given, wandb.Settings):
            given = {name: getattr(given, name) for name in given.model_fields_set}
        ours = {"init_timeout": connect_timeout, "finish_timeout": finish_timeout, "quiet": True}
        self._wandb_init["settings"] = wandb.Settings(**{**ours, **given})
        self._asked_offline, self._connect_timeout = offline, connect_timeout
        self._missed = self._restarts = 0

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """The W&B run, made at the first use."""
        if self._experiment is None and wandb.run is None and not hasattr(self, "_attach_id"):
            try:
                with _without_keys():
                    self._start()
            except Exception as error:
                self._do_without(error)
        return super().experiment

    # What Lightning calls in training.

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Logs a row, which a W&B in trouble misses."""
        with self._beside_training():
            super().log_metrics(metrics, step)

    def log_hyperparams(self, params: dict[str, Any] | Namespace) -> None:
        """Logs hyperparameters, without anything that looks like a key."""
        params = vars(params) if isinstance(params, Namespace) else params
        with self._beside_training():
            super().log_hyperparams(redact(dict(params)))

    def after_save_checkpoint(self, checkpoint_callback: ModelCheckpoint) -> None:
        """Uploads a checkpoint, where `log_model` asks for it."""
        with self._beside_training():
            super().after_save_checkpoint(checkpoint_callback)

    def finalize(self, status: str) -> None:
        """Says what W&B missed."""
        with self._beside_training():
            super().finalize(status)
        if self._missed:
            log.warning(
                f"W&B misses rows of this run, at least {self._missed}; the other loggers have "
                "them, and `wandb sync` uploads what it has"
            )
        self._missed = 0

    @contextmanager
    def _beside_training(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            if not self._missed:
                log.warning(
                    f"W&B misses a row, training goes on ({_describe(error)}); every further row "
                    "is tried"
                )
            self._missed += 1
            # Nothing listens any more: W&B's own process is gone.
            if isinstance(error, ConnectionError):
                self._restart(error)

    # How a run starts.

    def _start(self) -> None:
        settings = wandb.setup().settings
        if settings.mode in OFFLINE:
            reason = f"WANDB_MODE={settings.mode}"
        elif self._asked_offline:
            reason = "asked for"
        else:
            reason = _find_obstacle(settings, self._connect_timeout)
        self._wandb_init["settings"].update_from_dict(_clean_remote(settings))
        if not reason:
            try:
                run = super().experiment
                log.info(f"W&B shows this run live: {run.url}")
                return
            except wandb.Error as error:
                reason = shorten(str(error), 120)
                self._experiment = None
        if settings.mode != "disabled":
            self._wandb_init["mode"] = "offline"
            # The one line below says what W&B would say in three.
            self._wandb_init["settings"].silent = True
            super().experiment  # noqa: B018
            log.info(
                f"W&B runs offline ({reason}): `wandb leet {self._folder()}` shows the run in the "
                f"terminal, `wandb sync {self._folder()}` uploads it"
            )

    def _restart(self, error: Exception) -> None:
        """Goes on in the same W&B run with a new process of W&B's."""
        gone, self._restarts = self.experiment, self._restarts + 1
        for forget in (gone.finish, wandb.teardown):
            with suppress(Exception, SystemExit):  # they would tell the process that is gone
                forget()
        wandb.run = None
        if self._restarts > RESTARTS:
            self._do_without(error)
        else:
            self._wandb_init["id"], self._experiment = gone.id, None
            with self._beside_training():
                self.experiment.config.update(dict(gone.config), allow_val_change=True)

    def _do_without(self, error: Exception) -> None:
        # Not `wandb.init(mode="disabled")`, which reads the settings that may be wrong.
        from wandb.sdk.lib.noop_run import NoopRun

        settings = wandb.Settings(mode="disabled", run_id=self._id or secrets.token_hex(4))
        self._experiment = NoopRun(settings, {})
        log.warning(f"W&B is left out of this run, which goes on ({_describe(error)})")

    def _folder(self) -> Path:
        return Path(self.experiment.dir).parent


@contextmanager
def _without_keys() -> Iterator[None]:
    """W&B reads the command line now, and its process keeps the environment that it finds."""
    words, sys.argv = sys.argv, redact_words(sys.argv)
    # It records all of these, also the token of SLURM's REST interface.
    recorded = {name: value for name, value in os.environ.items() if name.startswith("SLURM_")}
    keys = {name: value for name, value in recorded.items() if redact(value, name) != value}
    for name in keys:
        del os.environ[name]
    try:
        yield
    finally:
        sys.argv = words
        os.environ.update(keys)


def _describe(error: Exception) -> str:
    if isinstance(error, pydantic.ValidationError):  # of W&B's settings
        wrong = error.errors()[0]
        name = f"WANDB_{'_'.join(map(str, wrong['loc']))}".upper()
        return f"{name} is {wrong['input']!r}: {wrong['msg']}; correct or unset it"
    return shorten(f"{type(error).__name__}: {redact_text(str(error))}", 200)


def _find_obstacle(settings: wandb.Settings, timeout: float) -> str:
    """Why W&B cannot be reached now, or an empty line. Any answer of the server will do."""
    url = settings.base_url
    if not (settings.api_key or settings.identity_token_file or get_netrc_auth(url)):
        return "no API key: `wandb login` stores one"
    try:
        urllib.request.urlopen(url, timeout=timeout).close()
    except urllib.error.HTTPError:
        return ""
    except (OSError, HTTPException) as error:
        return f"{url} does not answer: {getattr(error, 'reason', error)}"
    return ""


def _clean_remote(settings: wandb.Settings) -> dict[str, str]:
    """Settings for a git remote whose address holds a key; W&B itself removes only passwords."""
    if settings.disable_git or settings.git_remote_url:
        return {}
    remote = _ask_git("remote", "get-url", settings.git_remote)
    clean = redact_text(remote)
    if clean == remote:
        return {}
    return {"git_remote_url": clean, "git_commit": _ask_git("rev-parse", "HEAD")}


def _ask_git(*words: str) -> str:
    try:
        asked = subprocess.run(["git", *words], capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return asked.stdout.strip()
