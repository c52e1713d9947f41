"""What a callback says on the console: each thing once, on rank zero, in one line."""

import functools
import logging
from collections.abc import Callable, Iterable
from textwrap import shorten
from typing import Any, Concatenate, ParamSpec, TypeVar

from litcam.callbacks.places.redaction import redact_text

log = logging.getLogger("lightning.pytorch.callbacks.litcam")

# What a callback does after an error, until the next validation.
RETRY = "leaves out the rest of this validation and tries the next"

Owner = TypeVar("Owner", bound=Any)
P = ParamSpec("P")


class Notes:
    """Says what a callback chose, and every new kind of problem.

    Through `logging`, not `warnings`: a run under `python -W error` is not to die of a picture.

    Args:
        name: of the callback, before every line.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._said: set[str] = set()

    def tell(self, choice: str) -> None:
        """Says what was chosen, unless it was said before."""
        if choice and choice not in self._said:
            self._said.add(choice)
            log.info(f"{self._name} {choice}")

    def warn(self, problems: Iterable[str]) -> None:
        """Says what went wrong. Up to its first colon a line tells its kind, which is said once."""
        for problem in problems:
            kind = problem.split(":")[0]
            if kind not in self._said:
                self._said.add(kind)
                log.warning(f"{self._name} {problem}")


def never_kills(
    hook: Callable[Concatenate[Owner, P], None],
) -> Callable[Concatenate[Owner, P], None]:
    """A picture is never worth a training run: an error goes to the callback's `_give_up`."""

    @functools.wraps(hook)
    def guarded(self: Owner, *args: P.args, **kwargs: P.kwargs) -> None:
        try:
            hook(self, *args, **kwargs)
        except Exception as error:
            self._give_up(error)

    return guarded


def describe_failure(error: Exception, then: str = "stops") -> str:
    """The line for an error that ends a callback's work, or only its work in this validation."""
    why = shorten(f"{type(error).__name__}: {redact_text(str(error))}", 300)
    return f"{then}, training goes on ({why})"
