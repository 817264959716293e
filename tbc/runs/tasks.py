"""Steps of tasks that are known by name: `tbc.execute` and what it remembers.

A task is made by its first step and lives as long as the process, or until `forget_task`. For no globals,
use `tbc.Run`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tbc.decision import Mode
from tbc.money import Money
from tbc.pricing import UnknownPrice
from tbc.run_errors import UnknownTaskError
from tbc.runs.steps import Run
from tbc.runs.summary import show

__all__ = ["execute", "forget_task", "print_summary", "render_summary"]

_RUNS: dict[str, Run] = {}


def execute(
    *,
    task_id: str,
    run_task: Callable[..., Any],
    input_data: object = None,
    model: str | None = None,
    cost_model: Any = None,
    max_cost: Money | None = None,
    max_output_tokens: int | None = None,
    mode: Mode | None = None,
    unknown_price: UnknownPrice | None = None,
    quiet: bool | None = None,
) -> Any:
    """Run one step of a task, if it fits into what is left of the task's limit.

    The first step of a task makes its `tbc.Run` out of these arguments. What a later one leaves out is as it
    was in the first, and the limit as it was last set.

    Parameters
    ----------
    task_id : str
        Which task. Steps of one task share its limit, wherever they are made.
    run_task : callable
        Does the step and returns a dict with ``output`` and ``usage``.
    input_data : object, optional
        What will be sent, to be counted.
    model : str, optional
        Whose price it is.
    cost_model : mapping, optional
        ``{"input": ..., "output": ...}`` in dollars per token, instead.
    max_cost : Decimal, str, int or float, optional
        The limit in dollars, from now on. Never given: the task is only observed.
    max_output_tokens : int, optional
        The most that the step will write.
    mode : {"enforce", "audit"}, optional
        Chosen with the first step; default ``"enforce"``.
    unknown_price : {"refuse", "track"}, Decimal, or the name of a model, optional
        What is done about a model without a known price under a limit; default ``"refuse"``.
    quiet : bool, optional
        Print nothing about this step.

    Returns
    -------
    dict
        What ``run_task`` returned; an awaitable of it, if ``run_task`` is a coroutine function or returned
        one.

    See Also
    --------
    tbc.Run.execute : The same without a global name, with all errors that it raises.

    Examples
    --------
    >>> reply = {"output": "...", "usage": {"input_tokens": 1000, "output_tokens": 100}}
    >>> rates = {"input": "0.0000025", "output": "0.00001"}
    >>> for _ in range(100):
    ...     try:
    ...         done = execute(task_id="doc", run_task=lambda: reply, cost_model=rates, max_cost="0.02")
    ...     except RuntimeError:
    ...         break
    Step 1
    Cost: $0.0000 / $0.0200
    Status: ALLOWED
    <BLANKLINE>
    Step 2
    Cost: $0.0035 / $0.0200
    Status: ALLOWED
    <BLANKLINE>
    Step 3
    Cost: $0.0070 / $0.0200
    Status: ALLOWED
    <BLANKLINE>
    Step 4
    Cost: $0.0105 / $0.0200
    Status: ALLOWED
    <BLANKLINE>
    Step 5
    Cost: $0.0140 / $0.0200
    Status: BLOCKED
    Execution stopped: Budget threshold reached
    Projected cost: $0.0216 / $0.0200
    <BLANKLINE>
    >>> forget_task("doc")
    True
    """
    run = _RUNS.get(task_id) if isinstance(task_id, str) else None
    if run is None:
        made = Run(
            task_id,
            max_cost=max_cost,
            model=model,
            cost_model=cost_model,
            max_output_tokens=max_output_tokens,
            mode="enforce" if mode is None else mode,
            unknown_price=unknown_price,
        )
        run = _RUNS.setdefault(task_id, made)
    return run.execute(
        run_task,
        input_data,
        model=model,
        cost_model=cost_model,
        max_cost=max_cost,
        max_output_tokens=max_output_tokens,
        mode=mode,
        unknown_price=unknown_price,
        quiet=quiet,
    )


def render_summary(task_id: str) -> str:
    """Return the summary of a task.

    Raises
    ------
    UnknownTaskError
        No step of it was ever asked for (also a `ValueError`).
    """
    return _find(task_id).render_summary()


def print_summary(task_id: str) -> None:
    """Print the summary of a task on standard output.

    Raises
    ------
    UnknownTaskError
        No step of it was ever asked for (also a `ValueError`).
    """
    show(render_summary(task_id))


def forget_task(task_id: str) -> bool:
    """Forget a task with all that it spent, and return whether there was one. Steps in flight finish."""
    return _RUNS.pop(task_id, None) is not None


def _find(task_id: str) -> Run:
    run = _RUNS.get(task_id) if isinstance(task_id, str) else None
    if run is None:
        raise UnknownTaskError(task_id)
    return run
