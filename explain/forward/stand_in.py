"""Standing around a module's forward."""

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from torch import nn


class StandIn:
    """A module's forward while somebody is around it; several may be, and leave in any order.

    Not hooks: only around a forward can what goes wrong in it be mended, and the hooks of others
    see what goes in and comes out as without it.

    Args:
        module: whose `forward` it is.
    """

    # Above zero nobody is around: a forward is being tried.
    aside = 0

    def __init__(self, module: nn.Module) -> None:
        self._module, self._own = module, vars(module).get("forward")
        self._plain = module.forward
        self._around: list[Callable[..., Any]] = []

    @classmethod
    def enter(cls, module: nn.Module, around: Callable[..., Any]) -> Callable[[], None]:
        """Puts `around(forward, args, kwargs)` in its place; returns what takes it away again."""
        found = vars(module).get("forward")
        stand_in = found if isinstance(found, cls) else cls(module)
        stand_in._around.append(around)
        module.forward = stand_in
        return partial(stand_in._leave, around)

    @classmethod
    @contextmanager
    def stepping_aside(cls) -> Iterator[None]:
        """Nobody is around any forward meanwhile."""
        cls.aside += 1
        try:
            yield
        finally:
            cls.aside -= 1

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The forward, through all who are around it."""
        call = self._plain
        for around in self._around:
            call = partial(_call, around, call)
        return call(*args, **kwargs)

    @property
    def __signature__(self) -> inspect.Signature:
        """That of the forward: some ask for its arguments' names."""
        return inspect.signature(self._plain)

    def _leave(self, around: Callable[..., Any]) -> None:
        self._around.remove(around)
        # Where somebody put their own around this one, it only hands on from now on.
        if self._around or vars(self._module).get("forward") is not self:
            return
        if self._own is None:
            del self._module.forward
        else:
            self._module.forward = self._own


def _call(around: Callable[..., Any], call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    # Asked again: one of several may try the forward that the others are around as well.
    return call(*args, **kwargs) if StandIn.aside else around(call, args, kwargs)
