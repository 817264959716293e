"""A rebalance of the whole tree, in plain Python: what `tbc.testing.BooksModel` says it should do."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tbc.testing.market_model import LARGEST, Move, Row, Served, clear_market
from tbc.testing.tree_model import Misuse, TreeModel

__all__ = ["rebalance"]


def rebalance(tree: TreeModel, shortfalls: Mapping[str, int]) -> dict[str, Any]:
    """Clear every market concerned, move for good, and return the transfers and what stays unmet.

    From the deepest market up: what a market cannot serve, its parent asks for in its own market. From the
    top down: what the parent received beyond its own shortfall goes down to its market, cleared again.
    """
    asked = {name: tree.find_open(name) for name in shortfalls}
    wanted = {
        name: shortfalls[name] + max(0, -tree.remaining(name))
        for name, account in asked.items()
        if account["capped"]
    }
    parents = {str(tree.accounts[asker]["parent"]) for name in wanted for asker in tree.askers(name)}
    by_depth = sorted(parents, key=lambda name: (tree.depth(name), tree.accounts[name]["order"]))
    given: dict[str, int] = {}  # by parent: what its own spare gives its children
    lacking: dict[str, int] = {}  # by parent: what it must ask for in its own market
    for parent in reversed(by_depth):
        rows = _market(tree, parent, wanted, given, lacking, 0)
        served = clear_market(rows)
        given[parent] = served.given.get(parent, 0)
        if tree.accounts[parent]["capped"]:
            lacking[parent] = sum(row.demand for row in rows) - sum(served.received.values())
    moves: list[Move] = []
    unmet = dict.fromkeys(shortfalls, 0)
    handed: dict[str, int] = {}  # by parent: what it got from above for its children
    for parent in by_depth:
        rows = _market(tree, parent, wanted, given, lacking, handed.get(parent, 0))
        served = clear_market(rows)
        moves += _named(parent, served, handed.get(parent, 0))
        for row in rows[1:]:
            own = min(wanted.get(row.name, 0), served.received[row.name])
            handed[row.name] = served.received[row.name] - own
            if row.name in wanted:
                unmet[row.name] = wanted[row.name] - own
    tree.apply(moves)
    return {"transfers": moves, "unmet": unmet}


def _market(
    tree: TreeModel,
    parent: str,
    wanted: dict[str, int],
    given: dict[str, int],
    lacking: dict[str, int],
    from_above: int,
) -> list[Row]:
    """Return the treasury and the capped children. A parent that asks gives nothing of its own."""
    own = 0 if parent in wanted else tree.spare(parent)
    rows = [Row(parent, 0, own + from_above, 0, False, 0)]
    for name in tree.children(parent):
        account = tree.accounts[name]
        if account["capped"]:
            left = max(0, tree.remaining(name) - given.get(name, 0))
            demand = wanted.get(name, 0) + lacking.get(name, 0)
            gate_closed = tree.gate_closed(name)
            rows.append(Row(name, account["priority"], left, account["reserve"], gate_closed, demand))
    if any(max(row.remaining, row.demand) > LARGEST for row in rows):
        raise Misuse("InvalidAmountError")
    return rows


def _named(parent: str, served: Served, from_above: int) -> list[Move]:
    """Say what each move is: what the parent got from above goes down first, then its own spare."""
    moves = []
    for donor, recipient, tokens in served.moves:
        if donor != parent:
            moves.append(Move(donor, recipient, tokens, "rebalance"))
            continue
        down = min(from_above, tokens)
        from_above -= down
        moves += [Move(donor, recipient, down, "hand_down")] * (down > 0)
        moves += [Move(donor, recipient, tokens - down, "draw")] * (tokens > down)
    return moves
