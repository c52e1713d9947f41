"""Lightning's `WandbLogger` that never keeps a run from starting, going on, or ending."""

import logging
import urllib.error
import urllib.request
from http.client import HTTPException
from pathlib import Path
from textwrap import shorten
from typing import Any

import lightning.pytorch.loggers as loggers
import wandb
from lightning.fabric.loggers.logger import rank_zero_experiment
from requests.utils import get_netrc_auth

log = logging.getLogger("lightning.pytorch.callbacks.litcam")

OFFLINE = ("offline", "dryrun", "disabled")


class WandbLogger(loggers.WandbLogger):
    """Logs to Weights & Biases, and offline where there is no key, no network or no server.

    Offline loses nothing: one line says why, how to upload the run later, and how to look at it
    in the terminal. Where W&B's own settings (`WANDB_MODE`) say what to do, they hold.

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
        given = self._wandb_init.get("settings") or {}
        if isinstance(given, wandb.Settings):
            given = {name: getattr(given, name) for name in given.model_fields_set}
        ours = {"init_timeout": connect_timeout, "finish_timeout": finish_timeout, "quiet": True}
        self._wandb_init["settings"] = wandb.Settings(**{**ours, **given})
        self._asked_offline, self._connect_timeout = offline, connect_timeout

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """The W&B run, made at the first use."""
        if self._experiment is None and wandb.run is None and not hasattr(self, "_attach_id"):
            self._start()
        return super().experiment

    def _start(self) -> None:
        settings = wandb.setup().settings
        if settings.mode in OFFLINE:
            reason = f"WANDB_MODE={settings.mode}"
        elif self._asked_offline:
            reason = "asked for"
        else:
            reason = _find_obstacle(settings, self._connect_timeout)
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
            folder = Path(super().experiment.dir).parent
            log.info(
                f"W&B runs offline ({reason}): `wandb leet {folder}` shows the run in the "
                f"terminal, `wandb sync {folder}` uploads it"
            )


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
