"""What a run of steps remembers: the steps that ran, what was refused, and how it all stands.

Costs are nano-dollars, as in the books; properties give them as dollars.
"""

from __future__ import annotations

from decimal import Decimal
from typing import Literal, NamedTuple

from tbc.axes import USD, format_amount
from tbc.decision import Mode
from tbc.money import to_usd

__all__ = ["Outcome", "Refusal", "RunState", "StepRecord", "total_cost"]

#: ``"ok"``: settled by its usage. ``"bad_result"``: it ran, but did not say what it used. ``"failed"``: it
#: raised. ``"not_sent"``: it proved that nothing was sent, and costs nothing.
Outcome = Literal["ok", "bad_result", "failed", "not_sent"]


class StepRecord(NamedTuple):
    """A step that began, and how it ended.

    Attributes
    ----------
    number : int
        From 1, in the order of beginning.
    model : str or None
        The model that was named.
    outcome : {"ok", "bad_result", "failed", "not_sent"}
        How it ended.
    projected_input, projected_output : int
        The tokens that were set aside for it.
    projected : int or None
        The same in nano-dollars; ``None``: nobody knows the price.
    input_tokens, output_tokens : int or None
        What its usage states.
    cost : int or None
        Nano-dollars booked; ``None``: nobody knows the price.
    estimated : bool
        Whether `cost` is an estimate.
    """

    # A tuple, because one is made for every step: it is immutable at half the price of a frozen class.
    number: int
    model: str | None
    outcome: Outcome
    projected_input: int
    projected_output: int
    projected: int | None
    input_tokens: int | None
    output_tokens: int | None
    cost: int | None
    estimated: bool

    @property
    def cost_usd(self) -> Decimal | None:
        """Dollars booked."""
        return None if self.cost is None else to_usd(self.cost)


class Refusal(NamedTuple):
    """A step that was refused before it ran (in audit mode: that would have been).

    Attributes
    ----------
    number : int
        The number that the step has, or would have had.
    projected : int
        What it was projected to cost, in nano-dollars.
    spent, held : int
        What had been spent, and what was set aside for steps in flight.
    limit : int
        The limit.
    """

    number: int
    projected: int
    spent: int
    held: int
    limit: int

    @property
    def left(self) -> int:
        """What was left of the limit, in nano-dollars."""
        return max(0, self.limit - self.spent - self.held)


class RunState(NamedTuple):
    """A run at one moment. Amounts are nano-dollars.

    Attributes
    ----------
    task_id : str
        Which task.
    mode : {"enforce", "audit"}
        Whether refusals bind.
    limit : int or None
        ``None``: observation.
    spent, held : int
        Booked for good; set aside for steps in flight.
    unpriced : int
        Calls in it whose price nobody knows.
    steps : tuple of StepRecord
        The steps that ended, in the order of ending.
    in_flight : int
        Steps that have not.
    blocked : bool
        Whether the last step was refused.
    refusals : tuple of Refusal
        The first and the last step that was refused (or would have been).
    refused : int
        How many were.
    assumed : tuple of str
        Models without a known price, with what was assumed.
    """

    task_id: str
    mode: Mode
    limit: int | None
    spent: int
    held: int
    unpriced: int
    steps: tuple[StepRecord, ...]
    in_flight: int
    blocked: bool
    refusals: tuple[Refusal, ...]
    refused: int
    assumed: tuple[str, ...]

    @property
    def excess(self) -> int:
        """What was spent beyond the limit, in nano-dollars."""
        return 0 if self.limit is None else max(0, self.spent - self.limit)

    @property
    def crossed_by(self) -> int | None:
        """The number of the step whose cost took the total above the limit."""
        total = 0
        for step in self.steps:
            total += step.cost or 0
            if self.limit is not None and total > self.limit:
                return step.number
        return None


def total_cost(state: RunState) -> str:
    """Return the total in words; it is a lower bound where prices are unknown."""
    total = format_amount(USD, state.spent)
    if not state.unpriced:
        return total
    return f"at least {total} ({state.unpriced} {'call' if state.unpriced == 1 else 'calls'} unpriced)"
