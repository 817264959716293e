"""What carries a step out: a simulation, or a callable that the service was started with.

Nothing that a request says is ever imported: the callable is named in the service's own configuration and
found once, at its start.

Examples
--------
>>> resolve("math:gcd").name
'math:gcd'
>>> resolve("math:nothing")
Traceback (most recent call last):
tbc.errors.InvalidContractError: --executor math:nothing: the module math has no 'nothing'
"""

from __future__ import annotations

import asyncio
import functools
import importlib
import inspect
import json
import random
from collections.abc import Callable, Mapping
from typing import Any, Final

import anyio
import anyio.to_thread
import attrs

from tbc.errors import InvalidContractError
from tbc.money import to_nano, to_usd
from tbc.run_errors import ResultNotKeptError
from tbc.runs.step_result import read_step_usage
from tbc.usage import Usage

__all__ = [
    "Brought",
    "Executor",
    "Step",
    "StepInterruptedError",
    "dollars",
    "output_of",
    "read_outcome",
    "resolve",
    "simulate",
    "usage_of",
]

#: How many blocking callables are at work at once; the others wait for a thread.
_THREADS: Final = 64


@attrs.frozen(kw_only=True)
class Step:
    """What a callable is given: a step of a run, and the model that the policy chose for it.

    Attributes
    ----------
    run_id, agent_name, goal : str
        Of the run.
    number : int
        Which step of the run it is, from 1.
    name, step_type : str
        Its node, and what the policy took it for.
    tier, model : str or None
        What was chosen.
    input_tokens, max_output_tokens : int
        What was set aside for: hand the latter to the model as its cap.
    latency_sla_ms : int or None
        How fast it should be.
    previous : str or None
        The output of the step before.
    seed : int
        Of the run.
    """

    run_id: str
    agent_name: str
    goal: str
    number: int
    name: str
    step_type: str
    tier: str
    model: str | None
    input_tokens: int
    max_output_tokens: int
    latency_sla_ms: int | None
    previous: str | None
    seed: int


@attrs.frozen(kw_only=True)
class Brought:
    """What a step used.

    Attributes
    ----------
    usage : Usage
        Tokens.
    nano : int or None
        What it cost, in nano-dollars, if that is stated; else by the price of the tier.
    """

    usage: Usage
    nano: int | None = None


class StepInterruptedError(Exception):
    """A callable raised what ends tasks or processes: it ends its own step, and nothing else.

    Parameters
    ----------
    error : BaseException
        What it raised, such as `asyncio.CancelledError` or `SystemExit`.
    """

    def __init__(self, error: BaseException) -> None:
        super().__init__(f"the callable raised {type(error).__name__}")
        self.error = error


def simulate(step: Step) -> dict[str, Any]:
    """Return what a step might use: the whole input, and by the seed between half and all of its output."""
    draw = random.Random(f"{step.seed}/{step.number}/{step.name}/{step.tier}")
    written = draw.randint((step.max_output_tokens + 1) // 2, step.max_output_tokens)
    usage = {"input_tokens": step.input_tokens, "output_tokens": written}
    return {"output": f"simulated {step.step_type} result", "usage": usage}


@attrs.frozen
class Executor:
    """A callable that carries steps out.

    Attributes
    ----------
    name : str
        As the configuration names it.
    function : callable
        Takes a `Step`; returns a dict with ``output`` and ``usage``, as `tbc.execute` reads it, and ``usd``,
        if it knows what it cost. A coroutine function is awaited, any other is called in a thread.
    """

    name: str
    function: Callable[[Step], Any]

    async def call(self, step: Step) -> Any:
        """Return what the callable returns.

        Raises
        ------
        Exception
            It raised that.
        StepInterruptedError
            It raised what is no `Exception`, and nobody has cancelled this task.
        """
        task = asyncio.current_task()
        asked = 0 if task is None else task.cancelling()
        try:
            return await self._call(step)
        except Exception:
            raise
        except BaseException as error:
            if isinstance(error, asyncio.CancelledError) and task is not None and task.cancelling() > asked:
                raise  # it is this request that is ended, not something within the callable
            if isinstance(error, GeneratorExit) and not _is_at_work(task):
                raise  # so is what nobody goes on with
            raise StepInterruptedError(error) from error

    async def _call(self, step: Step) -> Any:
        function = self.function
        if inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(type(function).__call__):
            return await function(step)
        found = await anyio.to_thread.run_sync(
            self._in_thread, step, abandon_on_cancel=True, limiter=_threads()
        )
        return await found if inspect.isawaitable(found) else found

    def _in_thread(self, step: Step) -> Any:
        try:
            return self.function(step)
        except GeneratorExit as error:  # a future that brought it to the loop would close what awaits it
            raise StepInterruptedError(error) from error


def _is_at_work(task: asyncio.Task[Any] | None) -> bool:
    """Return whether it is this task that runs: a coroutine that is closed as garbage is not in its own."""
    try:
        return task is not None and asyncio.current_task() is task
    except RuntimeError:  # no loop runs any more
        return False


@functools.cache
def _threads() -> anyio.CapacityLimiter:
    return anyio.CapacityLimiter(_THREADS)


def read_outcome(result: object) -> Brought:
    """Return what a callable said.

    Raises
    ------
    StepResultError, InvalidAmountError
        It says nothing of what it used, or what cannot be.
    """
    usage = usage_of(result)
    assert isinstance(result, Mapping), "it has been read"
    usd = result.get("usd")
    nano = None if usd is None else to_nano("usd", usd)
    return Brought(usage=usage, nano=nano)


def usage_of(result: object) -> Usage:
    """Return the tokens that a callable states.

    Raises
    ------
    StepResultError
        It states none, or what cannot be.
    """
    used = read_step_usage(result)
    return used.usage or Usage(input_tokens=used.input_tokens, output_tokens=used.output_tokens)


def output_of(step: str, result: object) -> str | None:
    """Return the output of a step as text; ``None`` if it has none.

    Raises
    ------
    ResultNotKeptError
        JSON cannot hold it.
    """
    output = result.get("output") if isinstance(result, Mapping) else None
    if output is None or isinstance(output, str):
        return output
    try:
        return json.dumps(output, default=str)
    except Exception as error:
        raise ResultNotKeptError(step, f"JSON cannot hold its output ({type(error).__name__})") from None


def dollars(nano: int | None) -> Any:
    """Return nano-dollars as the books take dollars."""
    return None if nano is None else to_usd(nano)


def resolve(spec: str) -> Executor:
    """Return the callable that a configuration names as ``package.module:function``.

    Raises
    ------
    InvalidContractError
        There is none.
    """
    module, colon, path = spec.partition(":")
    if not (colon and module and path):
        raise InvalidContractError(f"--executor {spec}: must be package.module:function")
    try:
        found: Any = importlib.import_module(module)
    except ImportError as error:
        raise InvalidContractError(f"--executor {spec}: {error}") from error
    for name in path.split("."):
        try:
            found = getattr(found, name)
        except AttributeError:
            raise InvalidContractError(f"--executor {spec}: the module {module} has no {path!r}") from None
    if not callable(found):
        raise InvalidContractError(f"--executor {spec}: it is {type(found).__name__}, and cannot be called")
    return Executor(spec, found)
