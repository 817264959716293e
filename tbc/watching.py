"""What may be told of calls under a hold while they run: who watches, and what is told.

`BudgetManager.call_watcher` is told of every governed call of a manager. For a call under a hold of one's own
there is `watched`. Nothing is watched by default, and nobody who watches changes anything.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from tbc.errors import BudgetExceededError, UnknownPriceError
    from tbc.holds import Hold
    from tbc.usage import Usage

__all__ = ["CallWatcher", "HeldCall", "Watch", "WatchedCall", "watched"]


class WatchedCall(Protocol):
    """What a call under a hold says of itself.

    Attributes
    ----------
    agent_name : str
        Who pays.
    operation : str or None
        The function that is called, if it is known.
    model : str or None
        The model that is named.
    cap : int
        The most tokens of output that were set aside for.
    hands_over_cap : bool
        Whether the function is told that.
    hold : Hold
        Its hold; there is none if the call was refused.
    usage : Usage or None
        What the reply stated, once it has been read.
    """

    agent_name: str
    operation: str | None
    model: str | None
    cap: int
    hands_over_cap: bool
    hold: Hold
    usage: Usage | None


class Watch(Protocol):
    """What is told of one call while it runs. Nothing of it may raise."""

    def running(self) -> AbstractContextManager[object]:
        """Return what to enter around the code of the call, and for every step of its stream anew."""

    def streams(self) -> None:
        """Note that the first chunk has come."""

    def ended(self, error: BaseException | None) -> None:
        """Note that the call has ended; said more than once, the first counts."""

    def left(self) -> None:
        """Note that its stream was left half-way. Never waits: finalizers come here too."""


class CallWatcher(Protocol):
    """Who watches the calls of a manager: its `call_watcher`. Nothing of it may raise."""

    def began(self, call: WatchedCall) -> Watch | None:
        """Note that a call has its hold and is made now."""

    def refused(self, call: WatchedCall, error: BudgetExceededError | UnknownPriceError) -> None:
        """Note that a call was refused: it is not made."""


class HeldCall:
    """A call under a hold of one's own; set its `usage` once it is known."""

    __slots__ = ("agent_name", "cap", "hands_over_cap", "hold", "model", "operation", "usage")

    def __init__(self, hold: Hold) -> None:
        self.agent_name = hold.agent_name
        self.operation: str | None = None
        self.model = hold.model
        self.cap = hold.tokens
        self.hands_over_cap = False
        self.hold = hold
        self.usage: Usage | None = None


@contextmanager
def watched(watcher: CallWatcher | None, hold: Hold) -> Generator[HeldCall]:
    """Let a call under a hold be watched, from here to the end of the block, in which the hold is ended."""
    call = HeldCall(hold)
    watch = None if watcher is None else watcher.began(call)
    if watch is None:
        yield call
        return
    failed: BaseException | None = None
    try:
        with watch.running():
            yield call
    except BaseException as error:
        failed = error
        raise
    finally:
        watch.ended(failed)
