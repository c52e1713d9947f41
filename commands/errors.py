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


def end(line: str) -> None:
    """Ends the program with one line."""
    print(f"litcam: {line}", file=sys.stderr)
    sys.exit(EXIT_CODE)


@contextmanager
def in_one_line() -> Iterator[None]:
    """Ends the program with one line for what litcam itself refuses."""
    try:
        yield
    except BrokenPipeError:  # `litcam fit --help | head`
        sys.stdout = None  # else Python would flush it at its exit
    except Exception as error:
        line = _find_message(error)
        if line is None:
            raise
        end(line)


def trouble_elsewhere(error: BaseException | None) -> str | None:
    """What `litcam.callbacks.EndTogether` noted of another process that ended this one."""
    while error is not None:
        if notes := getattr(error, "__notes__", []):
            return str(notes[-1])
        error = error.__cause__ or error.__context__
    return None


def _find_message(error: BaseException | None) -> str | None:
    """The line to show, or None where the traceback is wanted."""
    if line := trouble_elsewhere(error):
        return line
    # LightningCLI wraps what a constructor refuses in an error of its own; the cause counts.
    while error is not None:
        message = " ".join(str(error).split("\n")).strip()
        if "in DataLoader worker process" in message:
            # The worker's traceback is part of the message; its last line is the error.
            return str(error).strip().splitlines()[-1].partition(": ")[2]
        if type(error).__name__ == "MisconfigurationException":
            return _with_remedy(message)
        if isinstance(error, ValueError | OSError) and _raised_in(error).startswith("litcam."):
            return message
        error = error.__cause__
    return None


def _with_remedy(message: str) -> str:
    if "backend found" in message or "gpus" in message:
        return f"{message} Without a GPU: --trainer trainer/cpu.yaml"
    return message


def _raised_in(error: BaseException) -> str:
    traceback = error.__traceback__
    while traceback is not None and traceback.tb_next is not None:
        traceback = traceback.tb_next
    return traceback.tb_frame.f_globals.get("__name__", "") if traceback else ""
