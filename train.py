"""The `litcam` program: LightningCLI over the rooms, and the commands beside it."""

import io
import sys
from collections.abc import Sequence

from litcam.commands import COMMANDS
from litcam.commands.cli import errors

USAGE = """\
usage: litcam COMMAND [OPTIONS]        (python train.py is the same program)

Train vision models while seeing, live, where they look.

{commands}

`litcam COMMAND --help` tells more. Try `litcam demo` first: it needs no data and no account."""


def main(args: Sequence[str] | None = None) -> None:
    """Runs the command line.

    Args:
        args: the words after `litcam`; by default those of this process.
    """
    for stream in (sys.stdout, sys.stderr):
        # Names of files are bytes: one that is no text must not keep its line from being said.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    name, *rest = list(sys.argv[1:] if args is None else args) or ["--help"]
    if name in ("-h", "--help"):
        lines = (f"  {name:10}{command.summary}" for name, command in COMMANDS.items())
        print(USAGE.format(commands="\n".join(lines)))
        return
    with errors.in_one_line():
        command = COMMANDS.get(name)
        if command is None:
            raise ValueError(errors.unknown("command", name, COMMANDS))
        command.run(rest)


if __name__ == "__main__":
    main()
