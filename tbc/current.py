"""The hold that code runs in: found through `contextvars`, and carried into threads."""

from __future__ import annotations

import contextlib
import functools
import inspect
from collections.abc import Callable, Generator, Sequence
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Final, ParamSpec, TypeVar

from tbc.errors import NoCurrentHoldError

if TYPE_CHECKING:
    from tbc.holds import Hold

__all__ = ["CARRIED", "CURRENT_HOLD", "AsCurrent", "current_hold", "with_current_hold"]

P = ParamSpec("P")
R = TypeVar("R")

CURRENT_HOLD: ContextVar[Hold | None] = ContextVar("tbc_current_hold", default=None)
#: What goes along with the current hold into threads; all are `None` by default.
CARRIED: Final[list[ContextVar[Any]]] = [CURRENT_HOLD]


class AsCurrent:
    """Makes a hold the current one for a block.

    Garbage collection may leave the block in another context than it was entered in; that is no error.
    """

    __slots__ = ("_hold", "_token")

    def __init__(self, hold: Hold) -> None:
        self._hold = hold

    def __enter__(self) -> None:
        self._token = CURRENT_HOLD.set(self._hold)

    def __exit__(self, *error: object) -> None:
        with contextlib.suppress(ValueError):
            CURRENT_HOLD.reset(self._token)


def current_hold() -> Hold:
    """Return the hold of the governed call that this code runs in.

    It is found through `contextvars`, hence also in tasks and in threads started with a copied context
    (`asyncio.to_thread`). For a plain thread pool wrap the function in `tbc.with_current_hold`.

    Raises
    ------
    NoCurrentHoldError
        Outside of any governed call (also a `LookupError`).
    """
    hold = CURRENT_HOLD.get()
    if hold is None:
        raise NoCurrentHoldError
    return hold


def with_current_hold(function: Callable[P, R]) -> Callable[P, R]:
    """Return `function`, carrying the current hold into whatever thread calls it.

    Threads of a pool start with an empty context, so that `current_hold` finds nothing there:

        ``executor.submit(tbc.with_current_hold(work), item)``

    Telemetry takes calls in it for part of the governed call here, as it does without threads.

    Raises
    ------
    NoCurrentHoldError
        If there is no current hold here.
    """
    current_hold()
    values = [(each, each.get()) for each in CARRIED]
    if inspect.iscoroutinefunction(function):

        @functools.wraps(function)
        async def awaiting(*args: P.args, **kwargs: P.kwargs) -> Any:
            with _within(values):
                return await function(*args, **kwargs)

        return awaiting  # type: ignore[return-value]  # an async function is one that returns an awaitable

    @functools.wraps(function)
    def carried(*args: P.args, **kwargs: P.kwargs) -> R:
        with _within(values):
            return function(*args, **kwargs)

    return carried


@contextlib.contextmanager
def _within(values: Sequence[tuple[ContextVar[Any], Any]]) -> Generator[None]:
    """Let variables have values for a block, which garbage collection may leave in another context."""
    tokens = [(variable, variable.set(value)) for variable, value in values]
    try:
        yield
    finally:
        for variable, token in reversed(tokens):
            with contextlib.suppress(ValueError):
                variable.reset(token)
