"""Checks of the promises from outside: at one moment (`check_books`) and over one step (`check_step`).

Both look at a manager through its public surface only and raise `AssertionError` naming the numbers. With

    ``remaining = allocated - consumed - held``,

the sums over the journal are the one truth: each entry's deltas belong to ``entry.agent_name``, and its
``allocated`` is taken from ``entry.peer``.

Examples
--------
>>> import tbc
>>> manager = tbc.BudgetManager(max_tokens=100)
>>> contract = manager.register_agent("writer", max_tokens=0)
>>> before = Snapshot.of(manager)
>>> hold = manager.hold("writer", 60)
>>> check_step(before, Snapshot.of(manager), spender="writer")
>>> check_books(manager)
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator

import attrs

from tbc.axes import TOKENS, Axis
from tbc.contract import ROOT
from tbc.decision import Kind
from tbc.holds import Hold
from tbc.journal import Entry
from tbc.manager import BudgetManager
from tbc.tree import Account

__all__ = ["Snapshot", "check_books", "check_step"]

_SPENDING = (Kind.USAGE, Kind.SETTLE, Kind.LATE_SETTLE, Kind.REPORT)
_BETWEEN_SIBLINGS = (Kind.LOAN, Kind.COVER, Kind.REBALANCE)
_FROM_PARENT = (Kind.DRAW, Kind.HAND_DOWN)
#: What may change the sum of all allocations.
_GRANTS = (Kind.OPENING, Kind.REGISTER, Kind.REPLACE, Kind.TOP_UP, Kind.CLOSE)


@attrs.frozen
class Snapshot:
    """What a manager shows on one axis at one moment.

    Attributes
    ----------
    accounts : dict of str to Account
        Every account by name, the root first.
    entries : tuple of Entry
        The journal of the axis as far as it is kept.
    axis : {"tokens", "usd", "calls"}
        What is counted.
    """

    accounts: dict[str, Account]
    entries: tuple[Entry, ...]
    axis: Axis = TOKENS

    @classmethod
    def of(cls, manager: BudgetManager, axis: Axis = TOKENS) -> Snapshot:
        """Take it. Holds whose time has come expire first, as with any look at the books."""
        accounts = manager.accounts(axis)
        entries = (entry for entry in manager.ledger.entries() if entry.axis == axis)
        return cls({account.agent_name: account for account in accounts}, tuple(entries), axis)

    @property
    def seq(self) -> int:
        """Number of the last entry."""
        return self.entries[-1].seq if self.entries else 0


def require(truth: bool, message: str) -> None:
    """Raise `AssertionError` unless `truth`; unlike ``assert`` also under ``python -O``."""
    if not truth:
        raise AssertionError(message)


# -- one moment ----------------------------------------------------------------------------------------


def check_books(manager: BudgetManager, holds: Iterable[Hold] | None = None) -> None:
    """Check every promise that shows at one moment, on every axis, while nobody else moves the books.

    Checked are: ``remaining = allocated - consumed - held``; the definitions of spare and debt; that the
    journal's sums, `accounts`, `report`, `remaining` and the ledger show one number; that held, lent and
    borrowed are those of the open holds; that the allocations sum to what was granted; that closed accounts
    are even or in debt; and, in ``enforce`` mode, that a debt is no larger than what was spent unannounced.

    Parameters
    ----------
    manager : BudgetManager
        The pool.
    holds : iterable of Hold, optional
        All holds that may be open; default: what the manager's ledger lists.

    Raises
    ------
    AssertionError
        Something does not hold; the message names the account and the numbers.
    """
    listed = list(manager.ledger.open_holds.values() if holds is None else holds)
    for axis in (TOKENS, *manager.ledger.sides):
        now = Snapshot.of(manager, axis)
        for account in now.accounts.values():
            _check_account(account)
        _check_one_number(manager, now)
        _check_holds(now, [hold for hold in listed if hold.state == "open"])
        _check_conservation(now)
        if manager.mode == "enforce":
            _check_debts(now)


def _check_account(account: Account) -> None:
    name, left = account.agent_name, account.remaining
    require(account.consumed >= 0, f"{name}: consumed {account.consumed} < 0")
    require(account.held >= 0, f"{name}: held {account.held} < 0")
    require((left is None) == (account.allocated is None), f"{name}: half uncapped: {account}")
    if left is None or account.allocated is None:
        require(account.spare == account.debt == 0, f"{name}: uncapped, yet {account}")
        return
    expected = account.allocated - account.consumed - account.held
    require(
        left == expected,
        f"{name}: remaining {left}, but allocated {account.allocated} - consumed {account.consumed} - "
        f"held {account.held} = {expected}",
    )
    spare = 0 if account.closed else max(0, left - account.min_reserve)
    require(account.spare == spare, f"{name}: spare {account.spare}, expected {spare} of {account}")
    require(account.debt == max(0, -left), f"{name}: debt {account.debt} with remaining {left}")
    if account.closed:
        require(left <= 0, f"{name}: closed, and keeps {left}")
        require(account.held == 0, f"{name}: closed, and holds {account.held}")


def _sums(entries: Iterable[Entry]) -> tuple[Counter[str], Counter[str], Counter[str]]:
    """Return allocated, consumed and held by account, summed from the journal."""
    allocated: Counter[str] = Counter()
    consumed: Counter[str] = Counter()
    held: Counter[str] = Counter()
    for entry in entries:
        allocated[entry.agent_name] += entry.allocated
        consumed[entry.agent_name] += entry.consumed
        held[entry.agent_name] += entry.held
        if entry.peer is not None:
            allocated[entry.peer] -= entry.allocated
    return allocated, consumed, held


def _check_one_number(manager: BudgetManager, now: Snapshot) -> None:
    allocated, consumed, held = _sums(now.entries)
    axis, ledger, report = now.axis, manager.ledger, manager.report(now.axis)
    agents = [name for name in now.accounts if name != ROOT]
    require(list(report) == agents, f"report names {list(report)}, accounts {agents}")
    for name, account in now.accounts.items():
        shown: list[tuple[str, int | None, int | None]] = [
            ("consumed in the journal", consumed[name], account.consumed),
            ("held in the journal", held[name], account.held),
            ("remaining()", manager.remaining(name, axis), account.remaining),
            ("ledger.allocated()", ledger.allocated(name, axis), account.allocated),
            ("ledger.consumed()", ledger.consumed(name, axis), account.consumed),
        ]
        if account.allocated is not None:
            shown.append(("allocated in the journal", allocated[name], account.allocated))
        if name in report:
            line = report[name]
            shown += [(f"{key} in report()", line[key], getattr(account, key)) for key in line]
        for title, number, in_account in shown:
            require(number == in_account, f"{name}: {title} is {number}, in its account {in_account}")


def _check_holds(now: Snapshot, open_holds: list[Hold]) -> None:
    held: Counter[str] = Counter()
    lent: Counter[str] = Counter()
    borrowed: Counter[str] = Counter()
    for hold in open_holds:
        part = hold.part(now.axis)
        set_aside = 0 if part is None else part.amount
        held[hold.agent_name] += set_aside
        loans = [loan for loan in hold.loans if loan.axis == now.axis]
        for loan in loans:
            require(loan.recipient == hold.agent_name and loan.amount > 0, f"{hold!r} has the loan {loan}")
            lent[loan.donor] += loan.amount
            borrowed[hold.agent_name] += loan.amount
        total = sum(loan.amount for loan in loans)
        require(total <= set_aside, f"{hold!r} has loans of {total}")
    for name, account in now.accounts.items():
        for title, number, expected in [
            ("held", account.held, held[name]),
            ("lent", account.lent, lent[name]),
            ("borrowed", account.borrowed, borrowed[name]),
        ]:
            require(number == expected, f"{name}: {title} {number}, but its open holds say {expected}")


def _check_conservation(now: Snapshot) -> None:
    for entry in now.entries:
        require(
            entry.peer is not None or not entry.allocated or entry.kind in _GRANTS,
            f"allocation out of nothing: {entry}",
        )
    in_journal, _, _ = _sums(now.entries)
    granted = sum(entry.allocated for entry in now.entries if entry.peer is None)
    uncapped = sum(in_journal[name] for name, account in now.accounts.items() if account.allocated is None)
    total = sum(account.allocated or 0 for account in now.accounts.values())
    require(
        total == granted - uncapped,
        f"allocated in all {total}, but granted {granted} (of it to uncapped accounts {uncapped})",
    )


def _check_debts(now: Snapshot) -> None:
    """Check that nobody fell below 0 but by spending what no hold had announced."""
    if any(entry.kind is Kind.OPENING for entry in now.entries):
        return  # the lines that would explain a debt have been folded
    unannounced: Counter[str] = Counter()
    for entry in now.entries:
        if entry.kind in _SPENDING:
            unannounced[entry.agent_name] += max(0, entry.consumed + entry.held)
    for name, account in now.accounts.items():
        require(
            account.debt <= unannounced[name],
            f"{name}: debt {account.debt}, but only {unannounced[name]} were spent above what was held",
        )


# -- one step ------------------------------------------------------------------------------------------


def check_step(
    before: Snapshot, after: Snapshot, *, spender: str | None = None, refused: bool = False
) -> None:
    """Check the promises that show between two moments with one operation (or none) in between.

    Checked are: transfers between siblings run downhill, draws and hand-downs from a parent to its child; no
    account but the spender's was taken below ``min(remaining, min_reserve)``; consumed never falls; what is
    allocated in all changed only by an entry at the top of a budget; a refusal changed nothing.

    Parameters
    ----------
    before, after : Snapshot
        The two moments.
    spender : str, optional
        The agent whose own operation it was: it may spend its reserve, be cut or be closed.
    refused : bool, default False
        Whether the operation was refused or raised: then nothing may have changed.

    Raises
    ------
    AssertionError
        Something does not hold.
    """
    entries = list(_entries_between(before, after))
    if refused:
        require(not entries, f"refused, and yet written: {entries}")
        for name, account in after.accounts.items():
            require(account == before.accounts.get(name), f"refused, and yet changed: {account}")
    for entry in entries:
        _check_direction(entry, before, after)
    for name, old in before.accounts.items():
        new = after.accounts[name]
        require(new.consumed >= old.consumed, f"{name}: consumed fell from {old.consumed} to {new.consumed}")
        if name == spender or old.remaining is None or new.remaining is None:
            continue
        floor = min(old.remaining, old.min_reserve)
        require(
            new.remaining >= floor,
            f"{name}: taken from remaining {old.remaining} to {new.remaining}, reserve {old.min_reserve}",
        )
    _check_grants(before, after, entries)


def _entries_between(before: Snapshot, after: Snapshot) -> Iterator[Entry]:
    return (entry for entry in after.entries if entry.seq > before.seq)


def _check_direction(entry: Entry, before: Snapshot, after: Snapshot) -> None:
    if entry.peer is None or not entry.allocated:
        return
    donor = before.accounts[entry.peer]
    recipient = before.accounts.get(entry.agent_name) or after.accounts[entry.agent_name]
    if entry.kind in _BETWEEN_SIBLINGS:
        require(donor.parent == recipient.parent, f"no siblings: {entry}")
        require(
            donor.priority <= recipient.priority,
            f"uphill, from priority {donor.priority} to priority {recipient.priority}: {entry}",
        )
    elif entry.kind in _FROM_PARENT:
        require(recipient.parent == donor.agent_name, f"not from the parent: {entry}")


def _check_grants(before: Snapshot, after: Snapshot, entries: list[Entry]) -> None:
    new = [entry for entry in entries if entry.peer is None and entry.allocated]
    for entry in new:
        account = after.accounts[entry.agent_name]
        at_the_top = account.parent is None or after.accounts[account.parent].allocated is None
        # The unused part of a loan leaves the pool by a close where its lender has closed at the top.
        outlived = entry.kind is Kind.CLOSE and entry.hold_id is not None and entry.allocated < 0
        require(
            entry.kind in _GRANTS and (at_the_top or outlived),
            f"{entry.agent_name} is not the top of a budget, and yet allocated in all changed: {entry}",
        )
    capped = {
        name: account.allocated - (before.accounts[name].allocated or 0 if name in before.accounts else 0)
        for name, account in after.accounts.items()
        if account.allocated is not None
        and (name not in before.accounts or before.accounts[name].allocated is not None)
    }
    granted = sum(entry.allocated for entry in new if entry.agent_name in capped)
    change = sum(capped.values())
    require(change == granted, f"allocated in all changed by {change}, the entries grant {granted}")
