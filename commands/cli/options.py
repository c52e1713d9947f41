"""Options of the commands that are not LightningCLI's, with close matches for misspelt ones."""

import argparse
import re
from typing import Any, NoReturn

from litcam.commands.cli import errors


class OptionParser(argparse.ArgumentParser):
    """Reads a command's options; each has its help page elsewhere.

    Args:
        command: such as `report`.

    Raises:
        ValueError: at `parse_args`, for what is not understood.
    """

    def __init__(self, command: str) -> None:
        super().__init__(add_help=False, allow_abbrev=False)
        self._command = command

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """As argparse does, but for empty words, which a shell makes of variables not set."""
        if "" in args:
            raise ValueError(f"an empty word; see `litcam {self._command} --help`")
        return super().parse_known_args(args, namespace)

    def error(self, message: str) -> NoReturn:
        """Called by argparse; the message names close matches, or the help page."""
        if match := re.match(r"unrecognized arguments: (--\S+)", message):
            name = match[1].partition("=")[0]
            raise ValueError(errors.unknown("option", name, self._option_string_actions))
        message = message.removeprefix("argument ")
        raise ValueError(f"{message}; see `litcam {self._command} --help`")
