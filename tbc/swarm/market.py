"""The market: contracts laid over a pool, and the real `tbc.BudgetManager` deciding everything.

No rule of the manager is written down here. This module only signs contracts, passes requests on as holds
and notes what the manager says it moved. Two ways of laying contracts over a pool:

* `Contracts.RESERVE`, one team on one pool: nobody owns anything and everybody draws on the treasury, but for
  the late role. Its reserve (see `tbc.swarm.fit`) is carved out of the treasury with `BudgetManager.top_up`
  and grows with the largest input that anybody has asked for. It is signed for even if the run should turn
  out to have no late call, as nobody can know that.
* `Contracts.SHARES`, many teams on one pool: late agents own a reserve that covers any late call of the
  training runs (all of them together at most half of the budget), the others a share of the rest in
  proportion to what their role used in the training runs. Who is short borrows from agents that matter no
  more than it does. A team that has ended is closed and its tokens return to the treasury.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum

from attrs import frozen

from tbc.clock import ManualClock
from tbc.contract import ROOT
from tbc.decision import Transfer
from tbc.errors import BudgetExceededError
from tbc.holds import Hold
from tbc.manager import BudgetManager
from tbc.swarm.fit import Fit, LateNeed
from tbc.swarm.policies import Arrival, Books, Receipt, Request

__all__ = ["Contracts", "Flow", "Market"]

#: A hold outlives every recorded call.
_EXPIRES_S = 7 * 24 * 3600.0
#: What the reserves of all late agents may take of a budget, in percent.
_RESERVES_PERCENT = 50


class Contracts(Enum):
    """How contracts are laid over a pool."""

    RESERVE = "reserve"
    SHARES = "shares"


@frozen
class Flow:
    """Allocation that the manager moved, by role; what was not used and went back is taken off."""

    #: Role of the donor; `tbc.ROOT` is the treasury.
    donor: str
    #: Role of the recipient.
    recipient: str
    #: How much moved and stayed.
    tokens: int
    #: Transfers.
    count: int


class Market:
    """`tbc.BudgetManager` with contracts that were fitted on training runs.

    Parameters
    ----------
    fit : Fit
        What was learned from the training runs.
    contracts : Contracts
        How to lay contracts over the pool.
    """

    name = "tbc market"

    def __init__(self, fit: Fit, contracts: Contracts) -> None:
        self._fit = fit
        self._contracts = contracts
        self._clock = ManualClock()
        self._arrivals: dict[str, Arrival] = {}
        self._agents_of: dict[str, list[str]] = {}
        self._holds: dict[str, Hold] = {}
        self._late: dict[str, _LateAgent] = {}
        self._flows: dict[tuple[str, str], list[int]] = {}
        self.manager = BudgetManager(max_tokens=0, clock=self._clock)

    def open(self, budget: int, arrivals: Sequence[Arrival]) -> None:
        """Register everybody with a contract."""
        self.manager = BudgetManager(max_tokens=budget, clock=self._clock)
        everybody = [*arrivals, *self._late_agents_to_come(arrivals)]
        for arrival in everybody:
            self._arrivals[arrival.agent] = arrival
            self._agents_of.setdefault(arrival.team, []).append(arrival.agent)
        owned = self._shares(budget, everybody) if self._contracts is Contracts.SHARES else {}
        for arrival in everybody:
            tokens = owned.get(arrival.agent, 0)
            need = self._need(arrival)
            self.manager.register_agent(
                arrival.agent,
                arrival.priority,
                max_tokens=tokens,
                min_reserve=0 if need is None else tokens,
            )
            if need is not None and self._contracts is Contracts.RESERVE:
                self._late[arrival.team] = _LateAgent(arrival.agent, need)

    def request(self, request: Request) -> bool:
        """Ask the manager to set the tokens aside."""
        self._clock.advance(max(0.0, request.at_s - self._clock()))
        late = self._late.get(self._arrivals[request.agent].team)
        if late is not None:
            self._grow_reserve(late, request)
        try:
            hold = self.manager.hold(request.agent, request.tokens, expires_s=_EXPIRES_S)
        except BudgetExceededError:
            return False
        self._holds[request.agent] = hold
        self._note(hold.loans)
        return True

    def settle(self, receipt: Receipt) -> None:
        """Settle the hold by the actual usage."""
        self._clock.advance(max(0.0, receipt.at_s - self._clock()))
        hold = self._holds.pop(receipt.agent)
        settlement = hold.settle(tokens=receipt.tokens)
        self._note(settlement.covered)
        # Back to the last lender first; where that one has closed, the treasury took its place.
        for loan, back in zip(reversed(hold.loans), settlement.returned, strict=False):
            self._add(loan.donor, loan.recipient, -back.tokens)
        late = self._late.get(self._arrivals[receipt.agent].team)
        if late is not None and late.agent == receipt.agent:
            del self._late[self._arrivals[receipt.agent].team]

    def leave(self, team: str) -> None:
        """Close the team's accounts; what they did not spend returns to the treasury."""
        for agent in self._agents_of.pop(team, []):
            self.manager.close_agent(agent)
        self._late.pop(team, None)

    def books(self) -> Books:
        """Return where the tokens are, as the manager's own accounts say."""
        root, *agents = self.manager.accounts()
        return Books(
            pool=root.remaining or 0,
            grants=sum(account.remaining or 0 for account in agents),
            held=sum(account.held for account in agents),
            spent=sum(account.consumed for account in agents),
        )

    def idle_for(self, agent: str) -> int:
        """Return the treasury, what the agent has left and what less important agents have left."""
        mine = self._arrivals[agent].priority
        root, *agents = self.manager.accounts()
        below = (a.remaining or 0 for a in agents if a.priority < mine or a.agent_name == agent)
        return max(0, root.remaining or 0) + sum(tokens for tokens in below if tokens > 0)

    def flows(self) -> tuple[Flow, ...]:
        """Return what moved between roles (and out of the treasury), largest first."""
        flows = [Flow(donor, recipient, *sums) for (donor, recipient), sums in self._flows.items()]
        return tuple(sorted(flows, key=lambda flow: (-flow.tokens, flow.donor, flow.recipient)))

    def _need(self, arrival: Arrival) -> LateNeed | None:
        known = self._fit.roles.get((arrival.kind, arrival.role))
        return None if known is None else known.late

    def _late_agents_to_come(self, arrivals: Sequence[Arrival]) -> list[Arrival]:
        """Sign for the late role of teams that did not announce it: nobody knows that it will not come."""
        teams = {arrival.team: arrival.kind for arrival in arrivals}
        announced = {(arrival.team, arrival.role) for arrival in arrivals}
        to_come = []
        for team, kind in teams.items():
            role = self._fit.late_role(kind)
            if role is not None and (team, role) not in announced:
                priority = self._fit.priority(kind, role)
                to_come.append(Arrival(f"{team}/{role} (to come)", team, role, kind, priority))
        return to_come

    def _shares(self, budget: int, everybody: Sequence[Arrival]) -> dict[str, int]:
        """Return what each agent owns at the start; the sum is at most the budget."""
        reserves: dict[str, int] = {}
        weights: dict[str, int] = {}
        for arrival in everybody:
            known = self._fit.roles.get((arrival.kind, arrival.role))
            if known is not None and known.late is not None:
                reserves[arrival.agent] = known.late.most
            else:
                weights[arrival.agent] = 0 if known is None else known.demand
        most = budget * _RESERVES_PERCENT // 100
        wanted = sum(reserves.values())
        if wanted > most:
            reserves = {agent: tokens * most // wanted for agent, tokens in reserves.items()}
        rest = budget - sum(reserves.values())
        weight = sum(weights.values())
        shares = {agent: rest * part // weight if weight else 0 for agent, part in weights.items()}
        return {**reserves, **shares}

    def _grow_reserve(self, late: _LateAgent, request: Request) -> None:
        if request.agent == late.agent:
            return
        late.largest_input = max(late.largest_input, request.input_tokens)
        lacking = late.need.reserve(late.largest_input) - late.reserved
        carved = min(lacking, self.manager.remaining(ROOT) or 0)
        if carved > 0:
            self.manager.top_up(late.agent, carved)
            late.reserved += carved
            self._add(ROOT, late.agent, carved)

    def _note(self, transfers: Sequence[Transfer]) -> None:
        for transfer in transfers:
            self._add(transfer.donor, transfer.recipient, transfer.tokens)

    def _add(self, donor: str, recipient: str, tokens: int) -> None:
        sums = self._flows.setdefault((self._role(donor), self._role(recipient)), [0, 0])
        sums[0] += tokens
        sums[1] += tokens > 0

    def _role(self, account: str) -> str:
        return account if account == ROOT else self._arrivals[account].role


class _LateAgent:
    """A late agent whose reserve is still growing."""

    def __init__(self, agent: str, need: LateNeed) -> None:
        self.agent = agent
        self.need = need
        self.largest_input = 0
        self.reserved = 0
