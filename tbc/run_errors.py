"""What runs raise: bounded steps and workflows.

::

    TBCError
     ├── WorkflowFileError        (ValueError)    a workflow file with problems, all of them
     ├── UnresolvedReferenceError (LookupError)   a `{{ reference }}` that leads to nothing
     ├── ResultNotKeptError       (TypeError)     a step of a workflow returned what cannot be kept
     ├── InvalidGraphError        (ValueError)    a graph of steps with problems, all of them
     ├── PolicyAwayError                          the process with the tier policy did not answer
     ├── PolicyDiffersError       (RuntimeError)  it has another policy than the one that runs the steps
     ├── RunError                                 a run that cannot go on, or not like this
     │    ├── UnknownRunError     (LookupError)   there is no such run
     │    ├── RunForgottenError                   it was begun under this key, and its record is not kept
     │    ├── RunBusyError                        another process is at work on it
     │    └── WorkflowChangedError (ValueError)   its file is not as it was
     ├── UnknownTaskError         (ValueError)    no step of that task was ever asked for
     ├── StepResultError          (RuntimeError)  a step did not return what says its cost
     ├── UnknownPriceError
     │    └── StepUnpricedError   (RuntimeError)  a step of which nobody knows the price, under a limit
     └── BudgetExceededError
          └── StepBlockedError    (RuntimeError)  a step would cross the limit of its task
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, ClassVar

from tbc.axes import USD, format_amount
from tbc.errors import BudgetExceededError, TBCError, UnknownPriceError

if TYPE_CHECKING:
    from tbc.decision import Decision

__all__ = [
    "InvalidGraphError",
    "PolicyAwayError",
    "PolicyDiffersError",
    "ResultNotKeptError",
    "RunBusyError",
    "RunError",
    "RunForgottenError",
    "StepBlockedError",
    "StepResultError",
    "StepUnpricedError",
    "UnknownRunError",
    "UnknownTaskError",
    "UnresolvedReferenceError",
    "WorkflowChangedError",
    "WorkflowFileError",
]


class WorkflowFileError(TBCError, ValueError):
    """A workflow file with problems.

    Parameters
    ----------
    file : str
        The name of the file.
    problems : sequence of (str, str)
        All of them: the path of the key (empty: the file as a whole), and what is wrong there.
    """

    def __init__(self, file: str, problems: Sequence[tuple[str, str]]) -> None:
        super().__init__(file, tuple(problems))
        self.file = file
        self.problems = tuple(problems)

    def __str__(self) -> str:
        return "\n".join(": ".join(filter(None, (self.file, *problem))) for problem in self.problems)


class UnresolvedReferenceError(TBCError, LookupError):
    """A reference in the input of a step that leads to nothing.

    Parameters
    ----------
    reference : str
        The reference.
    reason : str
        Where it ends.
    known : iterable of str
        What it could have named there.
    """

    def __init__(self, reference: str, reason: str, known: Iterable[object] = ()) -> None:
        self.reference = reference
        self.reason = reason
        self.known = tuple(known)
        super().__init__(reference, reason, self.known)

    def __str__(self) -> str:
        known = f"; there is {', '.join(map(str, self.known))}" if self.known else ""
        return f"Reference {self.reference!r} leads to nothing: {self.reason}{known}."


class ResultNotKeptError(TBCError, TypeError):
    """What a step of a workflow returned cannot be kept. What it cost is booked.

    Parameters
    ----------
    step : str
        Which.
    reason : str
        What is wrong with it, and what would be right.
    result : object
        What it returned.
    """

    def __init__(self, step: str, reason: str, result: object = None) -> None:
        super().__init__(step, reason, result)
        self.step = step
        self.reason = reason
        self.result = result

    def __str__(self) -> str:
        return f"Step {self.step!r}: {self.reason}"


class InvalidGraphError(TBCError, ValueError):
    """A graph of steps with problems.

    Parameters
    ----------
    problems : sequence of (str, str)
        All of them: the path of the key, and what is wrong there.
    """

    def __init__(self, problems: Sequence[tuple[str, str]]) -> None:
        super().__init__(tuple(problems))
        self.problems = tuple(problems)

    def __str__(self) -> str:
        return "; ".join(": ".join(problem) for problem in self.problems)


class PolicyAwayError(TBCError):
    """The process with the tier policy did not answer. Nothing was chosen, and nothing called.

    Parameters
    ----------
    where : str
        Its address.
    reason : str
        What came instead of an answer.
    """

    def __init__(self, where: str, reason: str) -> None:
        super().__init__(where, reason)
        self.where = where
        self.reason = reason

    def __str__(self) -> str:
        return f"The tier policy at {self.where} did not answer: {self.reason}. Nothing was done."


class PolicyDiffersError(TBCError, RuntimeError):
    """The process with the tier policy has another one than the process that runs the steps.

    Parameters
    ----------
    theirs, ours : str
        The versions: the names, and hashes of tiers, prices and rules.
    """

    def __init__(self, theirs: str, ours: str) -> None:
        super().__init__(theirs, ours)
        self.theirs = theirs
        self.ours = ours

    def __str__(self) -> str:
        return (
            f"The policy process has the policy {self.theirs}, this one {self.ours}: start both with the "
            "same --policy."
        )


class RunError(TBCError):
    """A run that cannot go on, or not like this.

    Parameters
    ----------
    run : str
        Which.
    reason : str
        Why, and what to do.
    """

    def __init__(self, run: str, reason: str) -> None:
        super().__init__(run, reason)
        self.run = run
        self.reason = reason

    def __str__(self) -> str:
        return f"Run {self.run!r}: {self.reason}"


class UnknownRunError(RunError, LookupError):
    """There is no such run."""


class RunForgottenError(RunError):
    """A run was begun under this key, and its record is not kept any more: it is not begun again."""


class RunBusyError(RunError):
    """Another process is at work on this run."""


class WorkflowChangedError(RunError, ValueError):
    """The workflow file is not as it was when the run began.

    Parameters
    ----------
    run : str
        Which.
    steps : sequence of str
        The ids of the steps that have changed, are new, or are gone.
    """

    def __init__(self, run: str, steps: Sequence[str]) -> None:
        super().__init__(
            run,
            f"the workflow file has changed since it began: {', '.join(steps)}. Put the file back, or run "
            "these steps and what depends on them again: --accept-changes",
        )
        self.args = (run, tuple(steps))
        self.steps = tuple(steps)


class StepBlockedError(BudgetExceededError, RuntimeError):
    """The next step of a task would cross its limit. It did not run; nothing was spent.

    Parameters
    ----------
    task_id : str
        The task.
    requested : int
        What the step is projected to cost, in nano-dollars.
    available : int
        What is left of the limit.
    step_number : int
        Which step it would have been.
    spent, held : int
        What is spent, and what is set aside for steps in flight.
    limit : int
        The limit.
    decision : Decision, optional
        Every number behind the refusal.
    """

    def __init__(
        self,
        task_id: str,
        requested: int,
        available: int,
        step_number: int,
        spent: int,
        held: int,
        limit: int,
        decision: Decision | None = None,
    ) -> None:
        super().__init__(task_id, requested, available, decision)
        self.args = (task_id, requested, available, step_number, spent, held, limit, decision)
        self.axis = USD
        self.task_id = task_id
        self.step_number = step_number
        self.spent = spent
        self.held = held
        self.limit = limit

    def __str__(self) -> str:
        requested, available = self._words()
        spent, held, limit = (format_amount(USD, n) for n in (self.spent, self.held, self.limit))
        aside = f" and {held} set aside for steps in flight" if self.held else ""
        wait = ", wait for the steps in flight" if self.held else ""
        enough = format_amount(USD, self.spent + self.held + self.requested)
        return (
            f"Step {self.step_number} of task {self.task_id!r} is blocked: it is projected to cost "
            f"{requested}, and {available} of the limit of {limit} are left ({spent} spent{aside}). Raise "
            f"max_cost to {enough}{wait}, or ask for less with max_output_tokens."
        )


class StepResultError(TBCError, RuntimeError):
    """A step ran and did not return what says its cost. What was set aside for it is booked, estimated.

    Parameters
    ----------
    reason : {"not_a_dict", "no_usage", "usage_not_a_dict", "no_token_counts", "bad_token_counts"}
        What is wrong.
    found : str
        What there is instead, in words.
    result : object
        What the step returned: it has been paid for.
    """

    _RULES: ClassVar[dict[str, str]] = {
        "not_a_dict": "run_task must return a dict with 'output' and 'usage'",
        "no_usage": "run_task must return 'usage' beside its 'output': without it nobody knows the cost",
        "usage_not_a_dict": "'usage' must be a dict, or the usage object of a known client",
        "no_token_counts": "'usage' must contain 'input_tokens' and 'output_tokens'",
        "bad_token_counts": "'usage' must count tokens as whole numbers >= 0",
    }

    def __init__(self, reason: str, found: str, result: object = None) -> None:
        super().__init__(reason, found, result)
        self.reason = reason
        self.found = found
        self.result = result

    def __str__(self) -> str:
        return (
            f"{self._RULES[self.reason]}; {self.found}. What was set aside for the step is booked as an "
            "estimate; .result holds what it returned."
        )


class StepUnpricedError(UnknownPriceError, RuntimeError):
    """A step was refused: its task has a limit, and nobody knows what the step would cost."""


class UnknownTaskError(TBCError, ValueError):
    """No step of that task was ever asked for, or it has been forgotten.

    Parameters
    ----------
    task_id : object
        The task asked for.
    """

    def __init__(self, task_id: object) -> None:
        super().__init__(task_id)
        self.task_id = task_id

    def __str__(self) -> str:
        return f"Unknown task_id: {self.task_id!r}. tbc.execute(task_id=...) makes a task known."
