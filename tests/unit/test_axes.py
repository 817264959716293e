"""Dollars and calls beside tokens: what a hold sets aside on each, and what is booked when little is said."""

from __future__ import annotations

import contextvars
import gc
from decimal import Decimal
from typing import Any

import pytest

import tbc
from tbc.testing import check_books

PRICES = {
    "m": {"input_per_million": "1", "output_per_million": "10"},
    "embedding": {"input_per_million": "5", "output_per_million": "0"},
    "long": {
        "input_per_million": 1,
        "output_per_million": 10,
        "tiers": [{"above": 100, "input_per_million": 2, "output_per_million": 100}],
    },
}


def make(**how: Any) -> tbc.BudgetManager:
    manager = tbc.BudgetManager(prices=PRICES, counter=tbc.tokens.EstimateCounter(), **how)
    manager.register_agent("a")
    return manager


def dollars(settlement: tbc.Settlement) -> tuple[int, bool]:
    booking = next(each for each in settlement.others if each.axis == "usd")
    return booking.amount, booking.estimated


class TestHolds:
    def test_a_key_answers_the_same_before_and_after_an_axis_is_opened(self):
        manager = make(max_tokens=1000)
        first = manager.hold("a", 100, key="k")
        with pytest.raises(tbc.BudgetExceededError):
            manager.hold("a", 5000, key="refused")
        manager.hold("a", 10, usd="0.1")
        assert manager.hold("a", 100, key="k") is first
        with pytest.raises(tbc.BudgetExceededError):
            manager.hold("a", 5000, key="refused")

    def test_more_tokens_of_a_priced_hold_are_more_dollars(self):
        manager = make(max_usd="0.01")
        hold = manager.hold("a", 900, model="m")
        with pytest.raises(tbc.BudgetExceededError) as refused:
            hold.extend(5000)
        assert (refused.value.axis, hold.tokens, hold.usd) == ("usd", 900, 9_000_000)
        hold.extend(100)
        assert (hold.tokens, hold.usd) == (1000, 10_000_000)

    @pytest.mark.parametrize(
        ("model", "tokens", "held"),
        [("m", 1000, 10_000_000), ("embedding", 1000, 5_000_000), ("long", 1000, 90_102_000)],
    )
    def test_a_hold_is_what_so_many_tokens_can_cost_at_most(self, model, tokens, held):
        assert make().hold("a", tokens, model=model).usd == held

    def test_the_price_of_a_hold_with_dollars_prices_its_usage(self):
        hold = make(max_usd=5).hold("a", 1000, usd="1", model="m")
        assert hold.usd == 10**9
        settlement = hold.settle(usage=tbc.Usage(input_tokens=10, output_tokens=10))
        assert dollars(settlement) == (110_000, False)

    @pytest.mark.parametrize("bad", [True, 1.0, -1, "1", None])
    def test_calls_are_whole_numbers(self, bad):
        with pytest.raises(tbc.InvalidAmountError):
            make().hold("a", 1, calls=bad)

    def test_a_deep_tree_has_dollars_too(self):
        manager = make()
        for depth in range(1_500):
            manager.register_agent(f"a{depth}", max_tokens=None, parent=f"a{depth - 1}" if depth else None)
        manager.record_usage("a", 5)
        hold = manager.hold("a1499", 0, usd="0.1")
        assert hold.usd == 10**8
        assert manager.accounts("usd")[1].unpriced == 1


class TestSettles:
    def test_tokens_alone_cost_as_much_as_they_can_if_nobody_said_what_was_input(self):
        assert dollars(make(max_usd=1).hold("a", 10**5, model="embedding").settle(10**5)) == (5 * 10**8, True)
        manager = make(max_usd=1)
        with manager.hold("a", 10**5, model="embedding") as hold:
            pass
        assert dollars(hold.settlement) == (5 * 10**8, True)

    def test_calls_in_flight_when_an_axis_opens_are_on_it(self):
        manager = make()
        hold = manager.hold("a", 100)
        manager.hold("a", 100).settle(1)
        manager.register_agent("c", max_calls=5, max_usd=1)
        hold.settle(50)
        assert manager.report("calls")["a"]["consumed"] == 2
        assert manager.accounts("usd")[1].unpriced == 2
        check_books(manager)

    def test_dollars_that_were_set_aside_later_are_booked(self):
        hold = make(max_usd=1, unknown_price="track").hold("a", 100, model="nobody's")
        hold.extend(usd="0.5")
        assert dollars(hold.settle(100)) == (5 * 10**8, True)

    def test_tokens_that_nobody_states_are_an_estimate(self):
        settlement = make().hold("a", 1000, usd="0.5").settle(usd="0.1")
        assert (settlement.tokens, settlement.estimated, dollars(settlement)) == (1000, True, (10**8, False))

    def test_a_usage_that_states_nothing_is_unknown(self):
        manager = make(max_usd=1)
        settlement = manager.hold("a", 1000, model="m").settle(usage=tbc.Usage())
        assert (settlement.tokens, settlement.estimated, dollars(settlement)) == (1000, True, (10**7, True))
        ask = manager.govern("a", model="m", usage_fn=lambda reply: tbc.Usage())(lambda text: "two words")
        assert ask("some words") == "two words"

    @pytest.mark.parametrize("bad", [{"input_tokens": 1}, 5, "usage"])
    def test_what_is_no_usage_is_refused(self, bad):
        manager = make()
        hold = manager.hold("a", 10)
        with pytest.raises(tbc.InvalidAmountError):
            hold.settle(usage=bad)
        assert hold.state == "open"
        with pytest.raises(tbc.InvalidAmountError):
            manager.record_usage("a", usage=bad)


class TestPrices:
    def test_recorded_usage_is_priced_as_calls_are(self):
        usage = tbc.Usage(input_tokens=10**6, output_tokens=10**6)
        assumed = make(max_usd=100, unknown_price=Decimal(10))
        assumed.record_usage("a", usage=usage, model="x")
        assert assumed.report("usd")["a"]["consumed"] == 20 * 10**9
        known = make(max_usd=100)
        known.record_usage("a", 10**6, model="m")
        assert known.report("usd")["a"]["consumed"] == 10 * 10**9
        known.record_usage("a", usage=usage, model="m")
        assert known.report("usd")["a"]["consumed"] == 21 * 10**9

    @pytest.mark.parametrize("max_tokens", [None, 10])
    def test_audit_says_once_that_enforcement_would_refuse_an_unknown_price(self, max_tokens):
        manager, told = make(max_tokens=max_tokens, max_usd=1, mode="audit"), []
        manager.subscribe(told.append)
        hold = manager.hold("a", 100, model="nobody's")
        assert hold.decision.note.startswith('Enforcement would refuse it: model "nobody\'s"')
        assert [event.decision for event in told if isinstance(event, tbc.events.Refused)] == [hold.decision]

    def test_the_remedy_names_every_axis_that_is_short(self):
        manager = make(max_tokens=10, max_usd="0.001")
        with pytest.raises(tbc.BudgetExceededError) as refused:
            manager.hold("a", 1000, model="m")
        assert "top up '(root)' by 990 tokens" in str(refused.value)
        assert "top up '(root)' by $0.0090" in str(refused.value)
        manager.top_up(tbc.ROOT, 990, usd="0.009")
        manager.hold("a", 1000, model="m")

    def test_a_call_that_names_no_model_is_told_to(self):
        with pytest.raises(tbc.UnknownPriceError, match="Name the model="):
            make(max_usd=1).hold("a", 100)

    def test_promise_12_an_unknown_price_is_not_a_free_price(self):
        manager = make(max_usd=1)
        for call in (manager.hold, manager.decide):
            with pytest.raises(tbc.UnknownPriceError):
                call("a", 1, model="nobody's")
        asked = []
        with pytest.raises(tbc.UnknownPriceError):
            manager.govern("a", model="nobody's")(asked.append)("words")
        assert asked == []
        assert manager.ledger.consumed("a") == 0


class TestTerms:
    def test_no_reserve_in_dollars_is_no_other_term(self):
        manager = make()
        manager.update_agent("a", min_reserve_usd=0)
        manager.register_agent("a")

    @pytest.mark.parametrize("call", ["report", "accounts"])
    def test_there_are_three_axes(self, call):
        with pytest.raises(tbc.InvalidAmountError, match="tokens, usd, calls"):
            getattr(make(), call)("dollars")
        with pytest.raises(tbc.InvalidAmountError):
            make().ledger.history(axis="dollars")

    @pytest.mark.parametrize("how", [{"warn_at": 0.5}, {"warn_at": None}, {"counter": 5}, {"clock": 5}])
    def test_what_a_manager_cannot_use_is_said_at_once(self, how):
        with pytest.raises(tbc.InvalidContractError):
            tbc.BudgetManager(**how)


class Waiting:
    """Waits for ever, without an event loop."""

    def __await__(self):
        yield


class TestContexts:
    def test_an_async_generator_left_in_another_context_books_and_does_not_raise(self):
        manager = make()

        @manager.govern("a")
        async def stream(text):
            yield "one"
            await Waiting()

        async def read(chunks):
            async for _ in chunks:
                pass

        chunks = stream("two words")
        reading = read(chunks)
        contextvars.copy_context().run(reading.send, None)
        cycle = [reading, chunks]
        cycle.append(cycle)
        del reading, chunks, cycle
        gc.collect()
        manager.report()
        assert manager.ledger.consumed("a") == 3
        check_books(manager)

    def test_a_governed_class_with_an_async_call_makes_objects(self):
        class Agent:
            async def __call__(self) -> str:
                return "called"

        made = make().govern("a")(Agent)()
        assert isinstance(made, Agent)
