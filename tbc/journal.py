"""The journal: one immutable line for every change of the books, the oldest folded into opening balances."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from typing import Any

import attrs

from tbc.axes import AXES, CALLS, TOKENS, Axis
from tbc.decision import Kind, Settlement

__all__ = ["Entry", "Journal", "ended_calls"]

_ENDED_CALLS = frozenset({Kind.SETTLE, Kind.LATE_SETTLE, Kind.USAGE})


def ended_calls(axis: str, kind: str, consumed: int, lines: int = 1) -> int:
    """Return how many ended calls so many equal lines stand for; `consumed` is their sum.

    A call that ends writes one line on the token axis. Reports on leases are sums of many calls, and say how
    many on the axis of calls.
    """
    if kind == Kind.REPORT:
        return consumed if axis == CALLS else 0
    return lines if axis == TOKENS and kind in _ENDED_CALLS else 0


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
        Changes of `agent_name`'s numbers, in the unit of the axis.
    hold_id : int or None
        The hold it belongs to.
    key : str or None
        The caller's key.
    note : str or None
        The caller's note or operation.
    estimated : bool
        Whether `consumed` is an estimate.
    axis : {"tokens", "usd", "calls"}
        Of what: tokens, nano-dollars or calls. A change on several axes is several entries.
    model : str or None
        The model that was called.
    unpriced : int
        Calls in it whose price is not known.
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
    axis: Axis = TOKENS
    model: str | None = None
    unpriced: int = 0

    @property
    def tokens(self) -> int:
        """Tokens spent; 0 on another axis."""
        return self.consumed if self.axis == TOKENS else 0

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
        # By axis and account: allocated, consumed, held, unpriced and, on the token axis, ended calls.
        self._opening: dict[Axis, dict[str, list[int]]] = {axis: {} for axis in AXES}
        self._opened_at = 0.0
        self.lines: deque[Any] = deque()
        self.fold_at = keep + 256  # folding a few hundred at once is faster than one by one

    def since(self, since: int, last: int, most: int | None = None) -> list[tuple[Any, ...]]:
        """Return the fields of the entries after number `since`; the newest line is number `last`.

        Where older lines were folded, they begin with one opening entry (``seq`` 0) per account; of those
        that follow, no more than `most` are returned, the oldest.
        """
        first = last - len(self.lines) + 1
        wanted = min(len(self.lines), last - since)
        entries: list[tuple[Any, ...]] = []
        if since < first - 1:
            rest = (None, None, None, False)
            entries = [
                (0, self._opened_at, Kind.OPENING, name, None, *sums[:3], *rest, axis, None, sums[3])
                for axis, opening in self._opening.items()
                for name, sums in opening.items()
            ]
        newest = list(islice(reversed(self.lines), max(0, wanted)))  # from the end: mostly few are asked for
        newest.reverse()
        if most is not None:
            del newest[most:]
        entries += [(seq, *_fields(line)) for seq, line in enumerate(newest, last - wanted + 1)]
        return entries

    def holds(self, since: int, last: int) -> list[Any]:
        """Return the holds that lines after number `since` have granted; the newest line is number `last`."""
        newest = islice(reversed(self.lines), max(0, last - since))
        return [line for line in newest if type(line) not in (tuple, Settlement)]

    def hold(self, number: int, last: int) -> Any:
        """Return the hold that line `number` granted, if that line is kept; the newest is number `last`."""
        back = last - number
        line = self.lines[-1 - back] if 0 <= back < len(self.lines) else ()
        return None if type(line) in (tuple, Settlement) else line

    def begin_with(self, balances: Mapping[tuple[Axis, str], Sequence[int]], lines: Iterable[Any]) -> None:
        """Begin anew: opening balances (allocated, consumed, held, unpriced, calls), and the last lines."""
        self.lines.clear()
        for opening in self._opening.values():
            opening.clear()
        for (axis, name), sums in balances.items():
            if any(sums):
                self._opening[axis][name] = list(sums)
        self.lines.extend(lines)

    def calls(self) -> dict[str, int]:
        """Return the ended calls of every account; see `ended_calls`."""
        counts = {name: sums[4] for name, sums in self._opening[TOKENS].items() if sums[4]}
        for line in self.lines:
            if type(line) is Settlement:
                name, calls = line.agent_name, 1
            elif type(line) is tuple:
                name, calls = line[2], ended_calls(line[_AXIS], line[1], line[5])
            else:
                continue
            if calls:
                counts[name] = counts.get(name, 0) + calls
        return counts

    def fold(self) -> None:
        """Add the oldest lines, beyond the last `keep`, to the opening balances."""
        lines, openings = self.lines, self._opening
        tokens = openings[TOKENS]
        forget = lines.popleft
        line: Any = None
        last, sums = None, [0]
        for _ in range(len(lines) - self._keep):
            line = lines[0]
            kind = type(line)
            if kind is tuple:
                self._fold_entry(line)
                continue
            name = line[1] if kind is Settlement else line.books.name
            if name is not last:  # most lines are of the same account as the one before
                sums = tokens.setdefault(name, [0, 0, 0, 0, 0])
                last = name
            # No call from here on but the last: see `Ledger.book`.
            if kind is Settlement:
                sums[1] += line[3]
                sums[2] -= line[4]
                sums[4] += 1
            else:
                sums[2] += line.granted
            forget()
        if line is not None:
            self._opened_at = line[0] if type(line) is tuple else line.at

    def _fold_entry(self, line: tuple[Any, ...]) -> None:
        """Fold the oldest line, which is a tuple."""
        _, kind, name, peer, allocated, consumed, held, _, _, _, _, axis, _, unpriced = line
        opening = self._opening[axis]
        sums = opening.setdefault(name, [0, 0, 0, 0, 0])
        giver = None if peer is None else opening.setdefault(peer, [0, 0, 0, 0, 0])
        calls = ended_calls(axis, kind, consumed)
        counts = sums if axis == TOKENS else self._opening[TOKENS].setdefault(name, [0, 0, 0, 0, 0])
        forget = self.lines.popleft
        sums[0] += allocated
        sums[1] += consumed
        sums[2] += held
        sums[3] += unpriced
        counts[4] += calls
        if giver is not None:
            giver[0] -= allocated
        forget()


#: Where a line that is a tuple has its axis.
_AXIS = 11


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
            TOKENS,
            line.model,
            0,
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
        False,
        TOKENS,
        line.model,
        0,
    )
