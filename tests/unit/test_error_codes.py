"""Every error has one stable code, and is rendered with its numbers and without secrets."""

from __future__ import annotations

import ast
import inspect
import json
import re
from pathlib import Path

import attrs
import cattrs
import pytest

import tbc
from tbc import errors, run_errors
from tbc.error_codes import BUDGET_BUSY, ERROR_CODES, INTERNAL_ERROR, code_of, error_object
from tbc.wire import settlement_object, usd_string

SERVICE = Path(tbc.__file__).parent / "service"
PAGE = Path(__file__).resolve().parents[2] / "docs" / "errors.md"


def exception_classes():
    for module in (errors, run_errors):
        for _, kind in inspect.getmembers(module, inspect.isclass):
            if issubclass(kind, BaseException) and kind.__module__ == module.__name__:
                yield kind


def every_code():
    return [BUDGET_BUSY, *ERROR_CODES.values(), INTERNAL_ERROR]


def without_code(classes):
    return [kind.__name__ for kind in classes if kind not in ERROR_CODES]


def test_every_exception_class_has_a_code_of_its_own():
    assert without_code(exception_classes()) == []


def test_the_walk_over_the_classes_sees_one_without_a_code():
    class NewError(tbc.TBCError):
        pass

    assert without_code([tbc.TBCError, NewError]) == ["NewError"]
    assert tbc.OverrunError in set(exception_classes())


def test_codes_are_unique_and_look_alike():
    codes = [each.code for each in every_code()]
    assert len(codes) == len(set(codes))
    assert all(re.fullmatch(r"[a-z]+(_[a-z]+)*", code) for code in codes)


def calls_of(name, folder=SERVICE):
    """Yield every call of that name in the modules of a folder."""
    for file in sorted(folder.rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and getattr(node.func, "id", None) == name:
                yield node


def problems_of_the_service():
    """Return status and retryable of every code that the service has of its own."""
    found = {}
    for call in calls_of("Problem"):
        status, code = (ast.literal_eval(each) for each in call.args[:2])
        again = any(each.arg == "retryable" and ast.literal_eval(each.value) for each in call.keywords)
        assert found.setdefault(code, (status, again)) == (status, again), code
    return found


def test_the_page_lists_every_code_as_it_is():
    rows = re.findall(r"^\| `(\w+)` \| (\d+) \| (yes|no) \|", PAGE.read_text(encoding="utf-8"), flags=re.M)
    listed = {code: (int(status), retryable == "yes") for code, status, retryable in rows}
    assert len(rows) == len(listed)
    known = {each.code: (each.status, each.retryable) for each in every_code()}
    own = problems_of_the_service()
    assert not known.keys() & own.keys()
    assert own["unauthorized"] == (401, False) and own["rate_limited"] == (429, True)
    assert listed == known | own


def test_the_page_lists_every_cause_that_runs_end_with():
    causes = {
        arg.value for call in calls_of("_End") for arg in call.args[2:3] if isinstance(arg, ast.Constant)
    }
    assert "latency_used_up" in causes
    _, _, part = PAGE.read_text(encoding="utf-8").partition("## Of runs")
    rows = re.findall(r"^\| (`\w+`(?:, `\w+`)*) \|", part, flags=re.M)
    assert {name.strip("`") for row in rows for name in row.split(", ")} == causes | {
        "step_raised",
        "cancelled",
    }


def test_budget_refusals_are_402_or_403_and_never_retryable():
    for kind, code in ERROR_CODES.items():
        if issubclass(kind, tbc.BudgetExceededError):
            assert code.status in (402, 403)
            assert not code.retryable
    assert BUDGET_BUSY.status == 402
    assert not BUDGET_BUSY.retryable


def test_every_detail_is_an_attribute_of_its_class():
    for kind, code in ERROR_CODES.items():
        text = "".join(inspect.getsource(each) for each in kind.__mro__ if each.__module__.startswith("tbc"))
        for name in code.details:
            assert f"self.{name}" in text, (kind, name)


def refusal(tokens, held=0, **how):
    manager = tbc.BudgetManager(**how)
    manager.register_agent("scout", max_tokens=1_000 if not how else 0)
    if held:
        manager.hold("scout", held)
    with pytest.raises(tbc.BudgetExceededError) as caught:
        manager.hold("scout", tokens)
    return error_object(caught.value)


def test_busy_is_told_from_exhausted():
    busy, exhausted = refusal(700, held=500), refusal(1_001)
    assert busy["code"] == "budget_busy"
    assert exhausted["code"] == "budget_exhausted"
    assert busy["decision"]["status"] == "busy"
    assert busy["hint"] == busy["decision"]["remedy"] != ""
    assert exhausted["details"] == {
        "agent_name": "scout",
        "axis": "tokens",
        "requested": 1_001,
        "available": 1_000,
    }


def test_who_is_exhausted_on_one_axis_is_not_merely_busy():
    manager = tbc.BudgetManager(max_tokens=1_000, max_usd="1")
    manager.register_agent("scout", max_tokens=0)
    manager.hold("scout", 900, usd="0.10")
    with pytest.raises(tbc.BudgetExceededError) as caught:
        manager.hold("scout", 500, usd="2")
    found = error_object(caught.value)
    assert {each["status"] for each in (found["decision"], *found["decision"]["others"])} == {
        "busy",
        "exhausted",
    }
    assert found["code"] == "budget_exhausted"


def test_dollars_are_integers_and_decimal_strings():
    manager = tbc.BudgetManager(max_usd="0.50")
    manager.register_agent("scout")
    with pytest.raises(tbc.BudgetExceededError) as caught:
        manager.hold("scout", usd="0.75")
    found = error_object(caught.value)
    assert found["details"]["requested"] == 750_000_000
    assert found["details"]["requested_usd"] == "0.75"
    assert found["decision"]["available_usd"] == "0.5"
    assert json.loads(json.dumps(found)) == found


@pytest.mark.parametrize(
    ("nano", "dollars"), [(0, "0"), (1, "0.000000001"), (-50_000_000, "-0.05"), (12 * 10**9, "12")]
)
def test_dollars_are_written_plainly(nano, dollars):
    assert usd_string(nano) == dollars


def test_an_overrun_says_what_was_booked():
    manager = tbc.BudgetManager(max_tokens=100)
    manager.register_agent("scout", max_tokens=0)
    with pytest.raises(tbc.OverrunError) as caught:
        manager.record_usage("scout", 130)
    caught.value.result = "the secret answer"
    found = error_object(caught.value)
    assert found["code"] == "overrun"
    assert found["settlement"]["booked"]["tokens"]["amount"] == 130
    assert found["settlement"]["booked"]["tokens"]["overrun"] == 30
    assert "secret" not in json.dumps(found)


def test_a_settlement_names_every_axis():
    manager = tbc.BudgetManager(max_tokens=1_000, max_usd="1", max_calls=5)
    manager.register_agent("scout", max_tokens=0)
    found = settlement_object(manager.hold("scout", 100, usd="0.2").settle(tokens=60, usd="0.1"))
    assert {axis: each["amount"] for axis, each in found["booked"].items()} == {
        "tokens": 60,
        "usd": 100_000_000,
        "calls": 1,
    }
    assert found["booked"]["usd"]["held_usd"] == "0.2"
    assert found["booked"]["tokens"]["returned"][0]["recipient"] == tbc.ROOT


def test_a_hold_that_ended_says_how():
    manager = tbc.BudgetManager()
    manager.register_agent("scout")
    hold = manager.hold("scout", 10)
    hold.settle(tokens=4)
    with pytest.raises(tbc.HoldEndedError) as caught:
        hold.void()
    found = error_object(caught.value)
    assert (found["code"], code_of(caught.value).status) == ("hold_ended", 409)
    assert found["settlement"]["booked"]["tokens"]["amount"] == 4


def test_what_is_not_ours_says_nothing_of_itself():
    found = error_object(ValueError("password=hunter2"))
    assert found["code"] == "internal_error"
    assert "hunter2" not in json.dumps(found)


def test_a_subclass_of_a_users_own_has_the_code_of_its_parent():
    class MyRefusal(tbc.GateClosedError):
        pass

    assert code_of(MyRefusal("scout", 1, 0)).code == "gate_closed"


@attrs.define
class Order:
    agent: str
    tokens: int = attrs.field(validator=attrs.validators.ge(0))


@pytest.mark.parametrize(
    ("body", "paths"),
    [
        ({"tokens": "x"}, {"agent", "tokens"}),
        ({"agent": "a", "tokens": -1}, {""}),
        ({"agent": "a", "b": 1}, {""}),
    ],
)
def test_what_cattrs_cannot_read_is_an_invalid_request(body, paths):
    converter = cattrs.Converter(forbid_extra_keys=True)
    with pytest.raises(cattrs.BaseValidationError) as caught:
        converter.structure(body, Order)
    found = error_object(caught.value)
    assert (found["code"], code_of(caught.value).status) == ("invalid_request", 422)
    assert paths <= {path for path, _ in found["details"]["problems"]}


def test_an_unknown_hold_and_a_bad_request_name_what_is_wrong():
    assert error_object(tbc.UnknownHoldError(7))["details"] == {"hold_id": 7}
    bad = tbc.InvalidRequestError([("tokens", "must be an int"), ("", "too large")])
    assert str(bad) == "tokens: must be an int; too large"
