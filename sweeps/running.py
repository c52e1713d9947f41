"""The arms of a sweep as processes: some at a time, ended early, taken up again."""

import ctypes
import fcntl
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import torch

from litcam.sweeps.arms import LOG, Arm
from litcam.sweeps.description import Sweep
from litcam.sweeps.stopping import find_hopeless

__all__ = ["DONE", "run_arms", "sigterm_as_interrupt"]

DONE = ("finished", "stopped")
PATIENCE = 30.0  # seconds for a run to save itself
PR_SET_PDEATHSIG = 1


@dataclass
class _Process:
    """A run on its way."""

    arm: Arm
    slot: int
    before: float  # seconds of earlier tries
    began: float = field(default_factory=time.monotonic)
    stopped: bool = False

    def start(self, jobs: int, group: str) -> "_Process":
        """Starts it, or lets it go on where it was."""
        self.arm.write("running", self.before)
        program = [sys.executable, "-m", "litcam.train", "fit", *self.arm.words]
        place = ["--run_folder", str(self.arm.folder), "--ckpt_path", "last"]
        with (self.arm.folder / LOG).open("ab") as log:
            # The run inherits the lock; one that a killed sweep left is waited for.
            fcntl.flock(log, fcntl.LOCK_EX)
            self.process = subprocess.Popen(
                [*program, *place],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=_environment(self.arm.name, self.slot, jobs, group),
                # A Ctrl-C is for the sweep, which passes it on once.
                start_new_session=True,
                preexec_fn=_end_with_parent if sys.platform == "linux" else None,
            )
        return self

    def end(self, code: int) -> str:
        """Writes down how it ended, and returns that."""
        seconds = self.before + time.monotonic() - self.began
        state = "stopped" if self.stopped else "finished" if code == 0 else "failed"
        if code in (-signal.SIGTERM, -signal.SIGINT, 128 + signal.SIGTERM, 128 + signal.SIGINT):
            state = "stopped" if self.stopped else "interrupted"
        reason = _find_reason(self.arm.folder / LOG, code) if state == "failed" else ""
        self.arm.write(state, seconds, reason)
        return state


def run_arms(
    arms: Sequence[Arm],
    sweep: Sweep,
    *,
    jobs: int = 1,
    watch: Callable[[Sequence[Arm]], None] = lambda running: None,
    told: Callable[[Arm, str], None] = lambda arm, state: None,
    pause: float = 0.5,
) -> None:
    """Runs what is not done of the arms.

    An arm that was interrupted goes on from its last checkpoint, a failed one is tried again.

    Args:
        arms: in the order in which they are begun.
        sweep: its rule of stopping early is applied.
        jobs: how many run at a time; GPUs are shared out among them.
        watch: called with those on their way, every `pause` seconds.
        told: called with each that ended, and how.
        pause: between two looks, in seconds.

    Raises:
        KeyboardInterrupt: after a Ctrl-C, when all have saved themselves.
    """
    waiting = [arm for arm in arms if arm.read()["state"] not in DONE]
    running: list[_Process] = []
    group = arms[0].folder.parent.name if arms else ""
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                slot = min(set(range(jobs)) - {each.slot for each in running})
                arm = waiting.pop(0)
                begun = _Process(arm, slot, arm.read()["seconds"])
                running.append(begun.start(jobs, group))
            time.sleep(pause)
            for each in [each for each in running if each.process.poll() is not None]:
                running.remove(each)
                told(each.arm, each.end(each.process.returncode))
            _stop_hopeless(arms, running, sweep)
            watch([each.arm for each in running])
    finally:
        _end_all(running)


def _stop_hopeless(arms: Sequence[Arm], running: Sequence[_Process], sweep: Sweep) -> None:
    if sweep.early is None:
        return
    histories = {arm.name: arm.history(sweep.metric) for arm in arms}
    names = [each.arm.name for each in running if not each.stopped]
    hopeless = find_hopeless(histories, names, sweep.early, maximize=sweep.maximize)
    for each in running:
        if each.arm.name in hopeless:
            each.stopped = True
            each.process.send_signal(signal.SIGTERM)


def _end_all(running: Sequence[_Process]) -> None:
    """Has every run save itself; a second Ctrl-C does not wait for it."""
    for each in running:
        each.process.send_signal(signal.SIGTERM)
    until = time.monotonic() + PATIENCE
    try:
        for each in running:
            with suppress(subprocess.TimeoutExpired):
                each.process.wait(max(0.0, until - time.monotonic()))
    finally:
        for each in running:
            each.process.kill()
            each.end(each.process.wait())


@contextmanager
def sigterm_as_interrupt() -> Iterator[None]:
    """Has SIGTERM raise KeyboardInterrupt, as Ctrl-C does; on the main thread."""

    def interrupt(*given: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _environment(name: str, slot: int, jobs: int, group: str) -> dict[str, str]:
    """That of this process, with the arm's share of the machine and its names in W&B."""
    own = {"WANDB_RUN_GROUP": group, "WANDB_NAME": name}
    if jobs > 1:
        own["OMP_NUM_THREADS"] = str(max(1, (os.cpu_count() or 1) // jobs))
        if (gpus := torch.cuda.device_count()) > 1:
            own["CUDA_VISIBLE_DEVICES"] = str(slot % gpus)
    return {**own, **os.environ}


def _end_with_parent() -> None:
    # Else a sweep that is killed leaves runs that write where its next start writes too.
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def _find_reason(log: Path, code: int) -> str:
    """The last line that a run said, or the signal that ended it."""
    if code < 0:
        name = signal.Signals(-code).name
        hint = " (the system may have run out of memory)" if code == -signal.SIGKILL else ""
        return f"{name}{hint}"
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines()]
    said = [line.removeprefix("litcam: ") for line in lines if line]
    return said[-1][:300] if said else f"exit code {code}"
