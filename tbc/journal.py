"""The journal: one immutable line for every change of the books, the oldest folded into opening balances."""

from __future__ import annotations

from collections import deque
from itertools import islice
from typing import Any

import attrs

from tbc.decision import Kind, Settlement

__all__ = ["Entry", "Journal"]


@attrs.frozen
class Entry:
    """One immutable line of the journal.

    Attributes
    ----------
    seq : int
        Position in the journal, from 1, without gaps (0: an opening balance).
    at : float
        Seconds of the ledger's clock; Unix time with the default clock.
    kind : Kind
        What happened.
    agent_name : str
        Whose account.
    peer : str or None
        The account that `allocated` was taken from.
    allocated, consumed, held : int
        Changes of `agent_name`'s numbers, in tokens.
    hold_id : int or None
        The hold it belongs to.
    key : str or None
        The caller's key.
    note : str or None
        The caller's note or operation.
    estimated : bool
        Whether `consumed` is an estimate.
    """

    seq: int
    at: float
    kind: Kind
    agent_name: str
    peer: str | None
    allocated: int
    consumed: int
    held: int
    hold_id: int | None = None
    key: str | None = None
    note: str | None = None
    estimated: bool = False

    @property
    def tokens(self) -> int:
        """Tokens spent."""
        return self.consumed

    @property
    def timestamp(self) -> float:
        """Seconds of the ledger's clock."""
        return self.at


class Journal:
    """The last lines, oldest first, and what came before them as one opening balance per account.

    A line is a tuple of an `Entry`'s fields after `seq` or, to spare the busiest path a second object, what
    was handed out to the caller: a hold that was granted, or the settlement of one that went by the book.

    Parameters
    ----------
    keep : int
        How many of the last lines stay at least.
    """

    def __init__(self, keep: int) -> None:
        self._keep = keep
        self._opening: dict[str, list[int]] = {}
        self._opened_at = 0.0
        self.lines: deque[Any] = deque()
        self.fold_at = keep + 256  # folding a few hundred at once is faster than one by one

    def since(self, since: int, last: int) -> list[tuple[Any, ...]]:
        """Return the fields of the entries after number `since`; the newest line is number `last`.

        Where older lines were folded, they begin with one opening entry (``seq`` 0) per account.
        """
        first = last - len(self.lines) + 1
        skipped = max(0, since - first + 1)
        opened = self._opening.items() if since < first - 1 else ()
        entries: list[tuple[Any, ...]] = [
            (0, self._opened_at, Kind.OPENING, name, None, *sums) for name, sums in opened
        ]
        lines = enumerate(islice(self.lines, skipped, None), first + skipped)
        entries.extend((seq, *_fields(line)) for seq, line in lines)
        return entries

    def fold(self) -> None:
        """Add the oldest lines, beyond the last `keep`, to the opening balances."""
        lines, opening = self.lines, self._opening
        forget = lines.popleft
        for _ in range(len(lines) - self._keep):
            line = lines[0]
            if type(line) is Settlement:
                name, allocated, consumed, held, peer = line[1], 0, line[3], -line[4], None
            elif type(line) is tuple:
                _, _, name, peer, allocated, consumed, held, *_ = line
            else:
                name, allocated, consumed, held, peer = line.books.name, 0, 0, line.granted, None
            sums = opening.get(name)
            if sums is None:
                sums = opening[name] = [0, 0, 0]
            giver = None if peer is None else opening.setdefault(peer, [0, 0, 0])
            self._opened_at = line[0] if type(line) is tuple else line.at
            # No call from here on but the last: see `Ledger.book`.
            sums[0] += allocated
            sums[1] += consumed
            sums[2] += held
            if giver is not None:
                giver[0] -= allocated
            forget()


def _fields(line: Any) -> tuple[Any, ...]:
    """Return the fields of an `Entry` after `seq`."""
    if type(line) is Settlement:
        return (
            line.at,
            Kind.SETTLE,
            line.agent_name,
            None,
            0,
            line.tokens,
            -line.held,
            line.hold_id,
            None,
            line.operation,
            line.estimated,
        )
    if type(line) is tuple:
        return line
    return (
        line.at,
        Kind.HOLD,
        line.books.name,
        None,
        0,
        0,
        line.granted,
        line.hold_id,
        line.key,
        line.operation,
    )
