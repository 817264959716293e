"""What may be spent while the store cannot be reached: nothing, or a bounded amount stated beforehand.

An `Allowance` is a budget of its own, in memory, for one process. What is spent of it is booked in the store
as soon as that can be reached again, in full and once: under a key, as usage that nobody held. In audit mode
the allowance is not bounded, since nothing is.
"""

from __future__ import annotations

import contextlib
import threading
import uuid
from collections.abc import Callable
from typing import Any

import attrs

from tbc.axes import AXES, CALLS, TOKENS, USD, Axis
from tbc.contract import ROOT, check_amount
from tbc.errors import InvalidAmountError, OverrunError
from tbc.money import to_nano, to_usd

__all__ = ["Allowance", "AwayBooks"]


def _dollars(value: Any) -> int | None:
    return None if value is None else to_nano("usd", value, up=False)


@attrs.frozen
class Allowance:
    """What one process may spend in all while the store cannot be reached.

    Parameters
    ----------
    tokens : int, optional
        Tokens; ``None``: no bound on this axis.
    usd : Decimal, str, int or float, optional
        Dollars.
    calls : int, optional
        Calls.

    Raises
    ------
    InvalidAmountError
        If nothing is bounded: an unlimited allowance is no allowance.
    """

    tokens: int | None = None
    usd: int | None = attrs.field(default=None, converter=_dollars)
    calls: int | None = None

    def __attrs_post_init__(self) -> None:
        for name in ("tokens", "calls"):
            value = getattr(self, name)
            if value is not None:
                check_amount(name, value)
        if self.tokens is None and self.usd is None and self.calls is None:
            raise InvalidAmountError("Allowance", "()", "at least one of tokens=, usd=, calls=")

    @property
    def caps(self) -> dict[str, Any]:
        """The same as arguments of a manager."""
        usd = None if self.usd is None else to_usd(self.usd)
        return {"max_tokens": self.tokens, "max_usd": usd, "max_calls": self.calls}


class AwayBooks:
    """The books of an allowance, and what of them is not in the store yet.

    Parameters
    ----------
    make_manager : callable
        Returns a new manager in memory with the caps of the allowance.
    """

    def __init__(self, make_manager: Callable[[], Any]) -> None:
        self._make_manager = make_manager
        self._manager: Any = None
        self._lock = threading.Lock()
        self._brought: dict[tuple[str, Axis], int] = {}
        self._sending: tuple[str, str, dict[Axis, int]] | None = None

    def do(self, name: str, agent_name: str, *values: Any, **named: Any) -> Any:
        """Do an operation of the manager on the allowance."""
        with self._lock:
            if self._manager is None:
                self._manager = self._make_manager()
            self._manager.register_agent(agent_name, max_tokens=None)
        return getattr(self._manager, name)(agent_name, *values, **named)

    def bring_home(self, record_usage: Callable[..., Any]) -> None:
        """Book in the store what was spent meanwhile; what fails is tried again under the same key.

        Parameters
        ----------
        record_usage : callable
            As `BudgetManager.record_usage`.
        """
        if self._manager is None:
            return
        with self._lock:
            for agent_name in list(self._manager.contracts):
                if self._sending is None:
                    new = self._new_of(agent_name)
                    if not any(new.values()):
                        continue
                    self._sending = f"away {uuid.uuid4()}", agent_name, new
                self._send(record_usage)

    def _send(self, record_usage: Callable[..., Any]) -> None:
        assert self._sending is not None, "there is something to send"
        key, agent_name, new = self._sending
        usd = to_usd(new[USD]) if USD in new else None
        calls = new[CALLS]
        note = "while the store was away"
        with contextlib.suppress(OverrunError):  # booked all the same
            record_usage(agent_name, new[TOKENS], note, usd=usd, calls=calls, key=key)
        for axis, amount in new.items():
            self._brought[agent_name, axis] = self._brought.get((agent_name, axis), 0) + amount
        self._sending = None
        root = self._manager.ledger.root
        capped = {axis: n for axis, n in new.items() if self._manager.ledger.capped_on(axis, root)}
        if any(capped.values()):  # what is booked there is to be had here again
            dollars = to_usd(capped[USD]) if USD in capped else None
            self._manager.top_up(ROOT, capped.get(TOKENS, 0), usd=dollars, calls=capped.get(CALLS, 0))

    def _new_of(self, agent_name: str) -> dict[Axis, int]:
        """Return what an agent has spent that the store does not know, by axis."""
        ledger = self._manager.ledger
        axes = [axis for axis in AXES if axis != USD or USD in ledger.sides]
        return {
            axis: ledger.consumed(agent_name, axis) - self._brought.get((agent_name, axis), 0)
            for axis in axes
        }
