"""Mistakes of the user in one line; mistakes of the program with their traceback."""

import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from difflib import get_close_matches

EXIT_CODE = 2


def unknown(kind: str, name: str, known: Iterable[str]) -> str:
    """The message for a name that does not exist, with close matches."""
    names = list(known)
    near = get_close_matches(name, names, n=3, cutoff=0.5) or names
    return f"{kind} {name!r} does not exist; did you mean {', '.join(near)}?"


@contextmanager
def in_one_line() -> Iterator[None]:
    """Ends the program with one line for what litcam itself refuses."""
    try:
        yield
    except Exception as error:
        line = _find_message(error)
        if line is None:
            raise
        print(f"litcam: {line}", file=sys.stderr)
        sys.exit(EXIT_CODE)


def _find_message(error: Exception) -> str | None:
    """The line to show, or None where the traceback is wanted."""
    message = str(error).strip()
    if "in DataLoader worker process" in message:
        # The worker's traceback is part of the message; its last line is the error.
        return message.splitlines()[-1].partition(": ")[2]
    if type(error).__name__ == "MisconfigurationException":
        return message
    traceback = error.__traceback__
    while traceback is not None and traceback.tb_next is not None:
        traceback = traceback.tb_next
    raised_in = traceback.tb_frame.f_globals.get("__name__", "") if traceback else ""
    deliberate = raised_in.startswith("litcam.") and isinstance(error, ValueError | OSError)
    return message if deliberate else None
