"""What the next step will use, projected from its input and from the steps before it.

The input is counted. Where earlier steps sent more than was counted of theirs (the function builds its own
prompt, another tokenizer reads it), the p90 of that excess is added. The output is the declared cap or the
p90 of earlier outputs. Before there are five, the largest counts, of outputs also the manager's default.
"""

from __future__ import annotations

from tbc.govern import OutputHistory
from tbc.manager import BudgetManager

__all__ = ["Projection"]


class Projection:
    """Projects the steps of one task. Learning is done under the lock of the run."""

    __slots__ = ("_counted", "_excess", "_manager", "_most_excess", "_most_output", "_outputs")

    def __init__(self, manager: BudgetManager, task_id: str) -> None:
        self._manager = manager
        self._outputs = manager.output_history(task_id)
        self._excess: OutputHistory | None = None  # none until a step sends more than was counted
        self._most_output = self._most_excess = 0
        #: The last text, the model that counted it, and its tokens: loops often send the same again.
        self._counted: tuple[str, str | None, int] | None = None

    def count(self, input_data: object, model: str | None) -> int:
        """Return the tokens of an input; lists of messages count as messages."""
        if input_data is None:
            return 0
        known = self._counted
        if known is not None and known[0] is input_data and known[1] == model:
            return known[2]
        tokens = self._manager.count(input_data, model=model)
        if type(input_data) is str:
            self._counted = input_data, model, tokens
        return tokens

    def input_tokens(self, counted: int) -> int:
        """Return what a step of a counted input will send."""
        if self._excess is None:
            return counted
        usual = self._excess.p90()
        return counted + (self._most_excess if usual is None else usual)

    def output_tokens(self) -> int:
        """Return what a step without a cap will write."""
        usual = self._outputs.p90()
        return max(self._manager.default_output_tokens, self._most_output) if usual is None else usual

    def learn(self, counted: int, sent: int, written: int, cap: int | None) -> None:
        """Remember what a step that was counted so sent and wrote, under which cap."""
        self._outputs.add(written, cut_off=cap is not None and written >= cap > 0)
        if written > self._most_output:
            self._most_output = written
        excess = sent - counted if sent > counted else 0
        if excess and self._excess is None:
            self._excess = OutputHistory()
        if self._excess is not None:
            self._excess.add(excess)
            self._most_excess = max(self._most_excess, excess)
