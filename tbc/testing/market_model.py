"""The market in plain Python: who gives to whom. Written from the definitions, to be read, not to be fast.

Accounts are dicts (see `tbc.testing.BooksModel`); a move is a tuple ``(donor, recipient, tokens, kind)``.
Nothing here shares code with the library.
"""

from __future__ import annotations

from typing import Any, NamedTuple

__all__ = ["LARGEST", "Move", "Row", "Served", "clear_market", "drain_order", "fair_split"]

#: The largest amount of any one value.
LARGEST = 2**53 - 1


class Move(NamedTuple):
    """Allocation that moves: donor, recipient, tokens and kind, all by name."""

    donor: str
    recipient: str
    tokens: int
    kind: str


class Row(NamedTuple):
    """One agent in a clearing. The treasury is the first row, with priority 0."""

    name: str
    priority: int
    remaining: int
    reserve: int
    confident: bool
    demand: int

    @property
    def supply(self) -> int:
        """What it can give: nothing, if it asks itself."""
        return 0 if self.demand else max(0, self.remaining - self.reserve)


class Served(NamedTuple):
    """The answer of a clearing: moves as (donor, recipient, tokens), and sums by name."""

    moves: list[tuple[str, str, int]]
    given: dict[str, int]
    received: dict[str, int]


def drain_order(accounts: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return donors, first to give first.

    Lowest priority; inside it those with a closed gate, then most remaining, then registered first.
    """
    return sorted(accounts, key=lambda a: (a["priority"], not a["gate_closed"], -a["remaining"], a["order"]))


def fair_split(asked: list[int], total: int) -> list[int]:
    """Split `total` (less than the sum of `asked`) max-min fairly; left-over tokens to the lower index."""
    got = [0] * len(asked)
    hungry = [i for i, wants in enumerate(asked) if wants]
    while total and hungry:
        share = total // len(hungry)
        for i in hungry if share else hungry[:total]:
            part = min(share or 1, asked[i] - got[i])
            got[i] += part
            total -= part
        hungry = [i for i in hungry if got[i] < asked[i]]
    return got


def clear_market(rows: list[Row]) -> Served:
    """Serve all demands of one market at once.

    The highest level gets as much as can be, then the next, and so on; whoever gives to a level may give to
    every level above, hence a level can be served up to what the donors of every level from it upwards have
    left. Donors are drained in order; drained and served tokens are paired from the lowest priority up.
    """
    levels = sorted({row.priority for row in rows})
    supply = {level: sum(row.supply for row in rows if row.priority <= level) for level in levels}
    served: dict[int, int] = {}
    received = {row.name: 0 for row in rows}
    for level in reversed(levels):
        asking = [row for row in rows if row.priority == level and row.demand]
        room = min(
            supply[upper] - sum(served[other] for other in served if other <= upper)
            for upper in levels
            if upper >= level
        )
        served[level] = min(sum(row.demand for row in asking), room)
        if served[level] == sum(row.demand for row in asking):
            shares = [row.demand for row in asking]
        else:
            shares = fair_split([row.demand for row in asking], served[level])
        received.update({row.name: share for row, share in zip(asking, shares, strict=True)})
    given = _drain(rows, sum(served.values()))
    return Served(_pair(rows, given, received), given, received)


def _drain(rows: list[Row], total: int) -> dict[str, int]:
    """Return what each gives, the names in the order in which they are listed as donors."""
    order = {row.name: index for index, row in enumerate(rows)}
    given: dict[str, int] = {}
    for level in sorted({row.priority for row in rows}):
        donors = [row for row in rows if row.priority == level and row.supply]
        donors.sort(key=lambda row: (not row.confident, -row.remaining, order[row.name]))
        parts: dict[str, int] = {}
        for row in donors:
            parts[row.name] = min(row.supply, total)
            total -= parts[row.name]
        if all(parts[row.name] == row.supply for row in donors):  # drained fully: listed by index
            parts = dict(sorted(parts.items(), key=lambda item: order[item[0]]))
        given.update(parts)
    return given


def _pair(rows: list[Row], given: dict[str, int], received: dict[str, int]) -> list[tuple[str, str, int]]:
    takers = [row.name for row in sorted(rows, key=lambda row: row.priority) if received[row.name]]
    to_give = [(name, tokens) for name, tokens in given.items() if tokens]
    moves: list[tuple[str, str, int]] = []
    for taker in takers:
        wanted = received[taker]
        while wanted:
            name, left = to_give[0]
            part = min(wanted, left)
            moves.append((name, taker, part))
            wanted -= part
            to_give[:1] = [(name, left - part)] if left > part else []
    return moves
