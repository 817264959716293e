"""Workflow files: what is read, what is refused, and what the refusal says."""

from __future__ import annotations

import re
import sys
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from tbc.errors import TBCError
from tbc.files import DEPTH_MAX, SIZE_MAX
from tbc.run_errors import UnresolvedReferenceError, WorkflowFileError
from tbc.runs.config import changed_steps, downstream, load_workflow, parse_workflow
from tbc.runs.references import Reference, find_references, render
from tbc.runs.workflow import Agent, Limits

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "workflows.md"

START = """
name: tea
agents: {writer: {}}
"""
STEP = "{id: draft, agent: writer, call: 'tea.steps:draft'}"
SMALL = f"{START}steps: [{STEP}]\n"


def problems(text: str, path: str = "w.yaml") -> dict[str, str]:
    with pytest.raises(WorkflowFileError) as caught:
        parse_workflow(text, path)
    return dict(caught.value.problems)


def steps(*lines: str, more: str = "") -> str:
    return (
        START
        + more
        + "steps:\n"
        + "".join(f"  - {{agent: writer, call: 'a.b:c', {line}}}\n" for line in lines)
    )


# --- what is read -----------------------------------------------------------------------------------------


def test_a_small_file_has_the_defaults():
    workflow = parse_workflow(SMALL, "w.yaml")

    assert workflow.limits == Limits()
    assert (workflow.limits.budget_usd, workflow.limits.budget_tokens) == (None, None)
    assert workflow.limits.budget_mode == "audit"
    assert workflow.limits.warn_at == (Decimal("0.5"), Decimal("0.8"), Decimal(1))
    assert workflow.agents == {"writer": Agent()}
    assert workflow.agents["writer"].max_tokens is None
    assert workflow.unknown_price == "refuse"
    assert workflow.step("draft").needs == ()
    assert (workflow.path, workflow.source) == ("w.yaml", SMALL)


def test_the_example_of_the_document_is_read_and_names_every_key():
    yaml, toml = (
        re.search(rf"```{kind}\n(.*?)```", DOCUMENT.read_text(encoding="utf-8"), re.DOTALL)[1]  # type: ignore[index]
        for kind in ("yaml", "toml")
    )
    workflow = parse_workflow(yaml)

    assert [step.id for step in workflow.steps] == ["plan", "read-1", "read-2", "write"]
    assert workflow.step("write").needs == ("plan", "read-1", "read-2")
    assert workflow.step("write").fallback_when == Decimal("0.8")
    assert workflow.agents["writer"].max_usd == Decimal("0.5")
    assert workflow.agents["reader-1"].parent == "lead"
    assert parse_workflow(toml, "small.toml").limits.budget_usd == Decimal("0.05")
    from tbc.runs.workflow import Outline, Step

    keys = {name for kind in (Outline, Limits, Agent, Step) for name in kind.__annotations__}
    assert {key for key in keys if not re.search(rf"\b{key}:", yaml)} == set()
    assert {key for key in keys if f"`{key}`" not in DOCUMENT.read_text(encoding="utf-8")} == set()


@pytest.mark.parametrize("written", ["0.50", '"$0.50"', '"0.50"', "'$0.5'", "5e-1"])
def test_dollars_may_be_written_as_numbers_or_text(written):
    limits = parse_workflow(f"{SMALL}limits: {{budget_usd: {written}}}").limits

    assert limits.budget_usd == Decimal("0.5")


def test_a_fallback_model_is_taken_when_short_unless_told():
    workflow = parse_workflow(
        steps("id: a, fallback_model: m", "id: b, fallback_model: m, fallback_when: 0.8", "id: c")
    )

    assert [step.fallback_when for step in workflow.steps] == ["short", Decimal("0.8"), None]


def test_yaml_is_read_by_the_rules_of_1_2():
    values = parse_workflow(
        steps("id: a, input: [no, on, 12:30, 010, 2024-01-01, 1e3, 0x10, 1_000, true, ~]")
    ).step("a")

    assert values.input == ["no", "on", "12:30", 10, "2024-01-01", 1000.0, "0x10", "1_000", True, None]


def test_dates_of_toml_are_text():
    text = 'name="t"\n[agents.w]\n[[steps]]\nid="a"\nagent="w"\ncall="a:b"\ninput=[2024-01-01, 07:32:00]'

    assert parse_workflow(text, "t.TOML").step("a").input == ["2024-01-01", "07:32:00"]


def test_anchors_and_merges_work():
    text = steps("id: a, input: {x: &x {k: 1}}", "id: b, input: {<<: {k: 2, m: 3}, k: 4}", "id: c, input: *x")
    workflow = parse_workflow(text)

    assert workflow.step("b").input == {"k": 4, "m": 3}
    assert workflow.step("c").input == {"k": 1}


def test_loading_imports_nothing_that_the_file_names(tmp_path, monkeypatch):
    (tmp_path / "trap_for_loaders.py").write_text("raise SystemExit('imported')\n")
    monkeypatch.syspath_prepend(tmp_path)
    workflow = parse_workflow(SMALL.replace("tea.steps:draft", "trap_for_loaders:run"))

    assert workflow.step("draft").call == "trap_for_loaders:run"
    assert "trap_for_loaders" not in sys.modules


def test_a_file_is_loaded_again_from_the_text_that_is_kept(tmp_path):
    path = tmp_path / "w.yaml"
    path.write_bytes(b"\xef\xbb\xbf" + SMALL.encode())
    workflow = load_workflow(path)
    again = parse_workflow(workflow.source, workflow.path)

    assert again == workflow
    assert again.fingerprint == workflow.fingerprint
    assert workflow.path == str(path)


# --- what is refused --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "path", "meant"),
    [
        ("runtime: {budget_usd: 5}", "runtime.budget_usd", "limits.budget_usd"),
        ("cost: {budget_usd: 5}", "cost.budget_usd", "limits.budget_usd"),
        ("budget_mod: enforce", "budget_mod", "limits.budget_mode"),
        ("limits: {budget_mod: enforce}", "limits.budget_mod", "budget_mode"),
        ("limits: {budget_usdd: 5}", "limits.budget_usdd", "budget_usd"),
        ("limits: {Budget-USD: 5}", "limits.Budget-USD", "budget_usd"),
        ("limit: {budget_usd: 5}", "limit", "limits"),
        ("budget_usd: 5", "budget_usd", "limits.budget_usd"),
        ("limits: {max_usd: 5}", "limits.max_usd", "agents.NAME.max_usd"),
        ("limits: {priority: 5}", "limits.priority", "agents.NAME.priority"),
        ("model: m", "model", "steps[].model"),
    ],
)
def test_a_key_in_the_wrong_place_or_misspelled_is_refused_with_the_right_one(text, path, meant):
    assert problems(SMALL + text) == {path: f"unknown key; did you mean {meant}?"}


def test_a_key_like_no_other_is_refused_with_the_known_ones():
    found = problems(f"{SMALL}limits: {{qqq: 1}}")

    assert found == {"limits.qqq": "unknown key; known are budget_usd, budget_tokens, budget_mode, warn_at"}


NO_MONEY = [
    "-1",
    "-0.01",
    ".inf",
    "-.inf",
    ".nan",
    "yes",
    "true",
    "lots",
    "'5 USD'",
    "'$'",
    "''",
    "[5]",
    "{a: 1}",
]


@pytest.mark.parametrize("amount", [*NO_MONEY, "NaN", "Infinity", "1e400", "'-$5'", "12:30", "0x10"])
def test_story_18_nonsense_is_no_budget_in_yaml(amount):
    assert list(problems(f"{SMALL}limits: {{budget_usd: {amount}}}")) == ["limits.budget_usd"]
    assert "limits.budget_tokens" in problems(f"{SMALL}limits: {{budget_tokens: {amount}}}")
    assert "agents.a.max_usd" in problems(
        SMALL.replace("writer: {}", f"writer: {{}}, a: {{max_usd: {amount}}}")
    )


@pytest.mark.parametrize(
    "amount", ["-1", "inf", "-inf", "nan", "true", '"lots"', '"nan"', '"inf"', "[5]", "1979-05-27"]
)
def test_story_18_nonsense_is_no_budget_in_toml(amount):
    text = 'name="t"\n[agents.w]\n[[steps]]\nid="a"\nagent="w"\ncall="a:b"\n[limits]\n'

    assert list(problems(f"{text}budget_usd={amount}", "t.toml")) == ["limits.budget_usd"]
    assert list(problems(f"{text}budget_tokens={amount}", "t.toml")) == ["limits.budget_tokens"]


def test_story_18_zero_is_a_limit_and_null_and_missing_are_none():
    zero = parse_workflow(f"{SMALL}limits: {{budget_usd: 0, budget_tokens: 0}}").limits
    null = parse_workflow(f"{SMALL}limits: {{budget_usd: null, budget_tokens: ~, budget_mode: null}}").limits
    toml = 'name="t"\n[agents.w]\n[[steps]]\nid="a"\nagent="w"\ncall="a:b"\n'

    assert (zero.budget_usd, zero.budget_tokens) == (0, 0)
    assert zero.budget_usd is not None
    assert null == Limits() == parse_workflow(f"{SMALL}limits:").limits == parse_workflow(SMALL).limits
    assert parse_workflow(f"{toml}[limits]\nbudget_usd=0", "t.toml").limits.budget_usd == 0
    assert parse_workflow(toml, "t.toml").limits.budget_usd is None


@pytest.mark.parametrize(
    "written",
    ["[0.8, 0.5]", "[0.5, 0.5]", "[0, 1]", "[0.5, 1.1]", "[true]", "['0.5']", "0.5", "[.nan]", "{a: 1}"],
)
def test_thresholds_ascend_from_above_0_to_1(written):
    assert "limits.warn_at" in {path[:14] for path in problems(f"{SMALL}limits: {{warn_at: {written}}}")}


@pytest.mark.parametrize(
    ("step", "path"),
    [
        ("id: a.b", "steps[0].id"),
        ("id: ''", "steps[0].id"),
        (f"id: {'x' * 65}", "steps[0].id"),
        ("id: 5", "steps[0].id"),
        ("model: m", "steps[0].id"),
        ("id: a, model: 5", "steps[0].model"),
        ("id: a, max_output_tokens: 0", "steps[0].max_output_tokens"),
        ("id: a, max_output_tokens: 1.5", "steps[0].max_output_tokens"),
        ("id: a, max_output_tokens: true", "steps[0].max_output_tokens"),
        ("id: a, after: a", "steps[0].after"),
        ("id: a, after: [b]", "steps[0].after[0]"),
        ("id: a, for_each: 3", "steps[0].for_each"),
        ("id: a, for_each: 'x {{ steps.a }}'", "steps[0].for_each"),
        ("id: a, for_each: '{{ item }}'", "steps[0].for_each"),
        ("id: a, fallback_when: short", "steps[0].fallback_when"),
        ("id: a, fallback_model: m, fallback_when: shrt", "steps[0].fallback_when"),
        ("id: a, fallback_model: m, fallback_when: 1.2", "steps[0].fallback_when"),
        ("id: a, fallback_model: m, fallback_when: true", "steps[0].fallback_when"),
        ("id: a, input: '{{ item }}'", "steps[0].input"),
        ("id: a, input: '{{ steps.b }}'", "steps[0].input"),
        ("id: a, input: ['{{ step.a }}']", "steps[0].input"),
        ("id: a, input: {k: 'x {{ y'}", "steps[0].input"),
        ("id: a, input: {k: [.nan]}", "steps[0].input.k[0]"),
        ("id: a, input: !!binary aGk=", "steps[0].input"),
        (r'id: a, input: ["\ud800"]', "steps[0].input[0]"),
    ],
)
def test_a_step_that_cannot_be_is_refused_at_its_key(step, path):
    assert list(problems(steps(step))) == [path]


@pytest.mark.parametrize(
    "call", ["os.system", "a:b:c", ":b", "a:", "a b:c", "a.b:c()", "a..b:c", "1a:b", "a:import", "5", "[]"]
)
def test_a_call_that_names_no_function_is_refused(call):
    assert list(problems(SMALL.replace("'tea.steps:draft'", f"'{call}'"))) == ["steps[0].call"]


@pytest.mark.parametrize(
    ("terms", "path"),
    [
        ("{priority: 0}", "agents.a.priority"),
        ("{priority: high}", "agents.a.priority"),
        ("{max_tokens: 1.5}", "agents.a.max_tokens"),
        ("{max_calls: -1}", "agents.a.max_calls"),
        ("{min_reserve: 5}", "agents.a.min_reserve"),
        ("{max_tokens: 5, min_reserve: 6}", "agents.a.min_reserve"),
        ("{max_usd: 0.1, min_reserve_usd: 0.2}", "agents.a.min_reserve_usd"),
        ("{confidence_threshold: 1.1}", "agents.a.confidence_threshold"),
        ("{parent: writr}", "agents.a.parent"),
        ("{parent: a}", "agents"),
        ("5", "agents.a"),
    ],
)
def test_terms_that_cannot_be_are_refused_at_their_key(terms, path):
    text = SMALL.replace("writer: {}", f"writer: {{}}, a: {terms}")

    assert list(problems(text)) == [path]


def test_nobody_is_called_as_the_root():
    assert "agents.(root)" in problems(SMALL.replace("writer: {}", "writer: {}, (root): {}"))


def test_names_that_nobody_has_are_refused_with_the_nearest():
    found = problems(SMALL.replace("agent: writer", "agent: writr"))

    assert found == {"steps[0].agent": "no agent is called 'writr'; did you mean writer?"}


def test_a_step_given_twice_is_refused():
    assert "ids must differ" in problems(steps("id: a", "id: a"))["steps[1].id"]


def test_a_cycle_is_refused_and_named():
    text = steps("id: a, after: [c]", "id: b, input: '{{ steps.a }}'", "id: c, for_each: '{{ steps.b.x }}'")
    said = problems(text)["steps"]
    cycle = said.rpartition(": ")[2].split(" -> ")

    assert said.startswith("a cycle, each before the next: ")
    assert cycle[0] == cycle[-1]
    assert " -> ".join(cycle) in "a -> b -> c -> a -> b -> c"
    assert "steps" in problems(steps("id: a, input: '{{ steps.a }}'"))


def test_a_cycle_of_parents_is_refused_and_named():
    said = problems(SMALL.replace("writer: {}", "writer: {}, a: {parent: b}, b: {parent: a}"))["agents"]

    assert said.startswith("a cycle, each the parent of the next: ")


def test_all_problems_of_a_file_are_listed_at_once():
    text = """
name: 5
limits: {budget_usdd: 3, budget_tokens: .inf, budget_mode: enforced}
agents:
  a: {parent: b, max_token: 4}
  b: {parent: a}
prices: []
steps:
  - {id: x, agent: aa, call: "os.system", after: [y]}
  - {id: y, agent: a, input: "{{ steps.z }} {{ item }} {{ foo"}
  - {id: y, agent: a, call: "a.b:c", for_each: 3, input: {a: "{{ item }}", a: 3}}
  - 7
"""
    with pytest.raises(WorkflowFileError) as caught:
        parse_workflow(text, "w.yaml")
    error = caught.value

    assert isinstance(error, TBCError) and isinstance(error, ValueError)
    assert error.file == "w.yaml"
    assert sorted(path for path, _ in error.problems) == sorted(
        ["name", "limits.budget_usdd", "limits.budget_tokens", "limits.budget_mode", "agents.a.max_token"]
        + ["agents", "prices", "steps[0].agent", "steps[0].call", "steps[1].call"]
        + ["steps[1].input"] * 3
        + ["steps[2].id", "steps[2].for_each", "steps[2].input.a", "steps[3]"]
    )
    assert str(error).splitlines()[0].startswith("w.yaml: steps[2].input.a: given twice")
    assert len(str(error).splitlines()) == len(error.problems)


@pytest.mark.parametrize(
    ("price", "path"),
    [
        ("{input_per_milion: 1}", "prices.m.1.input_per_milion"),
        ("5", "prices.m.1"),
        ("{input_per_million: 1}", "prices.m.1"),
        ("{input_per_million: -1, output_per_million: 1}", "prices.m.1.input_per_million"),
        ("{input_per_token: 1, output_per_token: 1}", "prices.m.1.input_per_token"),
        ("{free: 1}", "prices.m.1.free"),
        ("{input_per_million: 1, output_per_million: 1, tiers: [{above: x}]}", "prices.m.1.tiers[0].above"),
    ],
)
def test_a_price_is_checked_when_the_file_is_loaded(price, path):
    assert list(problems(f"{SMALL}prices: {{m.1: {price}}}")) == [path]


@pytest.mark.parametrize("policy", ["refuse", "track", "0.01", "'$0.01'", "'0.01'", "mine"])
def test_what_to_do_about_unknown_prices(policy):
    found = parse_workflow(f"{SMALL}prices: {{mine: {{free: true}}}}\nunknown_price: {policy}").unknown_price

    assert found == (policy if policy.isalpha() else Decimal("0.01"))


@pytest.mark.parametrize("policy", ["refsue", "0", "-1", "true", "[]", ".nan", "99999"])
def test_no_other_policy_for_unknown_prices_is_taken(policy):
    assert list(problems(f"{SMALL}unknown_price: {policy}")) == ["unknown_price"]


# --- files that attack ------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["", "# nothing\n", "---\n"])
def test_an_empty_file_says_what_it_needs(text):
    assert problems(text) == {"": "is empty; a workflow needs name, agents and steps"}


def test_an_empty_toml_file_lacks_three_keys():
    assert problems("", "t.toml") == {"name": "is missing", "agents": "is missing", "steps": "is missing"}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("- 1", "must be a mapping, not [1]"),
        ("name: [", "is no YAML: line 1, column"),
        ("name: a\n---\nname: b", "is no YAML"),
        ("a: !!python/object/apply:os.system [ls]", "could not determine a constructor"),
        ("a: {{ steps.x }}", 'write references in quotes, as in "{{ steps.x }}"'),
        ("1: a", 'write it in quotes: "1"'),
        ("a: &a [*a]", "an alias contains itself"),
        ("[" * 100_000, "deep"),
        ("a: " + "[" * (DEPTH_MAX + 2) + "]" * (DEPTH_MAX + 2), "deep"),
        ("a: " + "9" * 5_000, "is no YAML"),
        ("a: " + "x" * SIZE_MAX, "is larger than"),
        ("a: \x00", "is no YAML"),
    ],
)
def test_yaml_that_cannot_be_read_is_one_problem(text, said):
    found = problems(text)

    assert list(found) == [""]
    assert said in found[""]
    assert "\n" not in found[""]


@pytest.mark.parametrize(
    "text", ["a = ", "a = 1\na = 2", "a = " + "[" * 50_000, "a = " + "[" * 80 + "]" * 80]
)
def test_toml_that_cannot_be_read_is_one_problem(text):
    assert list(problems(text, "t.toml")) == [""]


@pytest.mark.parametrize("merged", ["[{0}]", "{{<<: [{0}]}}"])
def test_aliases_that_unfold_beyond_all_bounds_are_refused(merged):
    lines = ["a0: &a0 {k: v}"]
    lines += [f"a{i}: &a{i} " + merged.format(", ".join([f"*a{i - 1}"] * 10)) for i in range(1, 10)]

    assert "values once its aliases are unfolded" in problems("\n".join(lines))[""]


def test_a_key_given_twice_is_refused_with_its_lines():
    found = problems(SMALL + "limits:\n  budget_usd: 1\n  budget_usd: 100\n")

    assert found == {"limits.budget_usd": "given twice, in lines 6 and 7; keep one"}


def test_bytes_that_are_no_text_are_refused(tmp_path):
    path = tmp_path / "w.yaml"
    path.write_bytes(b"name: \xff")
    with pytest.raises(WorkflowFileError, match="is not UTF-8: byte 6"):
        load_workflow(path)
    path.write_bytes(b"\xff" * (SIZE_MAX + 10))
    with pytest.raises(WorkflowFileError, match="is larger than"):
        load_workflow(path)
    with pytest.raises(FileNotFoundError):
        load_workflow(tmp_path / "none.yaml")


# --- fingerprints -----------------------------------------------------------------------------------------

CHAIN = ("id: a", "id: b, input: '{{ steps.a }}'", "id: c, after: [b]", "id: d")


def test_how_a_file_is_written_does_not_change_its_fingerprint():
    one = parse_workflow(steps(*CHAIN))
    other = parse_workflow(
        "# a comment\n" + steps("max_output_tokens: null, id: a", *CHAIN[1:]), "other.yaml"
    )

    assert other.fingerprint == one.fingerprint
    assert changed_steps(one.fingerprints, other) == []


def test_limits_and_terms_are_not_part_of_a_step():
    one = parse_workflow(steps(*CHAIN))
    other = parse_workflow(steps(*CHAIN, more="limits: {budget_usd: 5}\n"))

    assert changed_steps(one.fingerprints, other) == []
    assert other.fingerprint != one.fingerprint


@pytest.mark.parametrize(
    "change",
    [
        *("model: m", "max_output_tokens: 5", "input: 1", "after: [d]", "for_each: []", "fallback_model: m"),
        *("agent: other", "call: 'a.b:d'"),
    ],
)
def test_every_key_of_a_step_is_part_of_its_fingerprint(change):
    one = parse_workflow(steps(*CHAIN))
    text = START.replace("writer: {}", "writer: {}, other: {}") + "steps:\n"
    keys = {"agent": "agent: writer", "call": "call: 'a.b:c'"}
    keys[change.partition(":")[0]] = change
    text += f"  - {{id: a, {', '.join(keys.values())}}}\n" + steps(*CHAIN[1:]).partition("steps:\n")[2]

    assert changed_steps(one.fingerprints, parse_workflow(text)) == ["a"]


def test_changed_steps_are_new_changed_and_gone_and_what_follows_is_downstream():
    old = parse_workflow(steps(*CHAIN)).fingerprints
    new = parse_workflow(steps("id: a, model: m", *CHAIN[1:3], "id: e"))

    assert changed_steps(old, new) == ["a", "e", "d"]
    assert downstream(new, ["a", "d"]) == ["a", "b", "c"]
    assert downstream(new, ["c"]) == ["c"]
    assert downstream(new, []) == []


# --- references -------------------------------------------------------------------------------------------


def test_a_text_that_is_one_reference_takes_the_value_itself():
    results: dict[str, Any] = {"a": {"x": [1, {"y": None}]}, "b-1": "text"}

    assert render("{{ steps.a.x }}", results) == [1, {"y": None}]
    assert render("{{steps.a.x.1.y}}", results) is None
    assert render("{{ steps.a.x.0 }}", results) == 1
    assert render(["{{ steps.b-1 }}", {"k": "{{ item.0 }}"}, 5], results, ["i"]) == ["text", {"k": "i"}, 5]


def test_within_a_text_text_goes_in_as_it_is_and_the_rest_as_json():
    results: dict[str, Any] = {"a": {"é": True}, "b": "plain", "n": None}

    assert render("{{ steps.b }} {{ steps.a }} {{ steps.n }}", results) == 'plain {"é": true} null'
    assert render(" {{ steps.a }}", results) == ' {"é": true}'
    assert render(r"\{{ steps.b }} {{ steps.b }}", results) == "{{ steps.b }} plain"
    assert render(r"\{{", results) == "{{"
    assert render("{{ steps.b }}", {"b": "{{ steps.a }}"}) == "{{ steps.a }}"


@pytest.mark.parametrize(
    "text",
    [
        *(
            "{{ steps.z }}",
            "{{ steps.a.y }}",
            "{{ steps.a.x.2 }}",
            "{{ steps.a.x.-1 }}",
            "{{ steps.b.upper }}",
        ),
        *("{{ steps.b.0 }}", "{{ steps.a.__class__ }}", "{{ item.x }}", "{{ nothing }}"),
    ],
)
def test_a_reference_that_leads_to_nothing_is_an_error_and_reaches_no_attribute(text):
    with pytest.raises(UnresolvedReferenceError) as caught:
        render(f"so: {text}", {"a": {"x": [1, 2]}, "b": "text"})

    assert isinstance(caught.value, LookupError)
    assert text.strip("{ }") in str(caught.value)


def test_references_are_found_in_order_and_what_is_none_comes_as_text():
    found = list(
        find_references({"a": ["{{ steps.x.y.0 }}", "{{ item }} {{ stepsx }}"], "b": r"\{{ item }}", "c": 5})
    )

    assert found == [Reference("x", ("y", "0")), Reference(None), "{{ stepsx }}"]
    assert str(found[0]) == "steps.x.y.0"
