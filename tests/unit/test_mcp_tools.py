"""The tools of `tbc mcp`: payloads, schemas, refusals, and what such tools were known to get wrong."""

from __future__ import annotations

import asyncio
import json
import logging

import attrs
import jsonschema
import pytest
from mcp import Client

import tbc
from tbc.mcp.payloads import failure
from tbc.mcp.schemas import check_arguments
from tbc.mcp.server import keep_log_quiet, make_server
from tbc.mcp.tools import TOOLS, perform


class Desk:
    """Calls tools as the server does, and checks every answer against its schema."""

    def __init__(self, **how):
        self.manager = tbc.BudgetManager(**how)

    def __call__(self, tool, **arguments):
        arguments = json.loads(json.dumps(arguments))
        try:
            payload = perform(TOOLS[tool], self.manager, arguments)
        except tbc.TBCError as error:
            payload = failure(error, self.manager)
        payload = json.loads(json.dumps(payload))
        jsonschema.validate(payload, TOOLS[tool].answers)
        return payload

    def refused(self, tool, **arguments):
        payload = self(tool, **arguments)
        assert payload["success"] is False
        return payload["error"]

    def team(self, *agents):
        for name, priority, tokens in agents:
            assert self("register_agent", agent_id=name, priority=priority, max_tokens=tokens)["success"]


@pytest.fixture
def desk():
    return Desk()


# -- the list ----------------------------------------------------------------------------------------------

FIVE = [
    "register_agent",
    "record_spend",
    "get_remaining_budget",
    "request_reallocation",
    "get_budget_snapshot",
]


def test_there_are_nine_tools_with_valid_schemas_and_descriptions():
    assert list(TOOLS) == [*FIVE, "hold", "settle", "void", "decide"]
    for tool in TOOLS.values():
        for schema in (tool.takes, tool.answers):
            jsonschema.Draft202012Validator.check_schema(schema)
            assert schema["type"] == "object"
        assert tool.about and tool.title
        assert tool.takes["additionalProperties"] is False
        assert all(each.get("description") for each in tool.takes["properties"].values())


def test_defaults_fit_their_own_schemas():
    for tool in TOOLS.values():
        for name, schema in tool.takes["properties"].items():
            if "default" in schema:
                jsonschema.validate(schema["default"], schema)
            else:
                assert name in tool.takes["required"] or name == "max_tokens"


def test_every_tool_that_writes_has_a_key_or_can_be_repeated():
    for name, tool in TOOLS.items():
        has_key = "key" in tool.takes["properties"]
        assert has_key == (tool.writes and not tool.repeatable), name


def test_the_server_names_itself():
    server = make_server(tbc.BudgetManager())
    assert (server.name, server.version) == ("tbc", tbc.__version__)


def test_an_answer_that_lacks_a_key_does_not_fit_its_schema(desk):
    desk.team(("a", 1, 100))
    payload = desk("get_remaining_budget", agent_id="a")
    del payload["agent"]["remaining"]
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(payload, TOOLS["get_remaining_budget"].answers)


# -- the five ----------------------------------------------------------------------------------------------


def test_register_answers_with_the_agent(desk):
    agent = desk("register_agent", agent_id="a", priority=3, confidence_threshold=0.9)["agent"]
    expected = {
        "agent_id": "a",
        "parent": tbc.ROOT,
        "priority": 3,
        "allocated": 1000,
        "consumed": 0,
        "held": 0,
        "remaining": 1000,
        "min_reserve": 100,
        "confidence_threshold": 0.9,
        "last_confidence": None,
        "gate_closed": False,
    }
    assert agent | expected == agent
    assert "usd" not in agent


def test_below_a_cap_an_agent_owns_what_it_names_and_dollars_are_shown():
    desk = Desk(max_usd="5", max_calls=10)
    agent = desk("register_agent", agent_id="a", max_usd="0.25", max_calls=2)["agent"]
    assert agent["allocated"] is None
    assert (agent["usd"]["allocated"], agent["usd"]["allocated_usd"]) == (250_000_000, "0.25")
    assert agent["calls"]["allocated"] == 2
    below = desk("register_agent", agent_id="b", parent="a", max_usd="0.1")["agent"]
    assert below["parent"] == "a"
    refused = desk.refused("register_agent", agent_id="c", max_usd="5")
    assert (refused["code"], refused["details"]["missing_usd"]) == ("carve_out_refused", "0.25")


def test_registering_again_resets_nothing(desk):
    desk.team(("a", 1, 100))
    desk("record_spend", agent_id="a", input_tokens=60)
    again = desk("register_agent", agent_id="a", max_tokens=100)["agent"]
    assert (again["consumed"], again["remaining"]) == (60, 40)
    assert desk.refused("register_agent", agent_id="a", max_tokens=50)["code"] == "agent_exists"
    replaced = desk("register_agent", agent_id="a", max_tokens=80, replace=True)["agent"]
    assert (replaced["consumed"], replaced["remaining"]) == (60, 20)


def test_a_spend_is_booked_with_its_parts_and_its_label(desk):
    desk.team(("a", 1, 1000))
    found = desk("record_spend", agent_id="a", input_tokens=30, output_tokens=12, task="read")
    assert found["total_tokens"] == 42
    assert not found["reallocation_triggered"]
    assert found["donors"] == found["receivers"] == []
    assert found["agent_state"]["consumed"] == 42
    assert desk.manager.ledger.entries()[-1].note == "read"


def test_a_spend_of_nothing_is_refused_unless_it_cost_dollars():
    desk = Desk(max_usd="1")
    desk("register_agent", agent_id="a", max_usd="1")
    assert desk.refused("record_spend", agent_id="a")["code"] == "invalid_request"
    assert desk("record_spend", agent_id="a", usd="0.1")["agent_state"]["usd"]["remaining_usd"] == "0.9"


def test_a_spend_is_priced_by_its_model_input_and_output_apart():
    prices = {"m": {"input_per_million": "1", "output_per_million": "10"}}
    desk = Desk(max_usd="1", prices=prices)
    desk("register_agent", agent_id="a", max_usd="1")
    found = desk("record_spend", agent_id="a", input_tokens=1000, output_tokens=100, model="m")
    assert found["agent_state"]["usd"]["consumed_usd"] == "0.002"
    hold = desk("hold", agent_id="a", tokens=2000, model="m")["hold"]
    assert hold["held"]["usd"]["amount_usd"] == "0.02"
    ended = desk("settle", hold_id=hold["hold_id"], input_tokens=1000, output_tokens=100)["settlement"]
    assert ended["booked"]["usd"]["amount_usd"] == "0.002"


def test_donors_stand_in_drain_order_not_in_that_of_registration(desk):
    desk.team(("third", 3, 1000), ("first", 1, 1000), ("needy", 5, 100))
    found = desk("record_spend", agent_id="needy", input_tokens=1500)
    assert found["reallocation_triggered"]
    assert [(each["agent_id"], each["tokens_given"]) for each in found["donors"]] == [
        ("first", 900),
        ("third", 500),
    ]
    assert found["donors"][0]["remaining_after"] == 100
    assert found["receivers"] == [
        {"agent_id": "needy", "priority": 5, "remaining_after": 0, "tokens_received": 1400}
    ]


def test_a_spend_that_nobody_covers_is_booked_and_says_who_gave(desk):
    desk.team(("low", 1, 1000), ("needy", 5, 100))
    found = desk("record_spend", agent_id="needy", input_tokens=5000)
    error = found["error"]
    assert (error["code"], error["retryable"]) == ("overrun", False)
    assert error["details"] == {
        "agent_name": "needy",
        "axis": "tokens",
        "requested": 5000,
        "available": 1000,
    }
    assert [(each["agent_id"], each["tokens_given"]) for each in found["donors"]] == [("low", 900)]
    assert found["receivers"][0]["tokens_received"] == 900
    assert (found["agent_state"]["consumed"], found["agent_state"]["debt"]) == (5000, 4000)


def test_tokens_never_come_from_a_more_important_agent(desk):
    desk.team(("high", 9, 1000), ("low", 1, 1000), ("needy", 5, 100))
    found = desk("request_reallocation", agent_id="needy", tokens_needed=1000)
    assert [each["agent_id"] for each in found["donors"]] == ["low"]
    assert (found["tokens_recovered"], found["shortfall_remaining"], found["fully_covered"]) == (
        900,
        100,
        False,
    )
    assert found["rationale"] == ["'low' (priority 1) had 900 tokens to spare for 'needy' (priority 5)."]
    assert found["agent_state"]["remaining"] == 1000


def test_the_treasury_gives_first():
    desk = Desk(max_tokens=500)
    desk.team(("low", 1, 100), ("needy", 5, 100))
    found = desk("request_reallocation", agent_id="needy", tokens_needed=350)
    assert [(each["agent_id"], each["tokens_given"]) for each in found["donors"]] == [
        (tbc.ROOT, 300),
        ("low", 50),
    ]
    assert found["rationale"][0].startswith("The treasury had 300 tokens")
    assert found["fully_covered"]


def test_what_a_parent_hands_down_it_did_not_give(desk):
    desk.team(("rich", 1, 1000), ("team", 3, 100))
    assert desk("register_agent", agent_id="scout", parent="team", max_tokens=0)["success"]
    found = desk("request_reallocation", agent_id="scout", tokens_needed=500)
    given = {each["agent_id"]: each["tokens_given"] for each in found["donors"]}
    assert sum(given.values()) == found["tokens_recovered"] == 500
    assert given["rich"] == 500 - given.get("team", 0)
    assert "hand_down" in {each["kind"] for each in found["transfers"]}


def test_the_snapshot_sums_all_accounts_and_the_treasury():
    desk = Desk(max_tokens=1000)
    desk.team(("a", 1, 300), ("b", 2, 200))
    desk("record_spend", agent_id="a", input_tokens=50)
    desk("hold", agent_id="b", tokens=70)
    desk("register_agent", agent_id="c", max_tokens=10)
    desk.manager.close_agent("c")
    found = desk("get_budget_snapshot")
    assert [each["agent_id"] for each in found["agents"]] == ["a", "b", "c"]
    assert found["agents"][2]["closed"]
    assert found["agent_count"] == 3
    assert found["treasury"]["allocated"] == 500
    assert (found["total_allocated"], found["total_consumed"], found["total_remaining"]) == (1000, 50, 880)


def test_an_empty_snapshot_is_an_answer(desk):
    found = desk("get_budget_snapshot")
    assert (found["agents"], found["agent_count"], found["total_allocated"]) == ([], 0, 0)


# -- before and after a call -------------------------------------------------------------------------------


def test_a_hold_borrows_and_gives_back(desk):
    desk.team(("low", 1, 1000), ("high", 5, 100))
    found = desk("hold", agent_id="high", tokens=600, key="k", operation="read", expires_s=60)
    hold = found["hold"]
    assert hold["held"] == {"tokens": {"amount": 600}}
    assert [(each["donor"], each["amount"]) for each in hold["loans"]] == [("low", 500)]
    assert (hold["key"], hold["operation"], hold["state"]) == ("k", "read", "open")
    assert 0 < hold["expires_in_s"] <= 60
    assert found["decision"]["status"] == "fits_with_loans"
    assert found["agent_state"]["held"] == 600
    ended = desk("settle", hold_id=hold["hold_id"], tokens=150)
    assert ended["settlement"]["booked"]["tokens"]["amount"] == 150
    assert ended["settlement"]["booked"]["tokens"]["returned"][0]["amount"] == 450
    assert desk("get_remaining_budget", agent_id="low")["agent"]["remaining"] == 950


def test_ends_can_be_repeated_and_not_mixed(desk):
    desk.team(("a", 1, 1000))
    first, second = (desk("hold", agent_id="a", tokens=10)["hold"]["hold_id"] for _ in "ab")
    assert not desk("settle", hold_id=first, tokens=4)["settlement"]["repeated"]
    assert desk("settle", hold_id=first, tokens=4)["settlement"]["repeated"]
    assert desk("get_remaining_budget", agent_id="a")["agent"]["consumed"] == 4
    refused = desk("void", hold_id=first)["error"]
    assert (refused["code"], refused["details"]["state"]) == ("hold_ended", "settled")
    assert desk("void", hold_id=second)["settlement"]["state"] == "voided"
    assert desk("void", hold_id=second)["settlement"]["repeated"]
    assert desk.refused("settle", hold_id=99, tokens=1)["code"] == "unknown_hold"


def test_a_settle_that_says_nothing_books_the_whole_hold_as_an_estimate(desk):
    desk.team(("a", 1, 1000))
    hold_id = desk("hold", agent_id="a", tokens=10)["hold"]["hold_id"]
    booked = desk("settle", hold_id=hold_id)["settlement"]["booked"]["tokens"]
    assert (booked["amount"], booked["estimated"]) == (10, True)


def test_a_settle_above_the_hold_is_booked_and_says_what_is_owed(desk):
    desk.team(("a", 1, 100))
    hold_id = desk("hold", agent_id="a", tokens=10)["hold"]["hold_id"]
    found = desk("settle", hold_id=hold_id, input_tokens=100, output_tokens=50)
    assert found["success"]
    assert found["settlement"]["booked"]["tokens"]["overrun"] == 50
    assert found["agent_state"]["debt"] == 50


def test_a_refused_hold_moves_nothing_and_carries_its_decision(desk):
    desk.team(("low", 1, 1000), ("high", 5, 100))
    found = desk("hold", agent_id="high", tokens=5000)
    error = found["error"]
    assert (error["code"], error["retryable"]) == ("budget_exhausted", False)
    assert error["decision"]["siblings"] == 900
    assert "top up" in error["hint"]
    assert found["agent_state"]["remaining"] == 100
    smaller = desk("hold", agent_id="high", tokens=5000, at_least=500)["hold"]
    assert smaller["held"]["tokens"]["amount"] == 1000


def test_busy_says_so(desk):
    desk.team(("a", 1, 100))
    desk("hold", agent_id="a", tokens=80)
    error = desk.refused("hold", agent_id="a", tokens=50)
    assert error["code"] == "budget_busy"
    assert "Busy, not exhausted" in error["hint"]


def test_decide_answers_a_refusal_as_an_answer(desk):
    desk.team(("a", 1, 100))
    before = desk("get_budget_snapshot")
    assert desk("decide", agent_id="a", tokens=500)["decision"]["verdict"] == "REFUSE"
    assert desk("decide", agent_id="a", tokens=50)["decision"]["verdict"] == "ALLOW"
    assert desk("get_budget_snapshot") == before


def test_an_unknown_price_is_not_free():
    desk = Desk(max_usd="1")
    desk("register_agent", agent_id="a", max_usd="1")
    for tool in ("hold", "decide"):
        error = desk.refused(tool, agent_id="a", tokens=10, model="nobody-s-model")
        assert (error["code"], error["details"]["model"]) == ("unknown_price", "nobody-s-model")


def test_audit_mode_refuses_nothing_and_says_what_would_have_been():
    desk = Desk(mode="audit")
    desk.team(("a", 1, 100))
    found = desk("hold", agent_id="a", tokens=500)
    assert (found["decision"]["verdict"], found["decision"]["allowed"]) == ("REFUSE", True)
    assert desk("record_spend", agent_id="a", input_tokens=500)["agent_state"]["debt"] > 0


# -- the gate ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["record_spend", "settle"])
def test_the_gate_closes_at_the_threshold_and_refuses(desk, how):
    desk("register_agent", agent_id="a", confidence_threshold=0.9)
    hold_id = desk("hold", agent_id="a", tokens=10)["hold"]["hold_id"]
    if how == "settle":
        state = desk("settle", hold_id=hold_id, tokens=5, confidence=0.9)["agent_state"]
    else:
        state = desk("record_spend", agent_id="a", input_tokens=5, confidence=0.9)["agent_state"]
    assert (state["gate_closed"], state["last_confidence"]) == (True, 0.9)
    error = desk.refused("hold", agent_id="a", tokens=1)
    assert error["code"] == "gate_closed"
    assert error["decision"]["confidence_threshold"] == 0.9
    assert desk("decide", agent_id="a", tokens=1)["decision"]["status"] == "gate_closed"


def test_a_closed_gate_says_once_what_opens_it_here_too(desk):
    desk("register_agent", agent_id="a", confidence_threshold=0.9, max_usd="1")
    desk("record_spend", agent_id="a", input_tokens=5, confidence=0.95)
    error = desk("hold", agent_id="a", tokens=1, usd="0.01")["error"]
    assert len(error["decision"]["others"]) == 1
    for text in (error["hint"], error["message"], error["decision"]["reason"]):
        assert text.count("opens") == 1 and "()" not in text and "reset_confidence" not in text
    desk("record_spend", agent_id="a", input_tokens=5, confidence=0.5)
    assert desk("hold", agent_id="a", tokens=1, usd="0.01")["success"]


def test_what_was_spent_behind_a_closed_gate_is_booked(desk):
    desk("register_agent", agent_id="a", confidence_threshold=0.9)
    desk("record_spend", agent_id="a", input_tokens=5, confidence=0.95)
    state = desk("record_spend", agent_id="a", input_tokens=7)["agent_state"]
    assert (state["consumed"], state["gate_closed"]) == (12, True)


def test_below_the_threshold_the_gate_stays_open(desk):
    desk("register_agent", agent_id="a", confidence_threshold=0.9)
    desk("record_spend", agent_id="a", input_tokens=5, confidence=0.89)
    assert desk("hold", agent_id="a", tokens=1)["success"]


def test_a_repeated_settle_does_not_close_a_gate_that_was_opened_since(desk):
    desk("register_agent", agent_id="a", confidence_threshold=0.9)
    hold_id = desk("hold", agent_id="a", tokens=10)["hold"]["hold_id"]
    desk("settle", hold_id=hold_id, tokens=5, confidence=0.95)
    desk.manager.reset_confidence("a")
    again = desk("settle", hold_id=hold_id, tokens=5, confidence=0.95)
    assert again["settlement"]["repeated"]
    assert not again["agent_state"]["gate_closed"]


def test_a_late_settle_of_an_account_that_was_closed_is_booked_with_its_confidence_unheard():
    now = [0.0]
    desk = Desk(clock=lambda: now[0])
    desk.team(("a", 1, 100))
    hold_id = desk("hold", agent_id="a", tokens=10, expires_s=5)["hold"]["hold_id"]
    now[0] = 6.0
    desk.manager.close_agent("a")
    found = desk("settle", hold_id=hold_id, tokens=4, confidence=0.9)
    assert (found["settlement"]["late"], found["agent_state"]["consumed"]) == (True, 4)
    assert found["agent_state"]["last_confidence"] is None


# -- keys --------------------------------------------------------------------------------------------------


def test_a_repeated_key_changes_nothing_and_finds_the_first_outcome(desk):
    desk.team(("low", 1, 1000), ("high", 5, 100))
    for tool, arguments in {
        "record_spend": {"input_tokens": 300, "confidence": 0.4},
        "request_reallocation": {"tokens_needed": 30},
        "hold": {"tokens": 200},
    }.items():
        first = desk(tool, agent_id="high", key=f"{tool} 1", **arguments)
        books = desk("get_budget_snapshot")
        again = desk(tool, agent_id="high", key=f"{tool} 1", **arguments)
        assert desk("get_budget_snapshot") == books
        for payload in (first, again):
            payload.get("hold", {}).pop("expires_in_s", None)
        assert again == first


def test_refusals_and_overruns_are_repeated_too(desk):
    desk.team(("a", 1, 100))
    refused = desk.refused("hold", agent_id="a", tokens=200, key="h")
    desk("register_agent", agent_id="a", max_tokens=1000, replace=True)
    assert desk.refused("hold", agent_id="a", tokens=200, key="h") == refused
    overrun = desk.refused("record_spend", agent_id="a", input_tokens=2000, key="s")
    assert desk.refused("record_spend", agent_id="a", input_tokens=2000, key="s") == overrun
    assert desk("get_remaining_budget", agent_id="a")["agent"]["consumed"] == 2000


def test_another_request_under_the_same_key_is_a_conflict(desk):
    desk.team(("a", 1, 100))
    desk("hold", agent_id="a", tokens=5, key="k")
    for tool, arguments in (("hold", {"tokens": 6}), ("record_spend", {"input_tokens": 5})):
        assert desk.refused(tool, agent_id="a", key="k", **arguments)["code"] == "key_conflict"


# -- bad input ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tool", "arguments", "where"),
    [
        ("record_spend", {"agent_id": "a", "input_tokens": -1}, "input_tokens"),
        ("record_spend", {"agent_id": "a", "input_tokens": "3"}, "input_tokens"),
        ("record_spend", {"agent_id": "a", "input_tokens": 3.5}, "input_tokens"),
        ("record_spend", {"agent_id": "a", "input_tokens": True}, "input_tokens"),
        ("record_spend", {"agent_id": "a", "input_tokens": None}, "input_tokens"),
        ("record_spend", {"agent_id": "a", "input_tokens": 2**53}, "input_tokens"),
        ("record_spend", {"agent_id": "a", "input_tokens": 1e300}, "input_tokens"),
        ("record_spend", {"agent_id": "a", "input_tokens": 1, "confidence": 7.5}, "confidence"),
        ("record_spend", {"input_tokens": 1}, "agent_id"),
        ("record_spend", {"agent_id": "", "input_tokens": 1}, "agent_id"),
        ("record_spend", {"agent_id": "a", "input_tokens": 1, "key": ""}, "key"),
        ("record_spend", {"agent_id": "a", "input_token": 1}, "input_token"),
        ("record_spend", {"agent_id": "a"}, "input_tokens"),
        ("register_agent", {"agent_id": "b", "priority": 0}, "priority"),
        ("register_agent", {"agent_id": ["b"]}, "agent_id"),
        ("register_agent", {"agent_id": "b", "max_usd": -1}, "max_usd"),
        ("request_reallocation", {"agent_id": "a", "tokens_needed": 0}, "tokens_needed"),
        ("hold", {"agent_id": "a", "tokens": 1, "expires_s": 0}, "expires_s"),
        ("settle", {"tokens": 1}, "hold_id"),
        ("get_budget_snapshot", {"agent_id": "a"}, "agent_id"),
    ],
)
def test_bad_arguments_are_one_error_that_names_them(desk, tool, arguments, where):
    desk.team(("a", 1, 100))
    before = desk("get_budget_snapshot")
    error = desk.refused(tool, **arguments)
    assert (error["code"], error["retryable"]) == ("invalid_request", False)
    assert [path for path, _ in error["details"]["problems"]] == [where]
    assert desk("get_budget_snapshot") == before


def test_all_that_is_wrong_is_said_with_the_name_that_was_meant(desk):
    error = desk.refused("hold", agnt_id="a", tokens=-1)
    assert dict(error["details"]["problems"]) == {
        "agent_id": "is missing",
        "agnt_id": "unknown key; did you mean agent_id?",
        "tokens": "must be >= 0, not -1",
    }


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        ({"agent_id": "a", "tokens": 1, "usd": "cheap"}, "invalid_amount"),
        ({"agent_id": tbc.ROOT, "tokens": 1}, None),
        ({"agent_id": "nobody", "tokens": 1}, "unknown_agent"),
    ],
)
def test_what_only_the_books_can_refuse_has_the_same_shape(desk, arguments, code):
    desk.team(("a", 1, 100))
    payload = desk("hold", **arguments)
    assert payload["success"] if code is None else payload["error"]["code"] == code


def test_not_a_number_is_no_confidence(desk):
    desk.team(("a", 1, 100))
    for tool, arguments in (
        ("record_spend", {"agent_id": "a", "input_tokens": 1}),
        ("settle", {"hold_id": 2}),
    ):
        desk("hold", agent_id="a", tokens=1)
        with pytest.raises(tbc.InvalidAmountError):
            perform(TOOLS[tool], desk.manager, {**arguments, "confidence": float("nan")})
    assert desk("get_remaining_budget", agent_id="a")["agent"]["consumed"] == 0


def test_a_whole_number_may_be_written_with_a_point():
    given = check_arguments(TOOLS["hold"].takes, {"agent_id": "a", "tokens": 3.0, "expires_s": 2.0})
    assert type(given["tokens"]) is int and given["tokens"] == 3
    assert type(given["expires_s"]) is float


def test_an_unknown_agent_is_told_who_there_is(desk):
    desk.team(("b", 1, 1), ("a", 1, 1))
    found = desk("get_remaining_budget", agent_id="nobody")
    assert found["known_agents"] == ["a", "b"]
    assert found["error"]["details"] == {"agent_name": "nobody"}


def test_long_values_are_not_repeated(desk):
    secret = "prompt " * 5000
    payload = desk("record_spend", agent_id="a", input_tokens=secret)
    assert len(json.dumps(payload)) < 1000
    payload = desk("record_spend", agent_id="a", input_tokens=1, task=secret)
    assert len(json.dumps(payload)) < 1000


# -- what is not ours ----------------------------------------------------------------------------------------


def test_a_fault_of_the_server_says_nothing_of_the_request(monkeypatch, capsys):
    def broken(manager, given):
        raise ValueError(f"cannot read {given['agent_id']}")

    monkeypatch.setitem(TOOLS, "decide", attrs.evolve(TOOLS["decide"], run=broken))
    monkeypatch.setattr(logging.root, "handlers", [])
    keep_log_quiet()

    async def session():
        async with Client(make_server(tbc.BudgetManager())) as client:
            return await client.call_tool("decide", {"agent_id": "hunter2"})

    result = asyncio.run(session())
    assert result.is_error
    assert result.structured_content["error"]["code"] == "internal_error"
    said = capsys.readouterr()
    assert "decide: ValueError in" in said.err
    assert "hunter2" not in said.err + said.out + json.dumps(result.structured_content)


def test_the_log_of_others_says_only_where(monkeypatch, capsys):
    monkeypatch.setattr(logging.root, "handlers", [])
    keep_log_quiet()
    try:
        raise ValueError("hunter2")
    except ValueError:
        logging.getLogger("mcp.somewhere").exception("session %s", "hunter2")
    logging.getLogger("mcp.somewhere").warning("hunter2")
    first, second = capsys.readouterr().err.splitlines()
    assert first.startswith("tbc mcp: ValueError in mcp.somewhere, line ")
    assert second.startswith("tbc mcp: warning in mcp.somewhere, line ")
