"""Runs of workflows in this process: order, budget, refusals, fallbacks, events, resume, and the bill."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

import tbc
from tbc.clock import ManualClock
from tbc.decision import Status
from tbc.runs import engine
from tbc.runs import events as ev
from tbc.runs.bill import as_csv, as_json, make_bill, money
from tbc.runs.config import load_workflow
from tbc.runs.engine import Outcome, WorkflowRun
from tbc.runs.history import find_run, resume, start
from tbc.stores import SqliteStore
from tbc.stores.sqlite_writer import SqliteWriter
from tbc.testing import check_books
from tests import run_steps

PRICES = """
prices:
  dear: {input_per_million: 10, output_per_million: 100}
  cheap: {input_per_million: 1, output_per_million: 10}
  free: {free: true}
"""


class Kit:
    """A folder with a workflow file and a store, and the events of its runs."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.store = SqliteStore(folder / "runs.db", synchronous="NORMAL")
        self.file = folder / "flow.yaml"
        self.clock = ManualClock(1_000_000.0)
        self.events: list[ev.RunEvent] = []

    def write(self, limits: str, steps: str, agents: str = "agents: {a: {}}") -> None:
        self.file.write_text(f"name: flow\nlimits: {limits}\n{agents}\n{PRICES}\nsteps:\n{steps}")

    def _how(self) -> dict[str, Any]:
        return {"clock": self.clock, "counter": tbc.tokens.EstimateCounter(), "listen": self.events.append}

    def run(self, limits: str, steps: str, agents: str = "agents: {a: {}}", **how: Any) -> Outcome:
        self.write(limits, steps, agents)
        with start(
            load_workflow(self.file), self.store, run=how.pop("run", "r"), **self._how(), **how
        ) as begun:
            return self._execute(begun)

    def resume(self, run: str = "r", **how: Any) -> Outcome:
        with resume(self.store, run, **self._how(), **how) as begun:
            return self._execute(begun)

    def _execute(self, begun: WorkflowRun) -> Outcome:
        outcome = begun.execute()
        check_books(begun.manager)
        assert all(check.ok for check in self.store.verify())
        return outcome

    def told(self, kind: type[ev.RunEvent]) -> list[Any]:
        return [event for event in self.events if isinstance(event, kind)]

    def bill(self, run: str = "r"):
        row = find_run(self.store, run)
        return make_bill(row, self.store.entries(row.pool), self.store.steps(row.run))


@pytest.fixture
def kit(tmp_path: Path) -> Iterator[Kit]:
    run_steps.CALLS.clear()
    made = Kit(tmp_path)
    yield made
    made.store.close()


def asked() -> list[str]:
    return [what for what, _ in run_steps.CALLS]


def step(name: str, call: str = "ask", **keys: Any) -> str:
    fields = {"id": name, "agent": "a", "call": f"tests.run_steps:{call}", "input": name, **keys}
    return f"  - {json.dumps(fields)}\n"


#: A call of `ask` with this model and cap costs $0.0101 and is held at no more than $0.0101.
DEAR = {"model": "dear", "max_output_tokens": 100}
COST = Decimal("0.0101")


class TestOrder:
    def test_steps_run_when_what_they_need_is_done_and_see_its_results(self, kit):
        outcome = kit.run(
            "{}",
            step("last", after=["two"], input={"all": "{{ steps.each }}", "one": "{{ steps.one }}"})
            + step("one")
            + step("two", after=["one"])
            + step("each", for_each=["x", "y"], input="{{ item }} after {{ steps.two }}"),
        )
        assert outcome.state == "finished"
        assert asked()[:2] == ["one", "two"]
        assert sorted(asked()[2:4]) == ["x after answer to two", "y after answer to two"]
        assert outcome.results["each"] == [
            "answer to x after answer to two",
            "answer to y after answer to two",
        ]
        assert asked()[4] == str({"all": outcome.results["each"], "one": "answer to one"})

    def test_independent_steps_run_at_once(self, kit):
        outcome = kit.run("{}", step("one", "meet") + step("two", "meet"))
        assert outcome.results == {"one": "met one", "two": "met two"}

    def test_nothing_is_done_for_each_of_nothing(self, kit):
        outcome = kit.run("{}", step("none", for_each=[]) + step("then", input="{{ steps.none }}"))
        assert (outcome.results["none"], asked()) == ([], ["[]"])

    def test_a_for_each_needs_a_list(self, kit):
        outcome = kit.run("{}", step("one") + step("each", for_each="{{ steps.one }}"))
        assert (outcome.state, asked()) == ("failed", ["one"])
        assert "must be a list, not str" in str(outcome.error)

    def test_coroutine_functions_are_awaited(self, kit):
        assert kit.run("{}", step("one", "ask_async")).results == {"one": "answer to one"}

    @pytest.mark.parametrize("call", ["stream", "stream_async"])
    def test_streams_are_read_to_their_end(self, kit, call):
        assert kit.run("{}", step("one", call)).results == {"one": "one two"}
        assert kit.told(ev.StepFinished)[0].spent["tokens"] == 9

    def test_a_value_without_usage_is_the_result_and_is_counted(self, kit):
        outcome = kit.run("{}", step("one", "plain", input={"x": 1}))
        assert outcome.results == {"one": {"seen": {"x": 1}}}
        assert kit.told(ev.StepFinished)[0].estimated

    def test_functions_that_cannot_be_found_are_said_at_once_and_nothing_is_called(self, kit):
        with pytest.raises(tbc.WorkflowFileError, match=r"steps\[1\].call: tests.run_steps:nobody"):
            kit.run("{}", step("one") + step("two", "nobody"))
        assert asked() == []


class TestBudget:
    def test_enforce_stops_before_the_call_that_does_not_fit_and_keeps_what_was_paid(self, kit):
        outcome = kit.run(
            "{budget_usd: 0.025, budget_mode: enforce}",
            step("one", **DEAR) + step("two", after=["one"], **DEAR) + step("three", after=["two"], **DEAR),
        )
        assert (outcome.state, list(outcome.results), asked()) == (
            "exhausted",
            ["one", "two"],
            ["one", "two"],
        )
        assert outcome.refused.status is Status.EXHAUSTED
        assert outcome.refused.axis == "usd"
        kinds = [event.kind for event in kit.events if not isinstance(event, ev.Moved)]
        assert kinds[-3:] == ["budget_exhausted", "workflow_failed", "checkpoint_saved"]
        assert find_run(kit.store, "r").state == "exhausted"
        with pytest.raises(tbc.BudgetExceededError) as refused:
            outcome.result()
        assert refused.value.result is outcome

    def test_audit_finishes_and_the_first_it_lists_is_the_first_that_enforcement_refuses(self, kit):
        steps = (
            step("one", **DEAR)
            + step("two", after=["one"], **DEAR)
            + step("three", after=["two"], **DEAR)
            + step("four", after=["three"], **DEAR)
        )
        audit = kit.run("{budget_usd: 0.025}", steps)
        enforced = kit.run("{budget_usd: 0.025}", steps, run="e", mode="enforce")
        assert (audit.state, len(audit.results)) == ("finished", 4)
        names = [name for name, _ in audit.would_refuse]
        assert names == ["three", "four"]
        first = audit.would_refuse[0][1]
        told = [event.step for event in kit.told(ev.BudgetExhausted)]
        assert (told, first.requested, first.available) == (
            ["three"],
            enforced.refused.requested,
            enforced.refused.available,
        )

    def test_exceeded_is_told_first_and_at_each_further_full_budget(self, kit):
        chain = "".join(
            step(f"s{n}", after=[f"s{n - 1}"] if n else [], model="dear", max_output_tokens=100)
            for n in range(8)
        )
        kit.run("{budget_usd: 0.015}", chain)  # each costs 0.0101
        assert [event.step for event in kit.told(ev.BudgetExceeded)] == ["s1", "s3", "s5", "s7"]

    def test_story_22_warnings_fire_once_each_with_what_is_used_and_left(self, kit):
        kit.run(
            "{budget_usd: 0.05, warn_at: [0.2, 0.4, 1.0]}",
            step("one", **DEAR) + step("two", after=["one"], **DEAR),
        )
        warned = [(event.threshold, event.used, event.remaining) for event in kit.told(ev.BudgetWarning)]
        assert warned == [(0.2, 10_100_000, 39_900_000), (0.4, 20_200_000, 29_800_000)]

    def test_a_call_that_fits_when_others_have_ended_waits_for_them(self, kit):
        limits = "{budget_usd: 0.021, budget_mode: enforce}"  # two at once do not fit, one after the other do
        outcome = kit.run(limits, step("one", model="dear", max_output_tokens=60) + step("two", **DEAR))
        assert (outcome.state, asked()) == ("finished", ["one", "two"])

    def test_an_unknown_price_is_refused_under_a_cap_with_the_name_and_the_fix(self, kit):
        outcome = kit.run(
            "{budget_usd: 1, budget_mode: enforce}", step("one", model="nobodys", max_output_tokens=5)
        )
        assert (outcome.state, asked()) == ("failed", [])
        assert isinstance(outcome.error, tbc.UnknownPriceError)

    def test_tracked_prices_make_totals_lower_bounds(self, kit):
        kit.write("{budget_usd: 1}", step("one", model="nobodys") + step("two", **DEAR))
        kit.file.write_text(kit.file.read_text() + "\nunknown_price: track\n")
        with start(load_workflow(kit.file), kit.store, run="r", **kit._how()) as begun:
            assert kit._execute(begun).state == "finished"
        assert money(kit.bill().total) == "at least $0.0101 (1 call unpriced)"

    def test_a_protected_writer_still_has_its_share(self, kit):
        agents = "agents: {a: {}, w: {priority: 9, max_usd: 0.0102, min_reserve_usd: 0.0102}}"
        outcome = kit.run(
            "{budget_usd: 0.03, budget_mode: audit}",
            step("each", for_each=list("abc"), **DEAR)
            + step("write", after=["each"], **{**DEAR, "agent": "w"}),
            agents,
        )
        assert [name for name, _ in outcome.would_refuse] == ["each[1]", "each[2]"]
        assert kit.told(ev.StepFinished)[-1].step == "write"

    def test_agents_read_what_is_left_and_when_to_finish(self, kit):
        outcome = kit.run(
            "{budget_tokens: 300, budget_mode: enforce}",
            step("early", "look_at_budget", max_output_tokens=100)
            + step("late", "look_at_budget", after=["early"], max_output_tokens=150),
        )
        assert [outcome.results[name]["wind_down"] for name in ("early", "late")] == [False, True]

    def test_a_confident_agent_is_asked_no_more(self, kit):
        outcome = kit.run(
            "{}",
            step("each", "confident", for_each=["x", "y", "z"], input="{{ item }}"),
            "agents: {a: {confidence_threshold: 0.8}}",
            jobs=1,
        )
        assert (outcome.results["each"], asked()) == (["about x", None, None], ["x"])
        assert [event.step for event in kit.told(ev.StepSkipped)] == ["each[1]", "each[2]"]


class TestFallback:
    def test_where_the_model_does_not_fit_its_fallback_is_held_priced_and_said(self, kit):
        outcome = kit.run(
            "{budget_usd: 0.005, budget_mode: enforce}", step("one", fallback_model="cheap", **DEAR)
        )
        assert outcome.state == "finished"
        assert run_steps.CALLS == [("one", "cheap")]
        assert kit.told(ev.FallbackTaken) == [ev.FallbackTaken("one", "dear", "cheap", "dear does not fit")]
        assert kit.bill().total.usd == 1_010_000

    def test_the_decision_says_so(self, kit):
        outcome = kit.run(
            "{budget_usd: 0.005, budget_mode: enforce}",
            step("one", "look_at_decision", fallback_model="cheap", **DEAR),
        )
        assert outcome.results["one"].startswith("Fallback model cheap was taken instead of dear")

    def test_from_a_part_of_the_budget_on(self, kit):
        kit.run(
            "{budget_usd: 0.1, budget_mode: enforce}",
            step("one", **DEAR)
            + step("two", after=["one"], fallback_model="cheap", fallback_when=0.1, **DEAR),
        )
        assert run_steps.CALLS == [("one", "dear"), ("two", "cheap")]
        assert "used, from 0.1 on" in kit.told(ev.FallbackTaken)[0].reason

    def test_if_neither_fits_the_run_ends(self, kit):
        outcome = kit.run(
            "{budget_usd: 0.0005, budget_mode: enforce}", step("one", fallback_model="cheap", **DEAR)
        )
        assert (outcome.state, asked()) == ("exhausted", [])


class TestFailures:
    def test_a_step_that_raises_ends_the_run_and_what_it_may_have_cost_is_booked(self, kit):
        outcome = kit.run("{}", step("one") + step("two", "fail", after=["one"], input="some words"))
        assert (outcome.state, list(outcome.results)) == ("failed", ["one"])
        assert isinstance(outcome.error, ConnectionError)
        assert kit.told(ev.StepFailed)[0].spent["tokens"] > 0

    def test_what_was_not_sent_costs_nothing(self, kit):
        kit.run("{}", step("one", "not_sent"))
        assert kit.told(ev.StepFailed)[0].spent["tokens"] == 0

    def test_a_result_that_cannot_be_kept_is_said_and_carried_by_the_error(self, kit):
        outcome = kit.run("{}", step("one", "keep_nothing"))
        assert isinstance(outcome.error, tbc.ResultNotKeptError)
        assert isinstance(outcome.error.result["output"], object)
        assert kit.told(ev.StepFailed)[0].spent["tokens"] == 3


class TestResume:
    TWO = step("one", **DEAR) + step("two", after=["one"], **DEAR) + step("three", after=["two"], **DEAR)

    def test_story_21_stop_top_up_resume(self, kit):
        assert kit.run("{budget_usd: 0.025, budget_mode: enforce}", self.TWO).state == "exhausted"
        assert kit.resume().state == "exhausted"  # the cap still holds, and nothing is paid twice
        assert asked() == ["one", "two"]
        outcome = kit.resume(add_usd="0.01")
        assert (outcome.state, asked()) == ("finished", ["one", "two", "three"])
        assert list(outcome.results) == ["one", "two", "three"]
        assert kit.told(ev.ToppedUp) == [ev.ToppedUp("usd", 10_000_000)]
        raised = [line for line in kit.store.entries("runs/r") if line.kind == "top_up"]
        assert [(line.axis, line.allocated) for line in raised] == [("usd", 10_000_000)]
        assert kit.bill().total.usd == 30_300_000

    def test_only_the_missing_items_are_asked_for(self, kit):
        each = step("each", for_each=["x", "y", "z"], input="{{ item }}", **DEAR) + step(
            "all", after=["each"], model="free"
        )
        outcome = kit.run("{budget_usd: 0.0205, budget_mode: enforce}", each, jobs=1)
        assert outcome.partial == {"each": {0: "answer to x", 1: "answer to y"}}
        outcome = kit.resume(add_usd="0.02")
        assert (asked(), outcome.state) == (["x", "y", "z", "all"], "finished")
        assert outcome.results["each"] == ["answer to x", "answer to y", "answer to z"]

    def test_a_changed_file_is_refused_with_the_steps_and_accepted_if_told(self, kit):
        kit.run("{budget_usd: 0.025, budget_mode: enforce}", self.TWO)
        kit.write(
            "{budget_usd: 0.025, budget_mode: enforce}",
            step("one", **DEAR)
            + step("two", after=["one"], input="other", **DEAR)
            + step("three", after=["two"], **DEAR),
        )
        with pytest.raises(tbc.WorkflowChangedError, match="two") as refused:
            kit.resume(add_usd="1")
        assert refused.value.steps == ("two",)
        outcome = kit.resume(add_usd="1", accept_changes=True)
        assert (outcome.state, asked()) == ("finished", ["one", "two", "other", "three"])

    def test_a_step_that_failed_is_asked_again_and_its_attempts_are_one_operation(self, kit, monkeypatch):
        kit.run("{}", step("one") + step("two", "fail", after=["one"]))
        monkeypatch.setattr(run_steps, "fail", lambda what: "works now")
        outcome = kit.resume()
        assert outcome.results == {"one": "answer to one", "two": "works now"}
        operations = {charge.name: charge.calls for charge in kit.bill().operations}
        assert operations == {"one": 1, "two": 2}
        assert [row.attempt for row in kit.store.steps("r")] == [1, 2]

    def test_warnings_and_exceedings_are_not_told_again(self, kit):
        steps = step("one", **DEAR) + step("two", "fail", after=["one"])
        kit.run("{budget_usd: 0.01, warn_at: [0.5, 1.0]}", steps)
        before = len(kit.told(ev.BudgetWarning)), len(kit.told(ev.BudgetExceeded))
        kit.resume()
        assert (len(kit.told(ev.BudgetWarning)), len(kit.told(ev.BudgetExceeded))) == before == (2, 1)

    def test_a_finished_run_has_nothing_to_do_and_shows_its_results(self, kit):
        kit.run("{}", step("one"))
        assert kit.resume().results == {"one": "answer to one"}
        assert asked() == ["one"]

    def test_the_file_may_be_gone(self, kit):
        kit.run("{budget_usd: 0.025, budget_mode: enforce}", self.TWO)
        kit.file.unlink()
        assert kit.resume(add_usd=1).state == "finished"

    def test_nobody_else_may_be_at_work_on_it(self, kit):
        kit.run("{budget_usd: 0.025, budget_mode: enforce}", self.TWO)
        with resume(kit.store, "r", **kit._how()), pytest.raises(tbc.RunBusyError):
            kit.resume()

    @pytest.mark.parametrize(("name", "said"), [("q", "no such run"), ("", "more than one")])
    def test_runs_are_found_by_name_or_told_apart(self, kit, name, said):
        kit.run("{}", step("one"), run="r1")
        kit.run("{}", step("one"), run="r2")
        with pytest.raises(tbc.UnknownRunError, match=said):
            kit.resume(name)
        assert find_run(kit.store, "last").run == "r2"

    def test_a_name_is_used_once_and_must_be_one(self, kit):
        kit.run("{}", step("one"))
        for name in ("r", "../r", "a b", ""):
            with pytest.raises(tbc.RunError):
                kit.run("{}", step("one"), run=name)


class TestMoments:
    """What happens between two steps of the engine."""

    def test_what_a_call_cost_and_its_result_are_kept_together(self, kit, monkeypatch):
        seen: list[bool] = []
        original = engine.result_of

        def watched(name: str, reply: object) -> object:
            thread = threading.Thread(
                target=lambda: seen.append(running[0]._keeper.alone().acquire(blocking=False))
            )
            thread.start()
            thread.join()
            return original(name, reply)

        monkeypatch.setattr(engine, "result_of", watched)
        kit.write("{}", step("one"))
        with start(load_workflow(kit.file), kit.store, run="r", **kit._how()) as begun:
            running = [begun]
            begun.execute()
        assert seen == [False]  # nobody else could have kept the one without the other

    def test_a_result_that_cannot_be_written_at_once_is_written_next(self, kit, monkeypatch):
        original, refused = SqliteWriter.put_steps, []

        def busy(self, run, rows):
            rows = list(rows)
            if not refused and any(row.state == "done" for row in rows):
                refused.append(rows)
                raise tbc.StoreBusyError("runs.db", "others are writing", "Ask again")
            original(self, run, rows)

        monkeypatch.setattr(SqliteWriter, "put_steps", busy)
        outcome = kit.run(
            "{budget_usd: 1, budget_mode: enforce}", step("one", **DEAR) + step("two", after=["one"])
        )
        assert isinstance(outcome.error, tbc.StoreBusyError)
        assert [row.state for row in kit.store.steps("r")] == ["done"]
        kit.file.write_text(kit.file.read_text() + "\nunknown_price: track\n")
        assert kit.resume().results["one"] == "answer to one"
        assert (asked(), kit.bill().operations[0].calls) == (["one", "two"], 1)

    def test_a_call_that_was_not_made_costs_nothing(self, kit, monkeypatch):
        def interrupted(self, *call):
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(engine.ThreadPoolExecutor, "submit", interrupted)
            assert (
                kit.run("{budget_usd: 1, budget_mode: enforce}", step("one", **DEAR)).state == "interrupted"
            )
        assert (asked(), kit.bill().total.usd) == ([], 0)
        assert [row.state for row in kit.store.steps("r")] == ["pending"]
        assert kit.resume().state == "finished"
        assert (asked(), kit.bill().total.usd, kit.told(ev.StepInterrupted)) == (["one"], 10_100_000, [])

    def test_a_listener_that_breaks_does_not_break_the_run(self, kit, caplog):
        def broken(event: ev.RunEvent) -> None:
            raise SystemExit(1) if isinstance(event, ev.StepStarted) else BrokenPipeError

        kit.write("{}", step("one") + step("two", after=["one"]))
        with start(load_workflow(kit.file), kit.store, run="r", clock=kit.clock, listen=broken) as begun:
            assert begun.execute().state == "finished"
        assert caplog.text.count("told to nobody from here on") == 1

    def test_changes_that_were_accepted_stay_so_when_the_run_stops_again(self, kit):
        kit.run("{budget_usd: 0.025, budget_mode: enforce}", TestResume.TWO)
        other = TestResume.TWO.replace('"input": "one"', '"input": "other"')
        kit.write("{budget_usd: 0.025, budget_mode: enforce}", other)
        assert kit.resume(accept_changes=True).state == "exhausted"
        assert kit.told(ev.RunResumed)[-1].again == ["one", "two", "three"]
        outcome = kit.resume(add_usd=1)
        assert outcome.results["one"] == "answer to other"
        assert asked() == ["one", "two", "other", "two", "three"]

    def test_a_raised_cap_of_an_agent_is_paid_by_what_is_added(self, kit):
        capped = "agents: {a: {max_usd: 0.011}}"
        limits = "{budget_usd: 0.011, budget_mode: enforce}"
        assert kit.run(limits, TestResume.TWO, capped).state == "exhausted"
        kit.write(limits, TestResume.TWO, capped.replace("0.011", "0.5"))
        assert kit.resume(add_usd="0.6").state == "finished"

    @pytest.mark.parametrize("jobs", [0, -1, True, 1.5])
    def test_nobody_works_with_no_hands(self, kit, jobs):
        with pytest.raises(tbc.InvalidAmountError):
            kit.run("{}", step("one"), jobs=jobs)
        assert kit.store.run("r") is None

    def test_text_that_utf_8_cannot_hold_is_kept_all_the_same(self, kit):
        outcome = kit.run("{}", step("one", "surrogate"))
        assert (outcome.state, outcome.results) == ("finished", {"one": "a\ud800b"})
        failed = kit.run("{}", step("one", "surrogate", input="raise"), run="e")
        assert failed.state == "failed"
        assert kit.store.run("e").exit_reason == "ValueError: bad \\ud800"


class TestAuditAgainstEnforcement:
    def both(self, kit, limits: str, steps: str) -> tuple[Outcome, Outcome]:
        return kit.run(limits, steps), kit.run(limits, steps, run="e", mode="enforce")

    def test_the_first_refusal_is_the_models_own_where_its_fallback_does_not_fit_either(self, kit):
        audit, enforced = self.both(kit, "{budget_usd: 0.0005}", step("one", fallback_model="cheap", **DEAR))
        _, first = audit.would_refuse[0]
        refused = enforced.refused
        assert (first.axis, first.requested, first.available) == (
            refused.axis,
            refused.requested,
            refused.available,
        )

    def test_an_unknown_price_is_listed(self, kit):
        audit, enforced = self.both(kit, "{budget_usd: 1}", step("one", model="nobodys", max_output_tokens=5))
        assert (audit.state, enforced.state) == ("finished", "failed")
        assert isinstance(enforced.error, tbc.UnknownPriceError)
        ((name, decision),) = audit.would_refuse
        assert (name, decision.note) == (
            "one",
            "Enforcement would refuse it: model 'nobodys' has no known price.",
        )

    def test_a_fallback_with_a_price_stands_in_for_a_model_without(self, kit):
        audit, enforced = self.both(
            kit, "{budget_usd: 1}", step("one", **{**DEAR, "model": "nobodys"}, fallback_model="cheap")
        )
        assert (audit.state, enforced.state, audit.would_refuse) == ("finished", "finished", ())
        assert run_steps.CALLS == [("one", "cheap"), ("one", "cheap")]

    def test_where_the_fallback_has_no_price_the_budget_is_what_refused(self, kit):
        enforced = kit.run(
            "{budget_usd: 0.0005, budget_mode: enforce}", step("one", fallback_model="nobodys", **DEAR)
        )
        assert enforced.state == "exhausted"


class TestBill:
    def test_story_25_the_bill_reconciles(self, kit):
        agents = "agents: {a: {}, b: {parent: a, max_usd: 0}, c: {}}"
        steps = (
            step("one", **DEAR)
            + step("two", **{**DEAR, "agent": "b", "model": "cheap"})
            + step("each", for_each=[1, 2, 3], **{**DEAR, "agent": "c"})
            + step("free", model="free", max_output_tokens=7)
        )
        assert kit.run("{budget_usd: 1, budget_mode: enforce}", steps, agents).state == "finished"
        bill = kit.bill()
        lines = [line for line in kit.store.entries("runs/r") if line.axis == "usd"]
        assert bill.total.usd == sum(line.consumed for line in lines) == 4 * 10_100_000 + 1_010_000
        for group in (bill.agents, bill.models, bill.steps, bill.operations):
            for number in ("usd", "tokens", "calls"):
                assert sum(getattr(charge, number) for charge in group) == getattr(bill.total, number)
        assert bill.total.calls == len(asked()) == 6
        found = json.loads(as_json(bill))
        assert Decimal(found["total"]["usd"]) == Decimal("0.04141")
        assert sum(Decimal(row["usd"]) for row in found["agents"]) == Decimal("0.04141")
        rows = [line.split(",") for line in as_csv(bill).splitlines()[1:]]
        assert sum(Decimal(row[2]) for row in rows if row[0] == "model") == Decimal(rows[-1][2])
        with resume(kit.store, "r", **kit._how()) as again:
            report = again.manager.report("usd")
        assert {name: row["consumed"] for name, row in report.items()} == {
            charge.name: charge.usd for charge in bill.agents
        }

    def test_events_are_kept_and_are_lines_of_json(self, kit):
        kit.run("{budget_usd: 0.025, budget_mode: enforce}", TestResume.TWO)
        kept = [(row.kind, json.loads(row.body)) for row in kit.store.events("r")]
        told = [event for event in kit.events if not isinstance(event, ev.Moved)]
        assert kept == [(event.kind, json.loads(event.as_json())) for event in told]
        line = json.loads(ev.json_line("r", 1.0, told[0]))
        assert (line["event"], line["run"], line["mode"]) == ("run_started", "r", "enforce")
