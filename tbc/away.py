"""What may be spent while the store cannot be reached: nothing, or a bounded amount stated beforehand.

An `Allowance` is a budget of its own, in memory, for one process. What is spent of it is booked in the store
as soon as that can be reached again, in full and once: under a key, as usage that nobody held. What the
budget there covers may be spent of it again the next time. In audit mode the allowance is not bounded, since
nothing is.
"""

from __future__ import annotations

import threading
import uuid
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import attrs

from tbc.axes import AXES, USD
from tbc.contract import ROOT, check_amount
from tbc.errors import InvalidAmountError, StoreError, TBCError
from tbc.leases import Amounts, used_of
from tbc.money import to_nano, to_usd

if TYPE_CHECKING:
    from tbc.decision import Settlement

__all__ = ["Allowance", "AwayBooks"]


def _dollars(value: Any) -> int | None:
    return None if value is None else to_nano("usd", value, up=False)


@attrs.frozen
class Allowance:
    """What one process may spend while the store cannot be reached.

    It is the most that it can overspend the budget in the store by in this way, in all: what is booked there
    may be spent again only if the budget has covered it.

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
        self._making = threading.Lock()
        self._bringing = threading.Lock()  # is held while the store is waited for: nobody spends under it
        self._brought: dict[str, Amounts] = {}
        self._sending: dict[str, tuple[str, Amounts]] = {}  # by agent: the key, and what is sent under it

    def do(self, name: str, agent_name: str, *values: Any, **named: Any) -> Any:
        """Do an operation of the manager on the allowance."""
        with self._making:
            if self._manager is None:
                self._manager = self._make_manager()
            self._manager.register_agent(agent_name, max_tokens=None)
        return getattr(self._manager, name)(agent_name, *values, **named)

    def bring_home(self, book: Callable[[str, Amounts, str], Settlement]) -> None:
        """Book in the store what was spent meanwhile; what fails is tried again under the same key.

        Parameters
        ----------
        book : callable
            Books an agent's amounts under a key.

        Raises
        ------
        StoreError
            The store is still, or again, away.
        """
        if self._manager is None:
            return
        with self._bringing:
            for agent_name in list(self._manager.contracts):
                if agent_name not in self._sending:
                    new = self._new_of(agent_name)
                    if not any(new):
                        continue
                    self._sending[agent_name] = f"away {uuid.uuid4()}", new
                key, new = self._sending[agent_name]
                try:
                    covered = book(agent_name, new, key).unpaid is None
                except StoreError:
                    raise
                except TBCError:  # the others are not to suffer for it; `left` says it
                    continue
                self._brought[agent_name] = self._brought.get(agent_name, Amounts()).plus(new)
                del self._sending[agent_name]
                if covered:
                    self._renew(new)

    def left(self) -> dict[str, Amounts]:
        """Return what is not in the store, by agent: what was spent, and what open holds may still spend."""
        if self._manager is None:
            return {}
        found = {name: self._new_of(name) for name in list(self._manager.contracts)}
        for hold in list(self._manager.ledger.open_holds.values()):
            held = Amounts(hold.tokens, hold.usd, 1)
            found[hold.agent_name] = found[hold.agent_name].plus(held)
        return {name: amounts for name, amounts in found.items() if any(amounts)}

    def _renew(self, new: Amounts) -> None:
        """Let be spent here again what the budget in the store has covered."""
        ledger = self._manager.ledger
        tokens, usd, calls = (new.on(axis) if ledger.capped_on(axis, ledger.root) else 0 for axis in AXES)
        if tokens or usd or calls:
            self._manager.top_up(ROOT, tokens, usd=to_usd(usd) if usd else None, calls=calls)

    def _new_of(self, agent_name: str) -> Amounts:
        """Return what an agent has spent that the store does not know."""
        ledger = self._manager.ledger
        used = used_of(ledger, agent_name)
        if USD not in ledger.sides:  # no call named a price
            used = used._replace(unpriced=used.calls)
        return used.minus(self._brought.get(agent_name, Amounts()))
