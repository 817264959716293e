"""Books to arrays and back: who covers a shortage, and who gives to whom in a rebalance.

The only room where records meet arrays. One shortage is answered from the donor index (`tbc.donors`), many
at once by the clearing (`tbc.clear`); both follow the same rules, and a property test compares them.

A shortage is met in this order: the treasury (the parent's spare), the siblings, then the parent itself asks
in its own market, with its own priority, and hands the amount down.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import attrs

from tbc.axes import Axis
from tbc.confidence import ConfidenceGate
from tbc.contract import MAX_AMOUNT, BudgetContract, check_amount
from tbc.decision import Kind, Transfer
from tbc.donors import DonorIndex
from tbc.errors import AgentClosedError, UnknownAgentError
from tbc.ledger import Books, Ledger

if TYPE_CHECKING:
    from tbc.clearing import Clearing

__all__ = ["Move", "Reach", "Reallocator", "Rebalance", "apply", "find_cover", "rebalance", "survey"]


class Move:
    """A transfer between books that has not happened yet."""

    __slots__ = ("amount", "donor", "kind", "recipient")

    def __init__(self, kind: Kind, donor: Books, recipient: Books, amount: int) -> None:
        self.kind = kind
        self.donor = donor
        self.recipient = recipient
        self.amount = amount

    def named(self) -> Transfer:
        """Return the record of it."""
        return Transfer(self.donor.name, self.recipient.name, self.amount, self.kind, self.recipient.axis)


class Reach:
    """What could be lent to an account: now, and if every open hold were voided."""

    __slots__ = ("ancestors", "siblings", "treasury", "when_idle")

    def __init__(self) -> None:
        self.treasury = 0
        self.siblings = 0
        self.ancestors = 0
        self.when_idle = 0

    @property
    def total(self) -> int:
        """What could be lent now."""
        return self.treasury + self.siblings + self.ancestors


@attrs.frozen
class Rebalance:
    """What a `rebalance` moved on one axis, the one of tokens but for `others`.

    Attributes
    ----------
    transfers : tuple of Transfer
        In the order of moving. Permanent.
    unmet : dict of str to int
        For every agent that asked: what it still lacks (its debt included).
    clearings : dict of str to Clearing
        For each market, by the name of its parent: the clearing that decided.
    members : dict of str to tuple of str
        For each market: the names behind the clearing's indices. Index 0 is the treasury.
    others : dict of str to Rebalance
        The same for the other axes that were asked, by axis.
    """

    transfers: tuple[Transfer, ...]
    unmet: dict[str, int]
    clearings: dict[str, Clearing]
    members: dict[str, tuple[str, ...]]
    others: dict[Axis, Rebalance] = attrs.field(factory=dict)


def market_of(asker: Books) -> DonorIndex:
    """Return the index of the asker's market, caught up, without the asker itself."""
    parent = asker.parent
    assert parent is not None, "the root has no market"
    index: DonorIndex = parent.index or DonorIndex(parent)
    index.refresh(asker)
    return index


def survey(books: Books) -> Reach:
    """Return what could be lent to `books`, in O(depth * log L) for L distinct priorities."""
    reach = Reach()
    asker = books
    while (parent := asker.parent) is not None:
        index = market_of(asker)
        siblings = index.lendable(asker.priority)
        if asker is books:
            reach.treasury, reach.siblings = parent.spare, siblings
        else:
            reach.ancestors += parent.spare + siblings
        reach.when_idle += parent.spare_when_idle + index.lendable_when_idle(asker.priority)
        if not parent.capped:
            break
        asker = parent
    return reach


def find_cover(books: Books, short: int, kind: Kind, *, owed: int = 0) -> list[Move]:
    """Return the moves that bring `short` to `books`, in order; `survey` said that there are enough.

    Parameters
    ----------
    books : Books
        Who is short.
    short : int
        How much; not more than ``survey(books).total``.
    kind : Kind
        The kind of transfers between siblings.
    owed : int, default 0
        The first of it pays a debt: between siblings they are `Kind.COVER` instead, and stay.
    """
    moves: list[Move] = []
    handed_down: list[Move] = []
    asker = books

    def add(kind_now: Kind, donor: Books, amount: int) -> None:
        nonlocal owed, short
        short -= amount
        paid = min(owed, amount)
        owed -= paid
        if paid:
            moves.append(Move(Kind.COVER if kind_now is Kind.LOAN else kind_now, donor, asker, paid))
        if amount > paid:
            moves.append(Move(kind_now, donor, asker, amount - paid))

    while short:
        parent = asker.parent
        assert parent is not None, "find_cover() was asked for more than survey() found"
        if drawn := min(short, parent.spare):
            add(Kind.DRAW, parent, drawn)
        if short:
            index = market_of(asker)
            for donor, amount in index.drain(min(short, index.lendable(asker.priority))):
                add(kind, donor, amount)
        if short:
            handed_down.append(Move(Kind.HAND_DOWN, parent, asker, short))
            asker = parent
    return moves + handed_down[::-1]


def apply(
    ledger: Ledger, now: float, moves: list[Move], *, hold_id: int | None = None, key: str | None = None
) -> tuple[Transfer, ...]:
    """Book the moves, in order."""
    for move in moves:
        ledger.book(
            now, move.kind, move.recipient, peer=move.donor, allocated=move.amount, hold_id=hold_id, key=key
        )
    return tuple(move.named() for move in moves)


def rebalance(ledger: Ledger, now: float, asked: Mapping[Books, int], *, key: str | None = None) -> Rebalance:
    """Clear all markets of one axis at once and book the transfers for good.

    What a market cannot serve, its parent asks for in its own market (after its own shortfall, if it has
    one) and hands down. A parent that asks gives nothing to its children. Uncapped agents lack nothing: they
    neither ask nor give. Cost: the clearings, O(n) in all for n agents in the markets concerned.
    """
    round_ = _Round(
        {books: amount - min(0, books.remaining) for books, amount in asked.items() if books.capped}
    )
    moves = round_.clear_all()
    return Rebalance(
        transfers=apply(ledger, now, moves, key=key),
        unmet={books.name: round_.unmet.get(books, 0) for books in asked},
        clearings=round_.clearings,
        members=round_.members,
    )


class _Round:
    """One rebalance: markets from the deepest up, then amounts handed down from the top."""

    def __init__(self, wanted: dict[Books, int]) -> None:
        self.wanted = wanted  # own shortfalls
        self.unmet = dict(wanted)
        self.clearings: dict[str, Clearing] = {}
        self.members: dict[str, tuple[str, ...]] = {}
        self._lacking: dict[Books, int] = {}  # by parent: what its market cannot serve from itself
        self._given: dict[Books, int] = {}  # by parent: what its own spare gives to its market
        self._handed: dict[Books, int] = {}  # by parent: what it got from above for its market
        self._moves: list[Move] = []

    def clear_all(self) -> list[Move]:
        markets: dict[Books, None] = {}
        for books in self.wanted:
            ancestor = books.parent
            while ancestor is not None:
                markets[ancestor] = None
                ancestor = ancestor.parent if ancestor.capped else None
        upwards = sorted(markets, key=lambda parent: (-parent.depth, parent.order))
        for parent in upwards:
            clearing, _ = self._clear(parent)
            self._given[parent] = int(clearing.given[0])
            self._lacking[parent] = int(clearing.unmet.sum()) if parent.capped else 0
        for parent in sorted(markets, key=lambda parent: (parent.depth, parent.order)):
            self._settle_market(parent)
        return self._moves

    def _settle_market(self, parent: Books) -> None:
        """Clear with what came from above, note the moves, and split what parents below received."""
        clearing, members = self._clear(parent)
        self.clearings[parent.name] = clearing
        self.members[parent.name] = tuple(books.name for books in members)
        from_above = self._handed.get(parent, 0)
        for donor, recipient, tokens in zip(
            clearing.donors.tolist(), clearing.recipients.tolist(), clearing.amounts.tolist(), strict=True
        ):
            giver, taker = members[donor], members[recipient]
            if giver is parent:  # what was handed down goes first, then the parent's own spare
                down = min(from_above, tokens)
                from_above -= down
                self._move(Kind.HAND_DOWN, giver, taker, down)
                self._move(Kind.DRAW, giver, taker, tokens - down)
            else:
                self._move(Kind.REBALANCE, giver, taker, tokens)
        for books, received in zip(members[1:], clearing.received.tolist()[1:], strict=True):
            wanted = self.wanted.get(books, 0)
            self.unmet[books] = max(0, wanted - received)
            self._handed[books] = max(0, received - wanted)

    def _clear(self, parent: Books) -> tuple[Clearing, list[Books]]:
        import numpy as np

        from tbc.clearing import clear

        children = sorted((b for b in parent.children or () if b.capped), key=lambda books: books.order)
        own_spare = 0 if parent in self.wanted else parent.spare
        treasury = self._handed.get(parent, 0) + own_spare

        def column(first: int, values: list[int]) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
            return np.array([first, *values], dtype=np.int64)

        clearing = clear(
            column(0, [books.priority for books in children]),
            column(treasury, [max(0, books.remaining - self._given.get(books, 0)) for books in children]),
            column(0, [books.min_reserve for books in children]),
            column(0, [self.wanted.get(books, 0) + self._lacking.get(books, 0) for books in children]),
            confident=np.array([False, *(books.gate_closed for books in children)]),
        )
        return clearing, [parent, *children]

    def _move(self, kind: Kind, donor: Books, recipient: Books, tokens: int) -> None:
        if tokens:
            self._moves.append(Move(kind, donor, recipient, tokens))


class Reallocator:
    """Moves spare allocation downhill to one agent; the loans of holds follow the same rules.

    Parameters
    ----------
    contracts : mapping of str to BudgetContract
        Priorities, reserves and gates by agent.
    ledger : Ledger
        Their books. With a stand-alone ledger all agents of `contracts` form one market.

    Attributes
    ----------
    contracts, ledger
        As given.

    Examples
    --------
    >>> ledger = Ledger()
    >>> contracts = {}
    >>> for name, priority in [("idle", 1), ("busy", 5)]:
    ...     contracts[name] = BudgetContract(name, priority=priority, max_tokens=100)
    ...     ledger.register(name, 100)
    >>> reallocator = Reallocator(contracts, ledger)
    >>> reallocator.find_donors("busy")
    ['idle']
    >>> reallocator.reallocate("busy", 500)  # the reserve of 10 stays
    90
    """

    def __init__(self, contracts: Mapping[str, BudgetContract], ledger: Ledger) -> None:
        self.contracts = contracts
        self.ledger = ledger

    def find_donors(self, exclude: str) -> list[str]:
        """Return who has something to lend, in drain order, whatever the priority of `exclude`.

        Parameters
        ----------
        exclude : str
            The agent that would borrow: its market is looked at, without itself.

        Returns
        -------
        list of str
            The treasury (`tbc.ROOT` or the parent's name) first, if it has any.
        """
        with self.ledger.lock:
            self._look()
            asker = self.ledger.find(exclude)
            parent = asker.parent or asker
            donors = [books for books in parent.children or () if books is not asker and books.spare]
            donors.sort(key=lambda b: (b.priority, not b.gate_closed, -b.remaining, b.order))
            return [books.name for books in ([parent] if parent.spare else []) + donors]

    def reallocate(self, needy_agent: str, shortfall: int) -> int:
        """Move up to `shortfall` tokens to `needy_agent`, for good, and return how many there were.

        Raises
        ------
        UnknownAgentError
            If nobody of that name is registered (also a `KeyError`).
        """
        with self.ledger.lock:
            now = self._look()
            books = self.ledger.find(needy_agent)
            if not self.ledger.managed and needy_agent not in self.contracts:
                raise UnknownAgentError(needy_agent)
            if books.closed:
                raise AgentClosedError(needy_agent)
            negative = type(shortfall) is int and shortfall < 0
            wanted = 0 if negative else check_amount("shortfall", shortfall)
            if not wanted or books.parent is None or not books.capped:
                return 0
            found = min(wanted, survey(books).total)
            apply(self.ledger, now, find_cover(books, found, Kind.REBALANCE))
            return found

    def _look(self) -> float:
        now = self.ledger.look()
        if not self.ledger.managed:
            self._learn_terms()
        return now

    def _learn_terms(self) -> None:
        """Copy the contracts' terms to stand-alone books; who has no contract lends nothing."""
        for name, books in self.ledger.accounts.items():
            contract = self.contracts.get(name)
            priority = 1 if contract is None else contract.priority
            reserve = MAX_AMOUNT if contract is None else contract.min_reserve
            closed = contract is not None and not ConfidenceGate.allow_further_retrieval(
                contract, contract.last_confidence
            )
            if (priority, reserve, closed) == (books.priority, books.min_reserve, books.gate_closed):
                continue
            books.touch()
            if books.parent is not None and books.parent.index is not None:
                books.parent.index.forget(books)
            books.priority, books.min_reserve, books.gate_closed = priority, reserve, closed
