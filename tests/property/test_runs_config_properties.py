"""What holds for every workflow file: both notations say the same, and no misspelled key gets through."""

from __future__ import annotations

import json
from typing import Any

import pytest
import yaml
from hypothesis import example, given
from hypothesis import strategies as st

from tbc.run_errors import WorkflowFileError
from tbc.runs.config import parse_workflow
from tbc.runs.plan import layers
from tbc.runs.references import find_references, render
from tbc.runs.workflow import Agent, Limits, Outline, Step

names = st.text("abcXYZ019_-", min_size=1, max_size=8)
texts = st.text(
    st.characters(codec="utf-8", exclude_categories=["Cc", "Cs"], exclude_characters="{}"), max_size=12
)
words = texts.filter(str.strip)
amounts = (
    st.integers(0, 10**6)
    | st.decimals(0, 1000, places=4).map(str)
    | st.decimals(0, 9, places=2).map(lambda x: f"${x}")
)
parts = st.integers(0, 100).map(lambda percent: percent / 100)
values = st.recursive(
    st.booleans() | st.integers(-(2**60), 2**60) | st.floats(allow_nan=False, allow_infinity=False) | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(words, inner, max_size=3),
    max_leaves=6,
)


def some(**keys: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    return st.fixed_dictionaries({}, optional=keys)


@st.composite
def files(draw: st.DrawFn) -> dict[str, Any]:
    agents = draw(st.lists(names, min_size=1, max_size=4, unique=True))
    file: dict[str, Any] = {"name": draw(words), "agents": {}, "steps": []}
    for place, name in enumerate(agents):
        terms = draw(
            some(
                priority=st.integers(1, 9),
                max_calls=st.integers(0, 9),
                max_usd=amounts,
                confidence_threshold=parts,
            )
        )
        if draw(st.booleans()):
            terms["max_tokens"] = draw(st.integers(0, 10**6))
            terms["min_reserve"] = draw(st.integers(0, terms["max_tokens"]))
        if place and draw(st.booleans()):
            terms["parent"] = draw(st.sampled_from(agents[:place]))
        file["agents"][name] = terms
    warn_at = st.lists(st.integers(1, 100), unique=True, max_size=3).map(
        lambda found: sorted(p / 100 for p in found)
    )
    file["limits"] = draw(
        some(budget_usd=amounts, budget_tokens=st.integers(0, 10**9), warn_at=warn_at)
        | st.just({"budget_mode": "enforce"})
    )
    ids = draw(st.lists(names, min_size=1, max_size=5, unique=True))
    for place, step_id in enumerate(ids):
        step = {"id": step_id, "agent": draw(st.sampled_from(agents)), "call": "package.module:function"}
        step |= draw(
            some(
                model=words,
                max_output_tokens=st.integers(1, 10**6),
                input=values,
                for_each=st.lists(values, max_size=3),
            )
        )
        if place and draw(st.booleans()):
            step["after"] = draw(st.lists(st.sampled_from(ids[:place]), max_size=2))
            step["input"] = {"a": f"{{{{ steps.{ids[place - 1]} }}}}", "b": step.get("input", 5)}
        if draw(st.booleans()):
            step |= {"fallback_model": draw(words), "fallback_when": draw(st.just("short") | parts)}
        file["steps"].append(step)
    return file


def as_toml(value: Any) -> str:
    """Write a value as TOML, tables inline."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{as_toml(key)} = {as_toml(each)}" for key, each in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(as_toml, value)) + "]"
    if isinstance(value, float):
        return repr(value)
    return json.dumps(value, ensure_ascii=False)


def toml_file(file: dict[str, Any]) -> str:
    return "".join(f"{key} = {as_toml(each)}\n" for key, each in file.items())


class QuotingDumper(yaml.SafeDumper):
    """Puts all text in quotes: PyYAML leaves 08 without, which YAML 1.2 reads as a number."""


QuotingDumper.add_representer(
    str, lambda dumper, text: dumper.represent_scalar("tag:yaml.org,2002:str", text, style='"')
)


@given(files())
def test_both_notations_say_the_same_and_the_text_says_it_again(file):
    toml = parse_workflow(toml_file(file), "w.toml")
    written = yaml.dump(file, Dumper=QuotingDumper, allow_unicode=True, sort_keys=False)
    again = parse_workflow(written)

    assert again == toml
    assert again.fingerprint == toml.fingerprint
    assert parse_workflow(again.source, again.path) == again
    assert [step.input for step in again.steps] == [step.get("input") for step in file["steps"]]
    assert parse_workflow(json.dumps(file, ensure_ascii=False)) == again


@given(files())
def test_layers_hold_every_step_once_after_what_it_needs(file):
    workflow = parse_workflow(toml_file(file), "w.toml")
    found: list[str] = []
    for layer in layers(workflow):
        assert all(set(workflow.step(step_id).needs) <= set(found) for step_id in layer)
        found += layer

    assert sorted(found) == sorted(step.id for step in workflow.steps)


FULL: dict[str, Any] = {
    "name": "t",
    "limits": {"budget_usd": 1, "budget_tokens": 10, "budget_mode": "audit", "warn_at": [1]},
    "agents": {
        "lead": {},
        "a": {"priority": 1, "max_tokens": 5, "max_usd": 1, "max_calls": 1, "min_reserve": 1}
        | {"min_reserve_usd": 0.5, "confidence_threshold": 0.5, "parent": "lead"},
    },
    "prices": {},
    "unknown_price": "track",
    "steps": [
        {"id": "s", "agent": "a", "call": "a:b"},
        {"id": "t", "agent": "a", "call": "a:b", "model": "m", "max_output_tokens": 1, "input": 1}
        | {"after": ["s"], "for_each": [], "fallback_model": "f", "fallback_when": 0.5},
    ],
}
PLACES: list[tuple[str, Any, type]] = [
    ("", lambda file: file, Outline),
    ("limits", lambda file: file["limits"], Limits),
    ("agents.a", lambda file: file["agents"]["a"], Agent),
    ("steps[1]", lambda file: file["steps"][1], Step),
]
KEYS = [(path, find, key) for path, find, kind in PLACES for key in kind.__annotations__]


def misspelled(key: str) -> st.SearchStrategy[str]:
    """Make a key wrong by one letter: left out, put in, another, or two neighbours the other way round."""
    letter, place = st.sampled_from("aeioqstxz_1"), st.integers(0, len(key) - 1)
    return st.one_of(
        place.map(lambda i: key[:i] + key[i + 1 :]),
        st.tuples(place, letter).map(lambda at: key[: at[0]] + at[1] + key[at[0] :]),
        st.tuples(place, letter).map(lambda at: key[: at[0]] + at[1] + key[at[0] + 1 :]),
        place.map(lambda i: key[:i] + key[i + 1 : i + 2] + key[i : i + 1] + key[i + 2 :]),
    ).filter(lambda wrong: wrong not in ("", key))


def test_the_full_file_names_every_key_and_is_right():
    assert all(key in find(FULL) for _, find, key in KEYS)
    assert parse_workflow(json.dumps(FULL)).step("t").after == ("s",)


@pytest.mark.parametrize(("path", "find", "key"), KEYS, ids=[f"{path}.{key}" for path, _, key in KEYS])
@given(data=st.data())
def test_every_key_misspelled_by_one_letter_is_refused_with_the_right_one(path, find, key, data):
    wrong = data.draw(misspelled(key))
    file = json.loads(json.dumps(FULL))
    record = find(file)
    record[wrong] = record.pop(key)
    with pytest.raises(WorkflowFileError) as caught:
        parse_workflow(json.dumps(file))

    where = f"{path}.{wrong}" if path else wrong
    said = dict(caught.value.problems)[where]
    assert said == f"unknown key; did you mean {key}?"


@given(st.text("{}\\ stepitm.-x0\n", max_size=24))
@example("{{ steps.x }}")
@example("{{ steps.x }}{{ steps.x }}")
@example(r"\{{ steps.x }}")
def test_what_loading_lets_pass_renders(text):
    found = list(find_references(text))
    wrong = [one for one in found if isinstance(one, str)]
    deep = [one for one in found if not isinstance(one, str) and (one.fields or one.step not in (None, "x"))]
    if not wrong and not deep:
        shown = render(text, {"x": "<x>"}, "<item>")
        assert isinstance(shown, str)
        assert shown.count("<x>") + shown.count("<item>") == len(found)
    if not found:
        assert render(text, {}) == text.replace(r"\{{", "{{")


@given(values)
def test_a_value_without_braces_renders_to_itself(value):
    assert render(value, {}) == value
    assert list(find_references(value)) == []
