"""Mistakes of the user in one line; mistakes of the program with their traceback."""

import sys
import sysconfig
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path

EXIT_CODE = 2
# A word of the user may be as long as the system lets it; a line is to be read.
MAX_LENGTH = 1000
# More names than anybody reads.
MAX_NAMES = 30
# Raised in litcam's own code these are its own mistakes: it refuses a value by other errors.
BUGS = (TypeError, AttributeError, NameError, LookupError, AssertionError, ZeroDivisionError)
# LightningCLI reads the options, makes objects of them, and in its last step runs the command.
READS, RUNS = ("lightning.pytorch.cli", "__init__"), ("lightning.pytorch.cli", "_run_subcommand")


class OptionError(ValueError):
    """Which option cannot be read or used, why, and what to do."""


def unknown(kind: str, name: str, known: Iterable[str]) -> str:
    """The message for a name that does not exist, with close matches."""
    names = list(known)
    near = [each for each in names if _abbreviates(name, each) or _abbreviates(each, name)]
    near = near[:3] or get_close_matches(name[:MAX_LENGTH], names, n=3, cutoff=0.5)
    if not near and len(names) > MAX_NAMES:
        return f"{kind} {name!r} does not exist, nor one of a similar name; see --help"
    return f"{kind} {name!r} does not exist; did you mean {', '.join(near or names)}?"


def _abbreviates(short: str, name: str) -> bool:
    """Whether a name is the first letters of another's words.

    >>> _abbreviates("lr", "learning_rate"), _abbreviates("lr", "linear_probe")
    (True, False)
    """
    words = name.lstrip("-").split("_")
    return len(words) > 1 and short.lstrip("-").lower() == "".join(word[:1] for word in words)


def end(line: str) -> None:
    """Ends the program with one line."""
    print(f"litcam: {in_short(line)}", file=sys.stderr)
    sys.exit(EXIT_CODE)


def in_short(text: str) -> str:
    """Text on one line: no escape of a file's name reaches the terminal, no length fills it."""
    line = " ".join(text.split())
    if len(line) > MAX_LENGTH:
        line = f"{line[: MAX_LENGTH // 2]} … {line[-MAX_LENGTH // 2 :]}"
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in line)


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
    chain = []
    # LightningCLI wraps what a constructor refuses in an error of its own; the cause counts.
    while error is not None:
        chain.append(error)
        message = " ".join(str(error).split("\n")).strip()
        if "in DataLoader worker process" in message:
            # The worker's traceback is part of the message; its last line is the error.
            return str(error).strip().splitlines()[-1].partition(": ")[2]
        if type(error).__name__ == "MisconfigurationException":
            return _with_remedy(message)
        if isinstance(error, ValueError | OSError) and _raised_in(error).startswith("litcam."):
            return message
        if isinstance(error, OSError) and error.filename and error.strerror:
            return f"{error.filename}: {error.strerror}"
        error = error.__cause__
    return _refused_options(chain)


def _with_remedy(message: str) -> str:
    if "backend found" in message or "gpus" in message:
        return f"{message} Without a GPU: --trainer trainer/cpu.yaml"
    return message


def _raised_in(error: BaseException) -> str:
    frames = _frames(error)
    return frames[-1][0] if frames else ""


def _refused_options(chain: list[BaseException]) -> str | None:
    """What litcam or a library raised before the command ran; not so a class of the user's."""
    frames = _frames(chain[0])
    places = [(module, function) for module, function, _ in frames]
    if READS not in places or RUNS in places:
        return None
    inside = frames[places.index(READS) :] + [at for each in chain[1:] for at in _frames(each)]
    if not all(name.startswith("litcam.") or _is_library(file) for name, _, file in inside):
        return None
    first = chain[-1]
    if isinstance(first, BUGS) and _raised_in(first).startswith("litcam."):
        return None
    # It stumbles over errors without a message.
    while first.__context__ is not None and _raised_in(first).startswith("jsonargparse"):
        first = first.__context__
    told = f"{type(first).__name__} in {_raised_in(first)}"
    return f"these options do not work: {str(first) or 'no reason given'} ({told})"


def _is_library(file: str) -> bool:
    parts, standard = Path(file).parts, sysconfig.get_paths()["stdlib"]
    installed = "site-packages" in parts or "dist-packages" in parts
    return installed or file.startswith((standard, "<"))


def _frames(error: BaseException) -> list[tuple[str, str, str]]:
    """Module, function and file of each frame, the innermost last."""
    found, traceback = [], error.__traceback__
    while traceback is not None:
        code = traceback.tb_frame.f_code
        module = traceback.tb_frame.f_globals.get("__name__", "")
        found.append((module, code.co_name, code.co_filename))
        traceback = traceback.tb_next
    return found
