"""Programs in processes that start at once: children of one that has imported everything.

That one is `python forked.py`: it reads a request a line and answers in a line.
"""

import atexit
import contextlib
import importlib
import itertools
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path
from types import SimpleNamespace

HERE = Path(__file__).parent
IMPORTED = (
    "litcam.commands",
    "litcam.commands.running.training",
    "litcam.commands.explain",
    "timm",
    "cv2",
)
ENVIRONMENT = {"WANDB_MODE": "disabled", "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}


class Forking:
    """The process that forks, for the tests.

    Example:
        with Forking() as forking:
            child = forking.start(["fit", …], folder)
            child.kill(signal.SIGTERM)
            assert child.wait() == 143
    """

    def __enter__(self):
        self.scratch, self.numbers = tempfile.TemporaryDirectory(), itertools.count()
        environment = {**os.environ, **ENVIRONMENT}
        environment["PYTHONPATH"] = str(HERE.parent / "datamodules")
        self.process = subprocess.Popen(
            [sys.executable, "-W", "ignore", str(HERE / "forked.py")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
            text=True,
        )
        assert json.loads(self.process.stdout.readline()) == "ready"
        return self

    def __exit__(self, *_):
        self.process.stdin.close()
        self.process.wait(30)
        self.process.stdout.close()
        self.scratch.cleanup()

    def ask(self, **request):
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def start(self, words, folder, *, call="litcam.train:main", marks="", **environment):
        """Calls a function with some words in a process of its own, in a folder."""
        folder.mkdir(parents=True, exist_ok=True)
        said = Path(self.scratch.name, f"{next(self.numbers)}")  # not on a disk that may be full
        request = {"words": words, "folder": str(folder), "call": call, "marks": str(marks)}
        request |= {"environment": environment, "said": str(said)}
        return Child(self, self.ask(**request), said)

    def run(self, words, folder, **options):
        """The same, and what became of it: `code` and what was `said`."""
        child = self.start(words, folder, **options)
        code = child.wait()
        return SimpleNamespace(code=code, said=child.said())


class Child:
    """A process that was started; its exit code is that of `subprocess`."""

    def __init__(self, forking, pid, file):
        self.forking, self.pid, self.file = forking, pid, file

    def kill(self, number=signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, number)

    def wait(self):
        return self.forking.ask(wait=self.pid)

    def said(self):
        return self.file.read_text()

    def wait_for(self, happened, seconds=60):
        """Waits until a function says so; whether it did before the process ended."""
        deadline = time.monotonic() + seconds
        while not happened():
            if time.monotonic() > deadline or not self.runs():
                return False
            time.sleep(0.0002)
        return True

    def runs(self):
        try:
            state = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()[0]
        except FileNotFoundError:
            return False
        return state not in "ZX"


def _serve():
    import torch

    torch.set_num_threads(1)
    for name in IMPORTED:
        importlib.import_module(name)
    answers = os.fdopen(os.dup(1), "w")
    print('"ready"', file=answers, flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        if "wait" in request:
            answer = os.waitstatus_to_exitcode(os.waitpid(request["wait"], 0)[1])
        else:
            answer = os.fork()
            if not answer:
                answers.close()
                _become(request)
                return
        print(json.dumps(answer), file=answers, flush=True)


def _become(request):
    os.environ.update(request["environment"])
    os.chdir(request["folder"])
    said = os.open(request["said"], os.O_WRONLY | os.O_CREAT, 0o666)
    os.dup2(said, 1)
    os.dup2(said, 2)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    tempfile.tempdir = None  # TMPDIR may be another
    from wandb.sdk.data_types import _private

    # The one that was made when W&B was imported goes with the first process that ends.
    _private.MEDIA_TMP.name = tempfile.mkdtemp(dir=Path(request["said"]).parent)
    if request["marks"]:
        import phases

        phases.watch(Path(request["marks"]))
    module, _, name = request["call"].partition(":")
    code = 1
    try:
        getattr(importlib.import_module(module), name)(request["words"])
        code = 0
    except SystemExit as end:
        code = end.code or 0
    except BaseException:
        traceback.print_exc()
    # All but the taking apart of what was imported, which takes longer than a tiny training.
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    _serve()
