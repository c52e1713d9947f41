"""What a command line comes to: it is read, or refused in one line with exit code 2, in time."""

import io
import signal
from contextlib import contextmanager, redirect_stderr, redirect_stdout

import huggingface_hub
import pytest

from litcam.commands.cli import errors
from litcam.commands.cli.config_files import BASE, find_configs
from litcam.commands.cli.parser import Parser
from litcam.commands.running import training

READ = "read"


class Late(BaseException):
    """Not an Exception, so that nothing takes it for the user's mistake."""


@contextmanager
def within(seconds):
    def late(*_):
        raise Late(f"not done after {seconds} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def outcome(run, *, seconds=10):
    """`READ`, or the line with which it was refused; anything else fails the test."""
    said, code = io.StringIO(), 0
    with within(seconds), redirect_stderr(said), redirect_stdout(io.StringIO()):
        try:
            with errors.in_one_line():
                run()
        except SystemExit as end:
            code = end.code or 0
    lines = said.getvalue().strip().split("\n")
    mine = [line for line in lines if line.startswith("litcam: ")]
    if code == 0 and not mine:
        return READ
    assert code == 2, (code, lines)
    assert mine == lines[-1:], lines
    assert len(mine[0]) < 1100, mine
    assert "Traceback" not in said.getvalue()
    return mine[0]


class _Made(BaseException):
    pass


@pytest.fixture(scope="session")
def parser():
    """The parser of `litcam fit` and its like; to make it takes longer than to use it."""

    class OnlyTheParser(training.LitcamCLI):
        def parse_arguments(self, parser, args):
            raise _Made(parser)

    defaults = {"default_config_files": [str(BASE)]}
    with pytest.raises(_Made) as made:
        OnlyTheParser(
            training.LightningModule,
            training.LightningDataModule,
            subclass_mode_model=True,
            subclass_mode_data=True,
            parser_class=Parser,
            parser_kwargs=dict.fromkeys(training.SUBCOMMANDS, defaults),
            args=[],
        )
    return made.value.args[0]


def read_by(parser, words):
    """Reads words as `litcam fit` does, and stops before anything is made of them."""
    return lambda: parser.parse_args(find_configs(words))


@pytest.fixture
def made(monkeypatch):
    """Runs the program to its last step: model, data, callbacks and trainer are made, not run."""
    # Else a name that the network knows could be looked up, for half a minute.
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(training.LitcamCLI, "_run_subcommand", lambda self, subcommand: None)
    return lambda words: lambda: training.run(words)
