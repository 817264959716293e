"""The baselines, and the market as a policy."""

from __future__ import annotations

import pytest

import tbc
from tbc.swarm.fit import Fit, LateNeed, RoleFit
from tbc.swarm.market import Contracts, Flow, Market
from tbc.swarm.policies import Arrival, Books, EqualSplit, Policy, Receipt, Request, SharedPool


def arrival(role: str, priority: int = 1, team: str = "t") -> Arrival:
    return Arrival(f"{team}/{role}", team, role, "research", priority)


def ask(policy: Policy, agent: str, input_tokens: int, estimate: int = 0) -> bool:
    return policy.request(Request(agent, 0.0, input_tokens, 16_384, estimate))


def end(policy: Policy, agent: str, input_tokens: int, output_tokens: int = 0) -> None:
    policy.settle(Receipt(agent, 1.0, input_tokens, output_tokens))


AGENT, FINALIZE = arrival("agent"), arrival("finalize", 4)
FIT = Fit(
    {
        ("research", "agent"): RoleFit(priority=1, output=100, demand=6_000),
        ("research", "finalize"): RoleFit(
            priority=4, output=200, demand=1_500, late=LateNeed(1_000, 1_800, 200, 200)
        ),
    }
)


def test_the_equal_split_moves_nothing() -> None:
    policy = EqualSplit()
    policy.open(1_001, [AGENT, FINALIZE])

    assert policy.books() == Books(pool=1, grants=1_000, held=0, spent=0)
    assert not ask(policy, "t/agent", 501)
    assert ask(policy, "t/agent", 400, 100)
    assert policy.books() == Books(pool=1, grants=500, held=500, spent=0)
    end(policy, "t/agent", 400, 20)
    assert policy.books() == Books(pool=1, grants=580, held=0, spent=420)
    policy.leave("t")
    assert policy.books() == Books(pool=1, grants=580, held=0, spent=420)


def test_baselines_book_an_overrun_in_full() -> None:
    for policy in (EqualSplit(), SharedPool()):
        policy.open(1_000, [AGENT])
        assert ask(policy, "t/agent", 900)
        end(policy, "t/agent", 900, 300)
        assert policy.books().spent == 1_200
        assert policy.books().total == 1_000
        assert not ask(policy, "t/agent", 1)


def test_idle_tokens_are_own_and_nobodys_and_those_of_lower_priorities() -> None:
    split, pool = EqualSplit(), SharedPool()
    split.open(3_001, [AGENT, arrival("peer"), FINALIZE])
    pool.open(3_001, [AGENT, FINALIZE])

    assert split.idle_for("t/finalize") == 3_001
    assert split.idle_for("t/agent") == 1_001
    assert pool.idle_for("t/agent") == 3_001


def test_the_market_keeps_a_reserve_that_grows_with_the_run() -> None:
    market = Market(FIT, Contracts.RESERVE)
    market.open(5_000, [AGENT, FINALIZE])

    assert ask(market, "t/agent", 400, 100)  # 400 and 200 more, and 200 for the output
    assert market.manager.remaining("t/finalize") == 800
    end(market, "t/agent", 400, 50)
    assert ask(market, "t/agent", 2_000, 100)  # at most the usual 1,000 and 200
    assert market.manager.remaining("t/finalize") == 1_200
    end(market, "t/agent", 2_000, 100)
    assert market.books() == Books(pool=1_250, grants=1_200, held=0, spent=2_550)


def test_the_markets_reserve_is_for_the_late_role_only() -> None:
    market = Market(FIT, Contracts.RESERVE)
    market.open(2_000, [AGENT, FINALIZE])

    assert not ask(market, "t/agent", 900)
    assert ask(market, "t/agent", 700, 100)
    end(market, "t/agent", 700, 400)  # an overrun does not reach the reserve either
    assert not ask(market, "t/agent", 1)
    assert ask(market, "t/finalize", 900)
    end(market, "t/finalize", 900)
    assert market.books().spent == 2_000


def test_a_late_role_may_take_more_than_its_reserve_from_the_treasury() -> None:
    market = Market(FIT, Contracts.RESERVE)
    market.open(5_000, [AGENT, FINALIZE])

    assert ask(market, "t/agent", 100)
    end(market, "t/agent", 100)
    assert ask(market, "t/finalize", 4_000, 500)
    end(market, "t/finalize", 4_000, 500)
    assert market.books() == Books(pool=400, grants=0, held=0, spent=4_600)


def test_the_market_signs_for_a_late_role_that_nobody_announced() -> None:
    market = Market(FIT, Contracts.RESERVE)
    market.open(1_400, [AGENT])

    assert not ask(market, "t/agent", 1_000)
    assert [a.agent_name for a in market.manager.accounts()][1:] == ["t/agent", "t/finalize (to come)"]


def test_shares_are_carved_out_and_closed_teams_return_theirs() -> None:
    market = Market(FIT, Contracts.SHARES)
    market.open(10_000, [AGENT, FINALIZE, arrival("agent", team="u"), arrival("finalize", 4, team="u")])

    # two reserves of 1,800 + 200; the agents share the rest
    assert [a.allocated for a in market.manager.accounts()[1:]] == [3_000, 2_000, 3_000, 2_000]
    assert ask(market, "t/agent", 1_000)
    end(market, "t/agent", 1_000)
    market.leave("t")
    assert market.books() == Books(pool=4_000, grants=5_000, held=0, spent=1_000)
    assert ask(market, "u/agent", 6_500)
    assert [(flow.donor, flow.recipient, flow.tokens) for flow in market.flows()] == [
        (tbc.ROOT, "agent", 3_500)
    ]


def test_reserves_take_at_most_half_of_a_small_budget() -> None:
    market = Market(FIT, Contracts.SHARES)
    market.open(2_000, [AGENT, FINALIZE])

    assert [a.allocated for a in market.manager.accounts()[1:]] == [1_000, 1_000]
    assert [a.min_reserve for a in market.manager.accounts()[1:]] == [0, 1_000]


def test_loans_go_downhill_only_and_flows_are_net_of_what_went_back() -> None:
    market = Market(FIT, Contracts.SHARES)
    market.open(10_000, [AGENT, FINALIZE])
    assert market.manager.remaining("t/agent") == 8_000

    assert not ask(market, "t/agent", 8_001)
    assert ask(market, "t/finalize", 3_000)
    end(market, "t/finalize", 2_400)
    assert market.flows() == (Flow("agent", "finalize", 400, 1),)
    assert market.idle_for("t/finalize") == 7_600
    assert market.idle_for("t/agent") == 7_600


@pytest.mark.parametrize("contracts", list(Contracts))
def test_a_role_that_was_never_seen_can_still_take_part(contracts: Contracts) -> None:
    market = Market(FIT, contracts)
    market.open(10_000, [arrival("newcomer"), AGENT, FINALIZE])

    assert ask(market, "t/newcomer", 100)
    end(market, "t/newcomer", 100)
    assert market.books().total == 10_000
