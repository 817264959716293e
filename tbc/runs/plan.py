"""The plan of a workflow: what may run at once, whether its caps fit, and what it may cost. Calls nothing.

An estimate assumes that a step makes one call per item, with its input as the file has it. The low end is
that input and no output. The high end adds the output cap; where the input holds the result of an earlier
step, that is taken to be no longer than the earlier step's output cap allows. What cannot be known stays
``None``, and totals say of how many steps they are.
"""

from __future__ import annotations

import graphlib
import itertools
from collections import Counter as Multiset
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Literal

from attrs import field, frozen

from tbc.axes import format_amount, format_number
from tbc.money import to_nano
from tbc.runs.references import Reference, fill, find_references, render
from tbc.runs.workflow import Agent, Step, Workflow
from tbc.tokens import Counter, count, default_counter

if TYPE_CHECKING:
    from tbc.pricing import Price, Prices

__all__ = [
    "Admission",
    "Estimate",
    "Range",
    "StepEstimate",
    "admissions",
    "cap",
    "estimate",
    "is_capped",
    "layers",
    "render",
]

Axis = Literal["tokens", "usd", "calls"]
_AXES: tuple[Axis, ...] = ("tokens", "usd", "calls")


def layers(workflow: Workflow) -> tuple[tuple[str, ...], ...]:
    """Return the ids of the steps in layers: a step needs only steps of earlier layers."""
    sorter = graphlib.TopologicalSorter({step.id: step.needs for step in workflow.steps})
    sorter.prepare()
    order = {step.id: place for place, step in enumerate(workflow.steps)}
    found = []
    while sorter.is_active():
        ready = sorted(sorter.get_ready(), key=order.__getitem__)
        found.append(tuple(ready))
        sorter.done(*ready)
    return tuple(found)


# --- admission ----------------------------------------------------------------------------------------


@frozen(kw_only=True)
class Admission:
    """Whether what the children of one account own fits into what it can spare, on one axis."""

    #: Whose children; ``None``: the run's.
    parent: str | None
    axis: Axis
    #: What the parent owns, and what of it no child may take. In tokens, nano-dollars or calls.
    owned: int
    reserve: int
    #: The caps of the children, in the order of the file.
    caps: tuple[tuple[str, int], ...]

    @property
    def spare(self) -> int:
        """What can be carved out."""
        return self.owned - self.reserve

    @property
    def asked(self) -> int:
        """What is to be carved out."""
        return sum(amount for _, amount in self.caps)

    @property
    def fits(self) -> bool:
        """Whether all the caps fit."""
        return self.asked <= self.spare

    @property
    def admitted(self) -> tuple[str, ...]:
        """The children that fit, taken in the order of the file as long as there is enough."""
        left, names = self.spare, []
        for name, amount in self.caps:
            if amount > left:
                break
            left -= amount
            names.append(name)
        return tuple(names)

    def __str__(self) -> str:
        """Return the arithmetic, such as ``4 x 40,000 = 160,000 > 120,000: refused; 3 would fit``."""

        def number(amount: int) -> str:
            return format_number(self.axis, amount)

        asked, spare = number(self.asked), number(self.spare)
        times = Multiset(amount for _, amount in self.caps)
        terms = [("" if n == 1 else f"{n} x ") + number(amount) for amount, n in times.items()]
        left = " + ".join(terms) + (f" = {asked}" if len(self.caps) > 1 else "")
        if self.reserve:
            spare = f"{number(self.owned)} - reserve {number(self.reserve)} = {spare}"
        if self.fits:
            return f"{left} <= {spare}: fits"
        names = self.admitted
        who = f" ({', '.join(names)})" if names and len(times) > 1 else ""
        return f"{left} > {spare}: refused; {len(names) or 'none'} would fit{who}"


def admissions(workflow: Workflow) -> tuple[Admission, ...]:
    """Return, for each account with a cap and children with caps, whether these fit.

    It is the rule by which `BudgetManager.register_agent` carves out: where an ancestor caps an axis, an
    agent without a cap of its own owns 0 there.
    """
    found = []
    for parent in (None, *workflow.agents):
        children = {name: agent for name, agent in workflow.agents.items() if agent.parent == parent}
        for axis in _AXES:
            amounts = ((name, cap(axis, agent)) for name, agent in children.items())
            caps = tuple((name, amount) for name, amount in amounts if amount)
            if caps and is_capped(workflow, parent, axis):
                owned, reserve = _owned(workflow, parent, axis)
                found.append(Admission(parent=parent, axis=axis, owned=owned, reserve=reserve, caps=caps))
    return tuple(found)


def _owned(workflow: Workflow, name: str | None, axis: Axis) -> tuple[int, int]:
    """Return what an agent (``None``: the run) owns, and what of it is reserved."""
    if name is None:
        return _budget(workflow, axis) or 0, 0
    agent, reserve = workflow.agents[name], 0
    if axis == "tokens":
        reserve = agent.contract(name).min_reserve
    elif axis == "usd" and agent.min_reserve_usd is not None:
        reserve = to_nano("min_reserve_usd", agent.min_reserve_usd)
    return cap(axis, agent) or 0, reserve


def cap(axis: Axis, agent: Agent) -> int | None:
    """Return what an agent owns on an axis by its own terms; ``None``: no cap of its own."""
    if axis == "usd":
        return None if agent.max_usd is None else to_nano("max_usd", agent.max_usd, up=False)
    return agent.max_tokens if axis == "tokens" else agent.max_calls


def is_capped(workflow: Workflow, name: str | None, axis: Axis) -> bool:
    """Return whether an agent, or anybody above it, has a cap on an axis (``None``: the run itself)."""
    while name is not None:
        agent = workflow.agents[name]
        if cap(axis, agent) is not None:
            return True
        name = agent.parent
    return _budget(workflow, axis) is not None


def _budget(workflow: Workflow, axis: Axis) -> int | None:
    limits = workflow.limits
    if axis == "usd" and limits.budget_usd is not None:
        return to_nano("budget_usd", limits.budget_usd, up=False)
    return limits.budget_tokens if axis == "tokens" else None


# --- the estimate -------------------------------------------------------------------------------------


@frozen
class Range:
    """From `low` to `high`; ``None`` is unknown."""

    low: int | None
    high: int | None


@frozen(kw_only=True)
class StepEstimate:
    """What one step may use."""

    step_id: str
    model: str | None
    #: How many calls; ``None``: as many as the list that it goes through turns out to be long.
    calls: int | None
    tokens: Range
    #: In nano-dollars.
    usd: Range
    #: Its models without a price, known or assumed.
    unpriced: tuple[str, ...] = ()
    #: What the numbers rest on, and why some are unknown.
    notes: tuple[str, ...] = ()


@frozen(kw_only=True)
class Estimate:
    """What a workflow may use."""

    steps: tuple[StepEstimate, ...]
    #: Whether some tokens were counted by an estimate, for want of a vocabulary.
    estimated: bool = False
    tokens: Range = field(init=False)
    usd: Range = field(init=False)

    def __attrs_post_init__(self) -> None:
        object.__setattr__(self, "tokens", _total(step.tokens for step in self.steps))
        object.__setattr__(self, "usd", _total(step.usd for step in self.steps))

    def unknown(self, axis: Axis, end: Literal["low", "high"]) -> tuple[str, ...]:
        """Return the steps of which an end is unknown; the total is then that of the others."""
        ranges = ((step.step_id, step.tokens if axis == "tokens" else step.usd) for step in self.steps)
        return tuple(name for name, each in ranges if getattr(each, end) is None)

    def total(self, axis: Axis, end: Literal["low", "high"]) -> str:
        """Return a total in words: ``"$0.12"``, or ``"at least $0.12 (2 steps unknown)"``."""
        amount = getattr(self.tokens if axis == "tokens" else self.usd, end)
        unknown = len(self.unknown(axis, end))
        text = format_amount(axis, amount)
        return (
            f"at least {text} ({unknown} {'step' if unknown == 1 else 'steps'} unknown)" if unknown else text
        )


def estimate(
    workflow: Workflow, prices: Prices, counter_of: Callable[[str | None], Counter] = default_counter
) -> Estimate:
    """Return what a workflow may use at least and at most, as far as that can be known without calling.

    Parameters
    ----------
    workflow : Workflow
        The workflow.
    prices : Prices
        Where to look prices up, the workflow's own among them.
    counter_of : callable
        What counts the tokens of a model; default: `tbc.tokens.default_counter`.
    """
    from tbc.pricing import Price, check_unknown_price

    policy = check_unknown_price(workflow.unknown_price, prices)

    def price_of(model: str | None) -> Price | None:
        return prices.find(model) or (policy if isinstance(policy, Price) else None)

    done: dict[str, StepEstimate] = {}
    bounds: dict[str, int | None] = {}
    estimated = False
    for layer in layers(workflow):
        for step_id in layer:
            step = workflow.step(step_id)
            counter = counter_of(step.model)
            estimated |= counter.estimated
            done[step_id] = one = _estimate_step(step, price_of, counter, bounds)
            known = one.calls is not None and step.max_output_tokens is not None
            bounds[step_id] = (one.calls or 0) * (step.max_output_tokens or 0) if known else None
    return Estimate(steps=tuple(done[step.id] for step in workflow.steps), estimated=estimated)


def _estimate_step(
    step: Step,
    price_of: Callable[[str | None], Price | None],
    counter: Counter,
    bounds: dict[str, int | None],
) -> StepEstimate:
    notes: list[str] = []
    items: Sequence[object] | None = [None] if step.for_each is None else None
    if isinstance(step.for_each, list):
        items = step.for_each
    elif step.for_each is not None:
        notes.append(f"as many calls as {step.for_each} has items")
    written = [_written(step, item, counter) for item in ([None] if items is None else items)]
    taken = _taken(step, items, bounds, notes)
    if step.max_output_tokens is None:
        notes.append("no max_output_tokens, so the output has no bound")
    # The input and the output of each call, at most.
    most: list[tuple[int, int]] | None = None
    if items is not None and taken is not None and step.max_output_tokens is not None:
        most = [(own + each, step.max_output_tokens) for own, each in zip(written, taken, strict=True)]
    least = written if items is not None else []
    models = [step.model] if step.fallback_model is None else [step.model, step.fallback_model]
    found = {model: price_of(model) for model in models}
    known = [price for price in found.values() if price is not None]
    unpriced = tuple(model or "(no model named)" for model, price in found.items() if price is None)
    if unpriced:
        notes.append(f"the price of {', '.join(unpriced)} is unknown; an entry under prices would tell")
    elif len(known) > 1:
        notes.append(f"low is the cheaper of {' and '.join(map(str, models))}, high the dearer")
    notes += [
        f"the price of {model or 'no model'} is {price.source}"
        for model, price in found.items()
        if price is not None and price.source.startswith("assumed")
    ]
    return StepEstimate(
        step_id=step.id,
        model=step.model,
        calls=None if items is None else len(items),
        tokens=Range(sum(least), None if most is None else sum(map(sum, most))),
        usd=Range(None, None) if unpriced else _cost(known, least, most),
        unpriced=unpriced,
        notes=tuple(notes),
    )


def _written(step: Step, item: object, counter: Counter) -> int:
    """Count the input of one call without what earlier steps put in."""

    def look_up(reference: Reference) -> object:
        if reference.step is not None or item is None:
            return ""
        try:
            return render(f"{{{{ {reference} }}}}", {}, fill(item, lambda _: ""))
        except LookupError:  # the run will say so
            return ""

    return count(fill(step.input, look_up), counter)


def _taken(
    step: Step, items: Sequence[object] | None, bounds: dict[str, int | None], notes: list[str]
) -> list[int] | None:
    """Return what earlier steps put into the input of each call at most; ``None``: unknown."""
    shared = _sources(step.input)
    of_items = [_sources(item) for item in items or ()]
    sources = dict.fromkeys([*shared, *itertools.chain(*of_items)])
    unknown = [source for source in sources if bounds[source] is None]
    known = {source: bound for source in sources if (bound := bounds[source]) is not None}
    for source, bound in known.items():
        notes.append(f"the input takes what {source} returns: up to {bound:,} tokens by its output cap")
    if unknown:
        notes.append(f"the input takes what {', '.join(unknown)} returns, which has no bound")
    if unknown or items is None:
        return None
    times = sum(isinstance(one, Reference) and one.step is None for one in find_references(step.input))
    common = sum(known[source] for source in shared)
    return [common + times * sum(known[source] for source in each) for each in of_items]


def _sources(value: object) -> list[str]:
    found = (one.step for one in find_references(value) if isinstance(one, Reference))
    return [step for step in found if step is not None]


def _cost(prices: list[Price], least: list[int], most: list[tuple[int, int]] | None) -> Range:
    from tbc.usage import Usage

    low = min(sum(price.cost(Usage(input_tokens=given)) for given in least) for price in prices)
    if most is not None:
        return Range(low, max(sum(price.ceiling(given, made) for given, made in most) for price in prices))
    return Range(low, 0 if all(price.is_free for price in prices) else None)


def _total(ranges: Iterable[Range]) -> Range:
    ranges = list(ranges)
    return Range(sum(each.low or 0 for each in ranges), sum(each.high or 0 for each in ranges))
