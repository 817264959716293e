"""The functions that steps call: found by name, given what they take, and their replies turned into results.

A function takes the step's input and, if it has arguments of these names, `model` and `max_output_tokens`. It
may be a coroutine function. What it returns is one of:

- a reply of a provider, as an object or a dict: the result is its text;
- a stream of one, or a generator: it is read to its end, and the result is its text;
- a dict with ``output`` and ``usage``: the result is the output; a ``confidence`` beside them (0 to 1) is
  reported to the agent's gate;
- any other value that JSON can hold: that is the result, and the usage is counted, as an estimate.
"""

from __future__ import annotations

import asyncio
import importlib
import inspect
import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from attrs import frozen

from tbc.govern import Call
from tbc.replies import text_of
from tbc.run_errors import ResultNotKeptError, WorkflowFileError
from tbc.runs.workflow import Workflow

__all__ = ["StepFunction", "confidence_of", "fetch", "find_functions", "result_of"]


@frozen
class StepFunction:
    """A function and which of the named arguments it takes."""

    function: Callable[..., Any]
    takes_model: bool
    takes_cap: bool

    def bind(self, name: str, model: str | None) -> Callable[..., Any]:
        """Return what is governed: it takes the input, and the output cap by name if the function does."""
        given = {"model": model} if self.takes_model else {}

        def call(value: object, **cap: Any) -> Any:
            return self.function(value, **given, **cap)

        call.__name__ = name
        return call


def find_functions(workflow: Workflow) -> dict[str, StepFunction]:
    """Import what the steps call, by the names in the file; modules beside the file are found too.

    Raises
    ------
    WorkflowFileError
        What cannot be imported or called, all of it.
    """
    folder = str(Path(workflow.path).resolve().parent)
    if folder not in sys.path:
        sys.path.insert(0, folder)
    found: dict[str, StepFunction] = {}
    problems: list[tuple[str, str]] = []
    for number, step in enumerate(workflow.steps):
        if step.call in found:
            continue
        try:
            found[step.call] = _find(step.call)
        except Exception as error:
            problems.append((f"steps[{number}].call", f"{step.call}: {type(error).__name__}: {error}"))
    if problems:
        raise WorkflowFileError(workflow.path, problems)
    return found


def _find(call: str) -> StepFunction:
    module, _, names = call.partition(":")
    function: Any = importlib.import_module(module)
    for name in names.split("."):
        function = getattr(function, name)
    if not callable(function):
        raise TypeError("that is no function")
    parameters = inspect.signature(function).parameters
    anything = any(each.kind is each.VAR_KEYWORD for each in parameters.values())
    by_name = {name for name, each in parameters.items() if each.kind is not each.POSITIONAL_ONLY}
    return StepFunction(function, anything or "model" in by_name, anything or "max_output_tokens" in by_name)


def fetch(call: Call) -> tuple[Any, bool]:
    """Make a call and wait for all of its reply; an exception ends its hold.

    Returns
    -------
    reply : object
        What came; of a stream its text.
    streamed : bool
        Whether it was a stream.
    """
    reply = call.start()
    with call.running():
        try:
            if inspect.isawaitable(reply) or hasattr(type(reply), "__anext__"):
                return asyncio.run(_wait_for(call, reply))
            return _read(call, reply)
        except BaseException as error:
            call.fail(error)
            raise


def _read(call: Call, reply: Any) -> tuple[Any, bool]:
    if not hasattr(type(reply), "__next__"):
        return reply, False
    text = []
    for chunk in reply:
        if call.add_chunk(chunk):
            call.keep_alive()
        text.append(text_of(chunk))
    return "".join(text), True


async def _wait_for(call: Call, reply: Any) -> tuple[Any, bool]:
    while inspect.isawaitable(reply):
        reply = await reply
    if not hasattr(type(reply), "__anext__"):
        return _read(call, reply)
    text = []
    async for chunk in reply:
        if call.add_chunk(chunk):
            call.keep_alive()
        text.append(text_of(chunk))
    return "".join(text), True


def confidence_of(reply: object) -> float | None:
    """Return the confidence that a reply states."""
    return reply.get("confidence") if isinstance(reply, Mapping) and "output" in reply else None


def result_of(step: str, reply: object) -> object:
    """Return what later steps see of a reply.

    Raises
    ------
    ResultNotKeptError
        If JSON cannot hold it: it could not be kept. The error carries it.
    """
    from tbc.usage import read_usage, reply_text

    result: object = reply
    if isinstance(reply, Mapping) and "output" in reply and "usage" in reply:
        result = reply["output"]
    elif read_usage(reply) is not None:
        text = reply_text(reply)
        result = reply if text is None else text
    try:
        json.dumps(result, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise ResultNotKeptError(step, f"what it returned cannot be kept as JSON ({error})", reply) from error
    return result
