"""Work in a process apart, where a crash or a hang is an outcome and not the end of the tests."""

import contextlib
import io
import logging
import os
import resource
import signal
import sys
import tempfile
import traceback
import warnings
from pathlib import Path

from litcam.train import main

ROOM = 6 << 30  # of memory, more than the largest image takes while it is decoded


def outcomes(work, inputs, *, seconds):
    """What `work` says of each input, in one line; or how it ended the process.

    One process takes inputs until it ends; the next one goes on behind the culprit. It is forked,
    because what one of its own would import takes longer than a thousand images.
    """
    said = []
    while len(said) < len(inputs):
        read, write = os.pipe()
        child = os.fork()
        if not child:
            with _last_of_all():
                os.close(read)
                signal.signal(signal.SIGALRM, signal.SIG_DFL)  # also within a library
                _bound_memory()
                for data in inputs[len(said) :]:
                    signal.setitimer(signal.ITIMER_REAL, seconds)
                    os.write(write, work(data).replace("\n", "\\n").encode() + b"\n")
        os.close(write)
        with os.fdopen(read, newline="\n") as lines:
            said += [line.rstrip("\n") for line in lines]
        if code := os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]):
            hung = f"took more than {seconds} s"
            said.append(hung if code == -signal.SIGALRM else f"ended the process with {code}")
    return said


def _bound_memory():
    """What reads without end is to fail here, and not to fill the machine."""
    pages = int(Path("/proc/self/statm").read_text().split()[0]) if sys.platform == "linux" else 0
    if pages:
        most = pages * resource.getpagesize() + ROOM
        resource.setrlimit(resource.RLIMIT_AS, (most, most))


def begin(call):
    """Calls something in a process apart, with its output in a file; its id, and the file."""
    handle, path = tempfile.mkstemp(dir=".", prefix="said-")
    child = os.fork()
    if not child:
        with _last_of_all():
            os.setsid()  # so that its own processes can be ended with it
            _print_to(handle)
            warnings.simplefilter("default")  # they end a test, but no program
            call()
    os.close(handle)
    return child, Path(path)


def end(child):
    """Waits for a process; its exit code, negative of the signal that ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def litcam(*words):
    """`litcam WORDS`: the exit code, and all that it printed."""
    child, said = begin(lambda: main(list(map(str, words))))
    return end(child), said.read_text(errors="replace")


def _print_to(handle):
    os.dup2(handle, 1)
    os.dup2(handle, 2)
    # What pytest put there writes elsewhere, and so do the handlers that were made of it.
    sys.stdout = sys.stderr = os.fdopen(handle, "w", buffering=1)
    for name in ("lightning", "lightning.pytorch", "lightning.fabric"):
        for handler in logging.getLogger(name).handlers:
            stream = getattr(handler, "stream", None)
            if stream and not isinstance(stream, io.StringIO):
                handler.setStream(sys.stderr)


@contextlib.contextmanager
def _last_of_all():
    code = 1
    try:
        yield
        code = 0
    except SystemExit as error:
        code = error.code or 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
