"""The driver: plays recorded runs against a policy, one event after the other.

A team is a chain of calls in their recorded order. A granted call takes its recorded time and is settled at
its end; the team's next request comes after the recorded wait. A refused call is skipped, and the team goes
on as recorded: the replay is an *open loop* (a real team would shorten its work or change course). Teams run
side by side on one clock. Events at the same moment: settlements first, then teams in their order, so that
equal input gives equal results.

The driver is the only one who knows the future, and it hands a policy nothing but the records of
`tbc.swarm.policies`.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence
from fractions import Fraction

from attrs import field, frozen

from tbc.swarm.fit import Fit
from tbc.swarm.policies import Arrival, Books, Policy, Receipt, Request
from tbc.swarm.traces import Call, Run

__all__ = [
    "Estimate",
    "Event",
    "Fate",
    "Outcome",
    "Team",
    "actual_output",
    "budget_for",
    "p90_output",
    "replay",
    "replay_alone",
]

#: Kind of team and call → tokens of output to set aside.
Estimate = Callable[[str, Call], int]

_SETTLE, _REQUEST = 0, 1


@frozen
class Team:
    """A run that takes part in a replay."""

    #: Its name, unique in the pool.
    name: str
    #: What it does.
    run: Run
    #: When it starts, in simulated seconds.
    start_s: float = 0.0

    def agent(self, call: Call) -> str:
        """Return the caller's name in the pool."""
        return f"{self.name}/{call.agent}"


@frozen
class Fate:
    """What became of one call."""

    #: Who asked.
    arrival: Arrival
    #: The call.
    call: Call
    #: When it was asked for.
    at_s: float
    #: Tokens that were (or would have been) set aside.
    hold: int
    #: Whether it was granted.
    served: bool
    #: Of a refused call of top priority: tokens that lay idle at that moment, its own, the pool's and those
    #: of less important agents. ``None`` for all other calls.
    idle: int | None = None

    @property
    def overrun(self) -> int:
        """Tokens that a served call used above what had been set aside."""
        return max(0, self.call.tokens - self.hold) if self.served else 0

    @property
    def starved(self) -> bool:
        """Whether it was a call of top priority, and refused."""
        return self.idle is not None

    @property
    def avoidable(self) -> bool:
        """Whether it starved although idle tokens would have covered it."""
        return self.idle is not None and self.idle >= self.hold


@frozen
class Event:
    """Something that has just happened, told to whoever watches a replay."""

    #: Simulated seconds.
    at_s: float
    #: ``"granted"``, ``"refused"`` or ``"settled"``.
    what: str
    #: Whose call.
    arrival: Arrival
    #: The call.
    call: Call


@frozen
class Outcome:
    """What a policy made of a replay."""

    #: The policy's name.
    policy: str
    #: The pool, in tokens.
    budget: int
    #: What became of every call, in the order of the requests.
    fates: tuple[Fate, ...] = field(repr=False)
    #: Where the tokens are at the end.
    books: Books
    #: Grants that promised more than there was: budget below what was promised until then (spent, at most
    #: what had been set aside for it, and what was held). Overruns are counted apart.
    grants_above: int


def p90_output(fit: Fit) -> Estimate:
    """Estimate a call's output by its role's p90 in the training runs."""
    return lambda kind, call: fit.output(kind, call.role, call.output_cap)


def actual_output(kind: str, call: Call) -> int:
    """Estimate a call's output by the actual one: no policy could know it; flatters whoever gets it."""
    return call.output_tokens


def replay(
    teams: Sequence[Team],
    budget: int,
    policy: Policy,
    estimate: Estimate,
    priority: Callable[[str, str], int],
    *,
    top: int,
    watch: Callable[[Event], None] | None = None,
) -> Outcome:
    """Play the teams against a policy.

    Parameters
    ----------
    teams : sequence of Team
        Who takes part; names must be unique.
    budget : int
        The pool, in tokens.
    policy : Policy
        Fresh: a policy is used once.
    estimate : Estimate
        What to set aside for a call's output.
    priority : callable
        Kind and role → priority, laid on.
    top : int
        The top priority: refused calls of it count as starved.
    watch : callable, optional
        Called after every event.

    Returns
    -------
    Outcome
        The fate of every call.
    """
    stage = _Stage(teams, budget, policy, estimate, priority, top, watch)
    while stage.queue:
        at_s, what, index = heapq.heappop(stage.queue)
        if what == _SETTLE:
            stage.settle(at_s, index)
        else:
            stage.request(at_s, index)
    return Outcome(policy.name, budget, tuple(stage.fates), policy.books(), stage.grants_above)


def replay_alone(run: Run, pressure: float, policy: Policy, estimate: Estimate, fit: Fit) -> Outcome:
    """Play one run on a pool of its own, of `pressure` times what it used; parameters as for `replay`."""
    teams = [Team(run.name, run)]
    return replay(teams, budget_for(run.demand, pressure), policy, estimate, fit.priority, top=fit.top)


def budget_for(demand: int, pressure: float) -> int:
    """Return `pressure` times `demand`, rounded down exactly.

    Examples
    --------
    >>> budget_for(65_040, 0.8)
    52032
    """
    return int(demand * Fraction(str(pressure)))


class _Stage:
    """The state of one replay."""

    def __init__(
        self,
        teams: Sequence[Team],
        budget: int,
        policy: Policy,
        estimate: Estimate,
        priority: Callable[[str, str], int],
        top: int,
        watch: Callable[[Event], None] | None,
    ) -> None:
        self.queue: list[tuple[float, int, int]] = []
        self.fates: list[Fate] = []
        self.grants_above = 0
        self._teams = teams
        self._budget = budget
        self._policy = policy
        self._estimate = estimate
        self._top = top
        self._watch = watch
        self._next = [0] * len(teams)
        self._promised = 0
        self._arrivals = {
            f"{team.name}/{agent}": Arrival(
                f"{team.name}/{agent}", team.name, role, team.run.kind, priority(team.run.kind, role)
            )
            for team in teams
            for agent, role in team.run.roles.items()
        }
        policy.open(budget, tuple(self._arrivals.values()))
        for index, team in enumerate(teams):
            heapq.heappush(self.queue, (team.start_s, _REQUEST, index))

    def request(self, at_s: float, index: int) -> None:
        team = self._teams[index]
        call = team.run.calls[self._next[index]]
        arrival = self._arrivals[team.agent(call)]
        request = Request(
            arrival.agent, at_s, call.input_tokens, call.output_cap, self._estimate(team.run.kind, call)
        )
        served = self._policy.request(request)
        starved = not served and arrival.priority == self._top
        idle = self._policy.idle_for(arrival.agent) if starved else None
        self.fates.append(Fate(arrival, call, at_s, request.tokens, served, idle))
        if not served:
            self._tell(at_s, "refused", arrival, call)
            self._go_on(at_s, index)
            return
        self._promised += request.tokens
        self.grants_above += self._promised > self._budget
        heapq.heappush(self.queue, (at_s + call.duration_s, _SETTLE, index))
        self._tell(at_s, "granted", arrival, call)

    def settle(self, at_s: float, index: int) -> None:
        team = self._teams[index]
        call = team.run.calls[self._next[index]]
        arrival = self._arrivals[team.agent(call)]
        self._promised -= max(0, self._estimate(team.run.kind, call) - call.output_tokens)
        self._policy.settle(Receipt(arrival.agent, at_s, call.input_tokens, call.output_tokens))
        self._tell(at_s, "settled", arrival, call)
        self._go_on(at_s, index)

    def _go_on(self, at_s: float, index: int) -> None:
        self._next[index] += 1
        calls = self._teams[index].run.calls
        if self._next[index] == len(calls):
            self._policy.leave(self._teams[index].name)
        else:
            heapq.heappush(self.queue, (at_s + calls[self._next[index]].wait_s, _REQUEST, index))

    def _tell(self, at_s: float, what: str, arrival: Arrival, call: Call) -> None:
        if self._watch is not None:
            self._watch(Event(at_s, what, arrival, call))
