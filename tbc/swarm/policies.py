"""What a policy may see and must answer, and the two baselines.

A policy divides one pool among the agents of one replay. It is told who takes part (agent, team, role, kind,
priority), and then, call by call, what a real operator could know: at a request the exact input, the output
cap and an estimate of the output; after a granted call what it used. It never sees calls to come, totals or
outcomes; the driver (`tbc.swarm.driver`) has no door for them. The baselines are small and their own; the
market (`tbc.swarm.market`) is the real `tbc.BudgetManager`.

Examples
--------
>>> pool = SharedPool()
>>> pool.open(1_000, [Arrival("t/lead", "t", "lead", "calls", 1), Arrival("t/aide", "t", "aide", "calls", 1)])
>>> pool.request(Request("t/lead", at_s=0.0, input_tokens=700, output_cap=500, estimate=100))
True
>>> pool.settle(Receipt("t/lead", at_s=1.0, input_tokens=700, output_tokens=60))
>>> pool.request(Request("t/aide", at_s=2.0, input_tokens=200, output_cap=500, estimate=100))
False
>>> pool.books()
Books(pool=240, grants=0, held=0, spent=760)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from attrs import frozen

__all__ = ["Arrival", "Books", "EqualSplit", "Policy", "Receipt", "Request", "SharedPool"]


@frozen
class Arrival:
    """An agent that takes part, as it is known before its first call."""

    #: Its name, unique in the pool.
    agent: str
    #: The team it belongs to.
    team: str
    #: What it does in the team.
    role: str
    #: The kind of its team.
    kind: str
    #: How important it is, laid on by the simulation; 1 and up.
    priority: int


@frozen
class Request:
    """A call that an agent wants to make."""

    #: Who asks.
    agent: str
    #: Simulated seconds.
    at_s: float
    #: Tokens to be sent: exact, they can be counted.
    input_tokens: int
    #: The most that can come back.
    output_cap: int
    #: What is expected to come back; never the actual, unless the replay is told to cheat and says so.
    estimate: int

    @property
    def tokens(self) -> int:
        """What has to be set aside."""
        return self.input_tokens + self.estimate


@frozen
class Receipt:
    """What a granted call used."""

    #: Who called.
    agent: str
    #: Simulated seconds.
    at_s: float
    #: Tokens sent.
    input_tokens: int
    #: Tokens received.
    output_tokens: int

    @property
    def tokens(self) -> int:
        """What has to be booked."""
        return self.input_tokens + self.output_tokens


@frozen
class Books:
    """Where a pool's tokens are. Their sum is the budget, after every event."""

    #: In nobody's hands.
    pool: int
    #: In agents' hands, neither spent nor set aside; below 0 where overruns exceed it.
    grants: int
    #: Set aside for calls in flight.
    held: int
    #: Used by calls.
    spent: int

    @property
    def total(self) -> int:
        """All of it: the budget."""
        return self.pool + self.grants + self.held + self.spent


class Policy(Protocol):
    """Divides one budget among the agents of one replay. A policy is used for one replay only."""

    #: What tables and pictures call it.
    name: str

    def open(self, budget: int, arrivals: Sequence[Arrival]) -> None:
        """Start with `budget` tokens for these agents."""

    def request(self, request: Request) -> bool:
        """Grant (and set aside) or refuse a call; an agent has at most one call in flight."""

    def settle(self, receipt: Receipt) -> None:
        """Book what the agent's granted call used."""

    def leave(self, team: str) -> None:
        """Learn that a team has ended its work."""

    def books(self) -> Books:
        """Return where the tokens are."""

    def idle_for(self, agent: str) -> int:
        """Return idle tokens that could serve the agent: its own, nobody's, and less important agents'."""


class SharedPool:
    """One pot, first come, first served: a call is granted if the pot still covers what it sets aside."""

    name = "shared pool"

    def __init__(self) -> None:
        self._pot = 0
        self._spent = 0
        self._held: dict[str, int] = {}

    def open(self, budget: int, arrivals: Sequence[Arrival]) -> None:
        """Put everything into the pot."""
        self._pot = budget

    def request(self, request: Request) -> bool:
        """Grant what fits into the pot."""
        if request.tokens > self._pot:
            return False
        self._pot -= request.tokens
        self._held[request.agent] = request.tokens
        return True

    def settle(self, receipt: Receipt) -> None:
        """Book the actual; the rest goes back into the pot, an overrun comes out of it."""
        self._pot += self._held.pop(receipt.agent) - receipt.tokens
        self._spent += receipt.tokens

    def leave(self, team: str) -> None:
        """Nothing to give back: nobody has anything."""

    def books(self) -> Books:
        """Return where the tokens are."""
        return Books(self._pot, 0, sum(self._held.values()), self._spent)

    def idle_for(self, agent: str) -> int:
        """Return the pot."""
        return max(0, self._pot)


class EqualSplit:
    """Everybody gets the same share at the start and keeps it; what the division leaves over idles."""

    name = "equal split"

    def __init__(self) -> None:
        self._left: dict[str, int] = {}
        self._held: dict[str, int] = {}
        self._pool = 0
        self._spent = 0
        self._priority: dict[str, int] = {}
        self._idle: dict[int, int] = {}

    def open(self, budget: int, arrivals: Sequence[Arrival]) -> None:
        """Hand out equal shares, rounded down."""
        share = budget // len(arrivals)
        self._left = {arrival.agent: share for arrival in arrivals}
        self._priority = {arrival.agent: arrival.priority for arrival in arrivals}
        self._pool = budget - share * len(arrivals)
        for arrival in arrivals:
            self._idle[arrival.priority] = self._idle.get(arrival.priority, 0) + share

    def request(self, request: Request) -> bool:
        """Grant what fits into the agent's share."""
        if request.tokens > self._left[request.agent]:
            return False
        self._change(request.agent, -request.tokens)
        self._held[request.agent] = request.tokens
        return True

    def settle(self, receipt: Receipt) -> None:
        """Book the actual; the rest goes back into the share, an overrun comes out of it."""
        self._change(receipt.agent, self._held.pop(receipt.agent) - receipt.tokens)
        self._spent += receipt.tokens

    def leave(self, team: str) -> None:
        """Keep the shares where they are: that is what strands them."""

    def books(self) -> Books:
        """Return where the tokens are."""
        return Books(self._pool, sum(self._left.values()), sum(self._held.values()), self._spent)

    def idle_for(self, agent: str) -> int:
        """Return its share, those of less important agents, and what the division left over."""
        mine = self._priority[agent]
        below = sum(max(0, tokens) for priority, tokens in self._idle.items() if priority < mine)
        return self._pool + max(0, self._left[agent]) + below

    def _change(self, agent: str, tokens: int) -> None:
        self._left[agent] += tokens
        self._idle[self._priority[agent]] += tokens
