"""One process in trouble ends all of them, in seconds, each with the reason of the first."""

import atexit
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from typing import Any

import lightning.pytorch as pl
import torch.distributed as dist
from lightning.pytorch.callbacks import Callback, Checkpoint
from lightning.pytorch.utilities.exceptions import SIGTERMException
from torch.distributed.distributed_c10d import _get_default_store

from litcam.callbacks.validation.beside import find_sharding

__all__ = ["EndTogether"]

KEY = "litcam/trouble"
# Seconds until a process that has not noticed is interrupted, and until it is ended for good.
INTERRUPT_AFTER, END_AFTER = 10.0, 40.0
PERHAPS = "perhaps for want of memory"
UNKNOWN = f"another process is gone without a word, {PERHAPS}"


class EndTogether(Callback):
    """Ends a run of several processes where one of them fails.

    Without it a process that fails in a step waits for the others in the barrier after its last
    checkpoint, and they wait for it in the step, until the backend's time is up (Lightning 2.6.6).
    With it the process leaves a line with its reason where all can read it and goes; the first
    process saves its checkpoint alone; and the reason is the last line that each of them prints.
    Where weights are sharded no process can save alone, and the last checkpoint stays what it was.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> trainer = Trainer(callbacks=[EndTogether()], logger=False)
    """

    def __init__(self) -> None:
        self._store: Any = None
        self._over = threading.Event()

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Begins to look out for trouble elsewhere."""
        if trainer.world_size > 1 and dist.is_initialized():
            self._store = dist.PrefixStore(f"litcam/{stage}", _get_default_store())
            self._over = threading.Event()
            children = getattr(trainer.strategy.launcher, "procs", [])
            watch = threading.Thread(target=self._watch, args=(self._over, children), daemon=True)
            watch.start()

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Looks out no more."""
        self._over.set()

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        """Says why this process ends, and has it wait for nobody."""
        self._over.set()
        # SIGTERM reaches all processes between the same two steps, and they save together.
        if self._store is None or isinstance(exception, SIGTERMException):
            return
        who = f"process {trainer.global_rank} of {trainer.world_size}"
        lost = "gloo" in str(exception) or isinstance(exception, dist.DistError)
        reason = self._reason()
        if not (reason or lost):
            reason = self._say(f"{who} ended the run: {_in_one_line(exception)}")
        if lost or not (reason or "").startswith(f"{who} "):
            exception.add_note(reason or UNKNOWN)
        if _is_sharded(trainer):
            for callback in trainer.checkpoint_callbacks:
                _save_no_more(callback)
        # Lightning's barriers and broadcasts do nothing from here on.
        dist.destroy_process_group()
        self._take_over(getattr(trainer.strategy.launcher, "procs", []))

    def _take_over(self, children: list[subprocess.Popen[bytes]]) -> None:
        """Answers for the processes that this one started, else Lightning kills it as it saves."""
        if children:
            atexit.register(_end, [*children])
            children.clear()

    def _watch(self, over: threading.Event, children: list[subprocess.Popen[bytes]]) -> None:
        while not over.wait(1.0):
            for rank, child in enumerate(children, 1):
                if child.poll():
                    how = "was killed" if child.returncode < 0 else "ended"
                    self._say(f"process {rank} {how} ({_name(child.returncode)}); {PERHAPS}")
            if (reason := self._reason()) is None:
                continue
            self._take_over(children)
            if over.wait(INTERRUPT_AFTER):
                return
            # It is in no collective that would have failed by now: as if Ctrl-C had been pressed.
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
            if not over.wait(END_AFTER - INTERRUPT_AFTER):
                print(reason, file=sys.stderr, flush=True)
                os._exit(1)

    def _reason(self) -> str | None:
        try:
            return self._store.get(KEY).decode() if self._store.check([KEY]) else None
        except RuntimeError:  # the process that keeps the store is gone
            return UNKNOWN

    def _say(self, reason: str) -> str:
        try:
            # What was said first stays.
            said: bytes = self._store.compare_set(KEY, "", reason)
        except RuntimeError:
            return reason
        return said.decode()


def _in_one_line(exception: BaseException) -> str:
    name, text = type(exception).__name__, str(exception).strip()
    if "in DataLoader worker process" in text:
        # The worker's traceback is part of the message; its last line is the error.
        return text.splitlines()[-1]
    return " ".join(f"{name}: {text}".split()).removesuffix(":")


def _name(returncode: int) -> str:
    return signal.Signals(-returncode).name if returncode < 0 else f"exit code {returncode}"


def _is_sharded(trainer: pl.Trainer) -> bool:
    return bool(find_sharding(trainer)) or hasattr(trainer.strategy, "whole_weights")


def _save_no_more(callback: Checkpoint) -> None:
    if hasattr(callback, "save_on_exception"):
        callback.save_on_exception = False


def _end(children: Sequence[subprocess.Popen[bytes]]) -> None:
    """Waits for processes that this one started, for some seconds, and ends the others."""
    deadline = time.monotonic() + END_AFTER
    for child in children:
        try:
            child.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            child.kill()
