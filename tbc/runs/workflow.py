"""Workflows as records: limits, agents and steps, and how each key of a file is read into them.

A record declares for each of its keys the reader of its value, which returns the value or raises a
`ValueError` that says what it must be. What the parts of a file must be to each other is the matter of
`tbc.runs.config`.
"""

from __future__ import annotations

import graphlib
import hashlib
import itertools
import json
import keyword
import re
from collections.abc import Iterable, Iterator, Mapping
from decimal import Decimal
from typing import Any, Literal

import attrs
from attrs import field, frozen

from tbc.contract import BudgetContract, check_fraction
from tbc.errors import InvalidAmountError
from tbc.money import to_nano, to_usd, usd_decimal
from tbc.reading import a_list, a_mapping, amount, by, hint, one_of, shown, text
from tbc.runs.references import Reference, find_references, whole_reference

__all__ = [
    "Agent",
    "Limits",
    "Outline",
    "Step",
    "Workflow",
    "changed_steps",
    "downstream",
]

# --- how a value of the file is read, beside the readers of tbc.reading ---------------------------------


def _usd(value: object) -> Decimal:
    try:
        return to_usd(to_nano("amount", value, up=False))
    except InvalidAmountError as error:
        raise ValueError(f"must be {error.rule}, not {shown(value)}") from None


def _unknown_price(value: object) -> Decimal | str:
    """Read what `tbc.pricing.check_unknown_price` takes; text that is no amount may name a model."""
    try:
        return usd_decimal("unknown_price", value)
    except InvalidAmountError as error:
        if isinstance(value, str) and value.strip():
            return value
        raise ValueError(
            f"must be refuse, track, US dollars per million tokens or a model, not {shown(value)}"
        ) from error


def _part(value: object) -> Decimal:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= 1:
        raise ValueError(f"must be a number from 0 to 1, not {shown(value)}")
    return Decimal(str(value))


def _thresholds(value: object) -> tuple[Decimal, ...]:
    parts = tuple(_part(each) for each in a_list(value))
    if 0 in parts or any(b <= a for a, b in itertools.pairwise(parts)):
        raise ValueError(f"must ascend, each above 0 and at most 1, not {shown(value)}")
    return parts


def _fallback_when(value: object) -> Decimal | str:
    if isinstance(value, (str, bool)):
        if value != "short":
            raise ValueError(
                f'must be "short" or a number from 0 to 1, not {shown(value)}{hint(value, ["short"])}'
            )
        return "short"
    return _part(value)


_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")


def _step_id(value: object) -> str:
    if not isinstance(value, str) or not _ID.fullmatch(value):
        raise ValueError(f"must be 1 to 64 letters, digits, _ or -, not {shown(value)}")
    return value


def _step_ids(value: object) -> tuple[str, ...]:
    return tuple(_step_id(each) for each in a_list(value))


def _call(value: object) -> str:
    parts = value.split(":") if isinstance(value, str) else []
    names = [name for part in parts for name in part.split(".")]
    if len(parts) != 2 or not all(name.isidentifier() and not keyword.iskeyword(name) for name in names):
        raise ValueError(f"must be package.module:function, not {shown(value)}")
    return str(value)


def _items(value: object) -> list[Any] | str:
    if isinstance(value, list):
        return value
    if not isinstance(value, str) or whole_reference(value) is None:
        raise ValueError(f'must be a list or one reference, such as "{{{{ steps.x }}}}", not {shown(value)}')
    return value


def _as_is(value: object) -> object:
    return value


# --- records ------------------------------------------------------------------------------------------


@frozen(kw_only=True)
class Limits:
    """What the whole run may spend. ``None`` is no limit; 0 refuses everything."""

    budget_usd: Decimal | None = field(default=None, metadata=by(_usd))
    budget_tokens: int | None = field(default=None, metadata=by(amount(0)))
    #: ``"audit"`` reports what it would have refused; ``"enforce"`` refuses.
    budget_mode: Literal["audit", "enforce"] = field(default="audit", metadata=by(one_of("audit", "enforce")))
    #: Parts of the budget at which the run warns, once each.
    warn_at: tuple[Decimal, ...] = field(
        default=(Decimal("0.5"), Decimal("0.8"), Decimal("1.0")), metadata=by(_thresholds)
    )


@frozen(kw_only=True)
class Agent:
    """The terms of an agent's contract; see `tbc.BudgetContract`. No cap is set unless the file sets one."""

    priority: int = field(default=1, metadata=by(amount(1)))
    max_tokens: int | None = field(default=None, metadata=by(amount(0)))
    max_usd: Decimal | None = field(default=None, metadata=by(_usd))
    max_calls: int | None = field(default=None, metadata=by(amount(0)))
    min_reserve: int | None = field(default=None, metadata=by(amount(0)))
    min_reserve_usd: Decimal | None = field(default=None, metadata=by(_usd))
    confidence_threshold: float | None = field(
        default=None, metadata=by(lambda value: check_fraction("confidence_threshold", value))
    )
    #: The agent above; ``None``: the run.
    parent: str | None = field(default=None, metadata=by(text))

    def contract(self, name: str) -> BudgetContract:
        """Return the contract that an agent of that name signs."""
        terms = attrs.asdict(self, filter=lambda term, _: term.name != "parent")
        return BudgetContract(name, **terms)


@frozen(kw_only=True)
class Step:
    """One step: a function to call for an agent, once or for each item of a list."""

    id: str = field(metadata=by(_step_id))
    #: Who pays.
    agent: str = field(metadata=by(text))
    #: ``"package.module:function"``.
    call: str = field(metadata=by(_call))
    model: str | None = field(default=None, metadata=by(text))
    max_output_tokens: int | None = field(default=None, metadata=by(amount(1)))
    #: What the function is given; texts may hold references.
    input: Any = field(default=None, metadata=by(_as_is))
    #: Steps that must have finished, besides those that the references name.
    after: tuple[str, ...] = field(default=(), metadata=by(_step_ids))
    #: A list, or a reference to one.
    for_each: list[Any] | str | None = field(default=None, metadata=by(_items))
    fallback_model: str | None = field(default=None, metadata=by(text))
    #: ``"short"``: when the model itself does not fit; a number: from this part of the budget on.
    fallback_when: Decimal | Literal["short"] | None = field(default=None, metadata=by(_fallback_when))

    def __attrs_post_init__(self) -> None:
        if self.fallback_model is not None and self.fallback_when is None:
            object.__setattr__(self, "fallback_when", "short")

    @property
    def needs(self) -> tuple[str, ...]:
        """The steps that must have finished, each once: those in `after`, then those referred to."""
        found = (one.step for one in self.references() if isinstance(one, Reference))
        return tuple(dict.fromkeys([*self.after, *filter(None, found)]))

    def references(self) -> Iterator[Reference | str]:
        """Yield the references of the step, as `find_references` does."""
        yield from find_references(self.input)
        yield from find_references(self.for_each)

    @property
    def fingerprint(self) -> str:
        """A hash of everything that defines the step: all its keys; not the agent's terms, not the limits."""
        keys = attrs.asdict(self, recurse=False)
        keys["after"] = sorted(set(self.after))
        return _hash(keys)


@frozen(kw_only=True)
class Outline:
    """The keys of the file itself."""

    name: str = field(metadata=by(text))
    limits: dict[str, Any] = field(factory=dict, metadata=by(a_mapping))
    agents: dict[str, Any] = field(metadata=by(a_mapping))
    prices: dict[str, Any] = field(factory=dict, metadata=by(a_mapping))
    steps: list[Any] = field(metadata=by(a_list))
    unknown_price: Decimal | str = field(default="refuse", metadata=by(_unknown_price))


@frozen(kw_only=True)
class Workflow:
    """A workflow file, checked."""

    name: str
    limits: Limits
    #: By name.
    agents: Mapping[str, Agent]
    #: By model: what `tbc.pricing.Prices` takes.
    prices: Mapping[str, Any]
    #: In the order of the file.
    steps: tuple[Step, ...]
    unknown_price: Decimal | str = "refuse"
    #: The name of the file.
    path: str = field(eq=False)
    #: Its text: ``parse_workflow(source, path)`` makes the same record again.
    source: str = field(repr=False, eq=False)

    def step(self, step_id: str) -> Step:
        """Return the step of that id; a `KeyError` if there is none."""
        for step in self.steps:
            if step.id == step_id:
                return step
        raise KeyError(step_id)

    @property
    def fingerprints(self) -> dict[str, str]:
        """The fingerprint of each step, for `changed_steps`."""
        return {step.id: step.fingerprint for step in self.steps}

    @property
    def fingerprint(self) -> str:
        """A hash of all keys of the file; how it is written, and where it lies, does not count."""
        limits = attrs.asdict(self.limits)
        agents = {name: attrs.asdict(agent) for name, agent in self.agents.items()}
        steps = sorted(self.fingerprints.items())
        return _hash([self.name, limits, agents, self.prices, steps, self.unknown_price])


def _hash(value: object) -> str:
    def number(amount: Decimal) -> str:
        return format(amount.normalize(), "f")

    text = json.dumps(value, sort_keys=True, separators=(",", ":"), default=number)
    return hashlib.sha256(text.encode()).hexdigest()


def changed_steps(old: Mapping[str, str], new: Workflow) -> list[str]:
    """Return the ids of the steps that are not as they were.

    Parameters
    ----------
    old : mapping of str to str
        `Workflow.fingerprints` of then.
    new : Workflow
        The workflow of now.

    Returns
    -------
    list of str
        Changed and new steps in the order of the file, then those that are gone, as they were ordered.
    """
    now = new.fingerprints
    changed = [step_id for step_id in now if old.get(step_id) != now[step_id]]
    return changed + [step_id for step_id in old if step_id not in now]


def downstream(workflow: Workflow, ids: Iterable[str]) -> list[str]:
    """Return these steps and all that depend on them, in the order of the file.

    Ids that the workflow does not have are passed over: what depended on a step that is gone has changed
    itself.
    """
    found = set(ids)
    needs = {step.id: set(step.needs) for step in workflow.steps}
    for step_id in graphlib.TopologicalSorter(needs).static_order():
        if needs[step_id] & found:
            found.add(step_id)
    return [step.id for step in workflow.steps if step.id in found]
