"""One governed call: decide, hold, CALL, read the usage, settle.

``manager.govern(agent)`` returns a decorator for functions, coroutine functions, generators and async
generators. An iterator or a provider's stream object that a function returns is settled when it has been
consumed, closed, or dropped; an awaitable when it has been awaited (one that never is keeps its hold until
that expires).

The hold is the tokens of the input plus an output cap: the call's own (`cap_kwarg`), else
`max_output_tokens`, else the p90 of this agent's outputs (from 5 calls on), else the manager's
`default_output_tokens`. It is clamped to what can be had; if not even the input fits, the call is refused
before it runs. Without `cap_kwarg` the provider is not told the cap, and the bound is soft by what the calls
in flight write beyond it.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import io
from bisect import bisect_left, insort
from collections import deque
from collections.abc import (
    Awaitable,
    Callable,
    Collection,
    Mapping,
)
from contextlib import AbstractContextManager
from threading import Lock
from typing import TYPE_CHECKING, Any, NamedTuple, ParamSpec, Protocol, TypeVar

from tbc.contract import check_amount, check_seconds
from tbc.current import AsCurrent
from tbc.errors import (
    BudgetExceededError,
    HoldEndedError,
    InvalidContractError,
    OverrunError,
    StoreError,
    UnknownPriceError,
)
from tbc.holds import Said
from tbc.streams import AsyncStream, Stream, follow, follow_async

if TYPE_CHECKING:
    from tbc.manager import BudgetManager
    from tbc.stream_usage import StreamUsage
    from tbc.usage import Usage
    from tbc.watching import Watch

__all__ = ["Call", "Governed", "Governor", "OutputHistory"]

P = ParamSpec("P")
R = TypeVar("R")

_PLAIN = (str, bytes, int, float, type(None), Mapping, Collection)


class Governed(Protocol):
    """A decorator that keeps the signature and the return type."""

    def __call__(self, function: Callable[P, R], /) -> Callable[P, R]:
        """Return `function`, governed."""


class OutputHistory:
    """The last outputs of one agent, in tokens, and their p90 (nearest rank).

    An output that was cut off at a cap says only "at least that much": it counts double, or else a cap taken
    from the history could only ever shrink.
    """

    __slots__ = ("_last", "_lock", "_sorted")

    WINDOW = 100
    LEAST = 5

    def __init__(self) -> None:
        self._lock = Lock()
        self._last: deque[int] = deque()
        self._sorted: list[int] = []

    def add(self, tokens: int, *, cut_off: bool = False) -> None:
        """Remember one output."""
        tokens = 2 * tokens if cut_off else tokens
        with self._lock:
            self._last.append(tokens)
            insort(self._sorted, tokens)
            if len(self._last) > self.WINDOW:
                del self._sorted[bisect_left(self._sorted, self._last.popleft())]

    def p90(self) -> int | None:
        """Return the p90, at least 1, or ``None`` before the fifth call."""
        with self._lock:
            count = len(self._sorted)
            return None if count < self.LEAST else max(1, self._sorted[-(-9 * count // 10) - 1])


class Governor:
    """The terms of one `BudgetManager.govern`, and the ways to wrap a callable."""

    def __init__(
        self,
        manager: BudgetManager,
        agent_name: str,
        confidence_fn: Callable[[Any], float | None] | None,
        *,
        max_output_tokens: int | None,
        cap_kwarg: str | None,
        usage_fn: Callable[[Any], int | Usage | None] | None,
        on_overrun: str,
        on_error: str,
        not_sent: type[BaseException] | tuple[type[BaseException], ...],
        expires_s: float,
        model: str | Callable[..., str | None] | None,
        min_output_tokens: int | None,
    ) -> None:
        if on_overrun not in ("raise", "record"):
            raise InvalidContractError(f"on_overrun must be 'raise' or 'record', not {on_overrun!r}")
        if on_error not in ("book", "void"):
            raise InvalidContractError(f"on_error must be 'book' or 'void', not {on_error!r}")
        for name, value in {"confidence_fn": confidence_fn, "usage_fn": usage_fn}.items():
            if value is not None and not callable(value):
                raise InvalidContractError(f"{name} must be a callable or None, not {value!r}")
        if cap_kwarg is not None and not isinstance(cap_kwarg, str):
            raise InvalidContractError(f"cap_kwarg must be the name of an argument, not {cap_kwarg!r}")
        if not (model is None or isinstance(model, str) or callable(model)):
            raise InvalidContractError(f"model must be a name or a callable, not {model!r}")
        if max_output_tokens is not None:
            max_output_tokens = check_amount("max_output_tokens", max_output_tokens)
        if min_output_tokens is not None:
            min_output_tokens = check_amount("min_output_tokens", min_output_tokens)
        elif cap_kwarg is not None:
            min_output_tokens = 1
        self.min_output_tokens = min_output_tokens or 0
        self.manager = manager
        self.agent_name = agent_name
        self.confidence_fn = confidence_fn
        self.max_output_tokens = max_output_tokens
        self.cap_kwarg = cap_kwarg
        self.usage_fn = usage_fn
        self.raise_overrun = on_overrun == "raise"
        proofs = not_sent if isinstance(not_sent, tuple) else (not_sent,)
        if not all(isinstance(proof, type) and issubclass(proof, BaseException) for proof in proofs):
            raise InvalidContractError(f"not_sent takes exception types, not {not_sent!r}")
        self.not_sent = (BaseException,) if on_error == "void" else proofs
        self.expires_s = check_seconds("expires_s", expires_s)
        self.model = model

    def __call__(self, function: Callable[..., Any], /) -> Callable[..., Any]:
        """Return `function`, governed."""
        begin = self.prepare(function)
        plain = inspect.isroutine(function) or inspect.isclass(function)
        target = function if plain else getattr(function, "__call__", function)  # noqa: B004

        def begin_here(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Call, Any]:
            call = begin(args, kwargs)
            return call, call.start()

        async def begin_aside(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Call, Any]:
            call = await self.manager.aside(begin, args, kwargs, undo=_never_sent)
            return call, call.start()

        wrapped: Callable[..., Any]
        if inspect.isgeneratorfunction(function) or inspect.isgeneratorfunction(target):
            wrapped = follow(begin_here)
        elif inspect.isasyncgenfunction(function) or inspect.isasyncgenfunction(target):
            wrapped = follow_async(begin_aside)
        elif inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(target):

            async def wrapped(*args: Any, **kwargs: Any) -> Any:
                call, started = await begin_aside(args, kwargs)
                return await call.await_result(started)

        else:

            def wrapped(*args: Any, **kwargs: Any) -> Any:
                call, started = begin_here(args, kwargs)
                return call.finish_or_follow(started)

        return functools.wraps(function)(wrapped)

    def prepare(self, function: Callable[..., Any]) -> Callable[[tuple[Any, ...], dict[str, Any]], Call]:
        """Return what takes the hold for one call of `function`, given its arguments, or raises the refusal.

        For those who decide in one place and call in another.
        """
        if not callable(function):
            raise InvalidContractError(
                f"govern takes a function, not {function!r}; put it below @classmethod and @staticmethod"
            )
        name = str(getattr(function, "__name__", type(function).__name__))
        cap = self._find_cap(function)
        bound_to = _first_is_owner(function)
        model_position = _position(function, "model")

        def begin(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call:
            model = self._model_of(model_position, args, kwargs)
            return Call(self, function, name, cap, bound_to, model, args, kwargs)

        return begin

    def _model_of(self, position: int | None, args: tuple[Any, ...], kwargs: dict[str, Any]) -> str | None:
        """Return the name of the model that a call is for, if anybody says it."""
        if callable(self.model):
            return self.model(*args, **kwargs)
        if self.model is not None:
            return self.model
        model = kwargs.get("model")
        if model is None and position is not None and position < len(args):
            model = args[position]
        return model if isinstance(model, str) else None

    def _find_cap(self, function: Callable[..., Any]) -> _CapArgument:
        """Return where `cap_kwarg` may come as a positional argument, and its default."""
        if self.cap_kwarg is None:
            return _CapArgument(None, None)
        parameters = _parameters(function)
        parameter = None if parameters is None else parameters.get(self.cap_kwarg)
        if parameters is None or parameter is None:
            if parameters is None or any(each.kind is each.VAR_KEYWORD for each in parameters.values()):
                return _CapArgument(None, None)
            raise InvalidContractError(
                f"cap_kwarg={self.cap_kwarg!r} is no argument of {function!r}; it has {list(parameters)}"
            )
        if parameter.kind is parameter.POSITIONAL_ONLY:
            raise InvalidContractError(
                f"cap_kwarg={self.cap_kwarg!r} of {function!r} is positional-only: it cannot be handed over"
            )
        default = parameter.default
        return _CapArgument(
            _position(function, self.cap_kwarg), default if type(default) is int and default >= 0 else None
        )


def _never_sent(call: Call) -> None:
    """End the hold of a call that nobody waited for."""
    call.hold.void()


class _CapArgument(NamedTuple):
    """Where the cap of the output may come as a positional argument, and its default."""

    position: int | None
    default: int | None


def _first_is_owner(function: Callable[..., Any]) -> bool:
    """Return whether the first argument is the object that a method belongs to: that is not sent."""
    parameters = _parameters(function)
    return next(iter(parameters or ()), None) in ("self", "cls")


def _parameters(function: Callable[..., Any]) -> Mapping[str, inspect.Parameter] | None:
    try:
        return inspect.signature(function).parameters
    except (TypeError, ValueError):
        return None  # a builtin: nothing is known


def _position(function: Callable[..., Any], name: str) -> int | None:
    """Return where an argument may come as a positional one."""
    parameters = _parameters(function)
    parameter = None if parameters is None else parameters.get(name)
    if parameters is None or parameter is None or parameter.kind is not parameter.POSITIONAL_OR_KEYWORD:
        return None
    return list(parameters).index(name)


class Call:
    """One governed call from its hold to its end. The ends are the same for plain and async callers."""

    __slots__ = (
        "_chunk_usage",
        "_function",
        "_governor",
        "_keep_until",
        "_manager",
        "_output_is_stated",
        "_sent",
        "agent_name",
        "args",
        "cap",
        "cap_from_history",
        "hands_over_cap",
        "hold",
        "input_tokens",
        "kwargs",
        "model",
        "operation",
        "streamed_tokens",
        "usage",
        "watch",
    )

    def __init__(
        self,
        governor: Governor,
        function: Callable[..., Any],
        name: str,
        cap: _CapArgument,
        bound_to: bool,
        model: str | None,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> None:
        self._governor = governor
        self._function = function
        manager = self._manager = governor.manager
        self.agent_name = governor.agent_name
        self.operation: str | None = name
        self.model = model
        self.hands_over_cap = governor.cap_kwarg is not None
        self.usage: Usage | None = None  # as it was stated or read at the end
        self.watch: Watch | None = None
        self.args, self.kwargs = args, kwargs
        self.streamed_tokens = 0
        self._chunk_usage: StreamUsage | None = None
        self._output_is_stated = False
        self._sent = False  # whether a request is under way that others may read the reply of
        asked = self._asked_cap(cap)
        self.cap_from_history = False
        self.cap = self._default_cap() if asked is None else asked
        self.input_tokens = self._count_input(cap.position, bound_to) if args or kwargs else 0
        least = self.input_tokens + min(governor.min_output_tokens, self.cap)
        try:
            self.hold = manager.hold_call(
                governor.agent_name,
                self.input_tokens,
                self.cap,
                at_least=least,
                model=model,
                expires_s=governor.expires_s,
                operation=name,
            )
        except (BudgetExceededError, UnknownPriceError) as error:
            if manager.call_watcher is not None:
                manager.call_watcher.refused(self, error)
            raise
        self.cap = self.hold.tokens - self.input_tokens
        self._keep_until = self.hold.expires_at - governor.expires_s / 2
        if governor.cap_kwarg is not None:
            self._hand_over_cap(governor.cap_kwarg, cap.position)

    def _count_input(self, cap_position: int | None, bound_to: bool) -> int:
        """Count every argument but the cap and the object of a method."""
        cap_kwarg = self._governor.cap_kwarg
        args = [arg for i, arg in enumerate(self.args) if i != cap_position and (i or not bound_to)]
        values = [value for name, value in self.kwargs.items() if name != cap_kwarg]
        return self._manager.count([args, values], model=self.model)

    def _asked_cap(self, argument: _CapArgument) -> int | None:
        governor, position = self._governor, argument.position
        if governor.cap_kwarg is not None:
            if position is not None and position < len(self.args):
                cap = self.args[position]
            else:
                cap = self.kwargs.get(governor.cap_kwarg, argument.default)
            if cap is not None:
                return check_amount(governor.cap_kwarg, cap)
        return governor.max_output_tokens

    def _default_cap(self) -> int:
        usual = self._manager.output_history(self._governor.agent_name).p90()
        self.cap_from_history = usual is not None
        return self._manager.default_output_tokens if usual is None else usual

    def _hand_over_cap(self, cap_kwarg: str, position: int | None) -> None:
        if position is not None and position < len(self.args):
            self.args = (*self.args[:position], self.cap, *self.args[position + 1 :])
        else:
            self.kwargs = {**self.kwargs, cap_kwarg: self.cap}

    # -- running -------------------------------------------------------------------------------------------

    def start(self) -> Any:
        """Call the function; an exception ends the hold."""
        watcher = self._manager.call_watcher
        if watcher is not None:
            self.watch = watcher.began(self)
        with self.running():
            try:
                return self._function(*self.args, **self.kwargs)
            except BaseException as error:
                self.fail(error)
                raise

    def running(self) -> AbstractContextManager[object]:
        """Return what to enter around code of the call: its hold is the current one there."""
        return AsCurrent(self.hold) if self.watch is None else self.watch.running()

    def _ended(self, error: BaseException | None = None) -> None:
        if self.watch is not None:
            self.watch.ended(error)

    async def aside(self, work: Callable[..., Any], *values: Any) -> Any:
        """Await what may wait for a store."""
        return await self._manager.aside(work, *values)

    async def await_result(self, awaitable: Awaitable[Any]) -> Any:
        """Await the result and end the hold."""
        with self.running():
            try:
                result = await awaitable
            except GeneratorExit as error:
                self.fail(error)
                raise
            except BaseException as error:
                await self.aside(self.fail, error)
                raise
        return await self.aside(self.finish_or_follow, result)

    def finish_or_follow(self, result: Any) -> Any:
        """End the hold, or follow what is still to be consumed."""
        if hasattr(type(result), "__next__") and not isinstance(result, io.IOBase):
            self._sent = not inspect.isgenerator(result)
            return Stream(self, result)
        if hasattr(type(result), "__anext__"):
            self._sent = not inspect.isasyncgen(result)
            return AsyncStream(self, result)
        if hasattr(type(result), "add_done_callback"):  # a task or future: whoever has it waits for it
            result.add_done_callback(self._finish_done)
            return result
        if inspect.isawaitable(result):
            return self.await_result(result)
        self.finish(result)
        return result

    # -- ending --------------------------------------------------------------------------------------------

    def _finish_done(self, future: Any) -> None:
        """End the hold with a task or future. An overrun is booked; there is nobody to raise it to."""
        try:
            result = future.result()
        except BaseException as error:
            self.fail(error)
        else:
            with contextlib.suppress(OverrunError):
                self.finish(result)

    def add_chunk(self, chunk: Any) -> bool:
        """Count a chunk as it arrives; returns whether it is time to keep the hold alive.

        Notes the usage that it may carry.
        """
        from tbc.stream_usage import StreamUsage
        from tbc.usage import text_of

        if self._chunk_usage is None:
            self._chunk_usage = StreamUsage()
            if self.watch is not None:
                self.watch.streams()
        stated = self._chunk_usage.add(chunk)
        text = text_of(chunk)
        if text:
            self.streamed_tokens += self._manager.count(text, model=self.model)
        if stated is not None and stated.all_output is not None:
            self._output_is_stated = True
        elif text:  # written after what was stated: that was not the last word
            self._output_is_stated = False
        return self._manager.now() >= self._keep_until and self.hold.state == "open"

    def keep_alive(self) -> None:
        """Let the hold live on while chunks come."""
        with contextlib.suppress(HoldEndedError):  # it expired in the pause: the settle will be late
            self.hold.extend(expires_s=self._governor.expires_s)
        self._keep_until = self._manager.now() + self._governor.expires_s / 2

    def finish_stream(self, result: Any = None) -> None:
        """Settle a stream that ran to its end; `result` is what a generator returned."""
        chunks = self._chunk_usage
        usage = None if chunks is None else chunks.usage
        try:
            if usage is not None and self._output_is_stated:
                self._settle(usage.tokens, None, usage.all_output, usage, result=result)
            elif chunks is None:
                self._settle(None, self.input_tokens, 0, None, result=result)
            else:
                usage = chunks.so_far(self.input_tokens, self.streamed_tokens)
                self._settle(None, usage.tokens, usage.all_output, usage, result=result)
        except BaseException as error:
            _attach_result(error, result)
            if not isinstance(error, StoreError):  # else it has ended, or is settled later
                self._settle_whole()
            raise
        finally:
            self._ended()

    def abandon(self) -> None:
        """Book a stream that was left half-way. Never waits or imports: finalizers come here too."""
        if self.hold.state in ("open", "expired"):
            self._book_so_far()
        if self.watch is not None:
            self.watch.left()

    def _book_so_far(self) -> None:
        hold, chunks, said = self.hold, self._chunk_usage, self.hold.unkept
        if said is None and hold.recorded:
            said = Said(hold.recorded, estimated=True)
        elif said is None and chunks is not None:
            usage = chunks.so_far(self.input_tokens, self.streamed_tokens)
            nano = None if hold.price is None else hold.price.cost(usage)
            said = Said(usage.tokens, nano, estimated=True)
        elif said is None:  # if it was read by ways of its own, nobody knows how much
            said = Said(hold.tokens if self._sent else self.input_tokens, estimated=True)
        hold.end_later(said)

    def fail(self, error: BaseException) -> None:
        """End the hold of a call that raised."""
        try:
            self._book_failed(error)
        finally:
            if self.watch is not None and isinstance(error, GeneratorExit):  # perhaps by a finalizer
                self.watch.left()
            else:
                self._ended(error)

    def _book_failed(self, error: BaseException) -> None:
        chunks = self._chunk_usage
        if chunks is not None and not self.hold.recorded and self.hold.state in ("open", "expired"):
            usage = chunks.so_far(self.input_tokens, self.streamed_tokens)
            self.hold.expect_input(usage.all_input or 0)
            self.hold.record(usage.tokens or 0)
        self.hold.leave(error, self._governor.not_sent)

    def finish(self, result: Any) -> None:
        """Settle a call that returned `result`; whatever raises on the way carries the result."""
        try:
            self._read_and_settle(result)
        except BaseException as error:
            _attach_result(error, result)
            if not isinstance(error, StoreError):  # else it has ended, or is settled later
                self._settle_whole()
            raise
        finally:
            self._ended()

    def _settle_whole(self) -> None:
        """Book the whole hold, if something unforeseen has kept it from being settled."""
        if self.hold.state in ("open", "expired"):
            with contextlib.suppress(StoreError):  # it is settled later
                self.hold.end(self.hold.unkept or Said(estimated=True))

    def _read_and_settle(self, result: Any) -> None:
        from tbc.usage import Usage, read_usage

        usage: Usage | None = None
        used: int | None = None
        problem: BaseException | None = None
        try:
            if self._governor.usage_fn is not None:
                stated = self._governor.usage_fn(result)
                if stated is None or isinstance(stated, Usage):
                    usage = stated
                else:
                    used = check_amount("usage_fn's tokens", stated)
        except BaseException as error:
            problem = error
        if problem is not None or self._governor.usage_fn is None:
            usage = read_usage(result)
        output: int | None = None
        if usage is not None:
            used, output = usage.tokens, usage.all_output
        counted: int | None = None
        if used is None:
            counted = self._count_reply(result)
        elif output is None:
            output = max(0, used - self.input_tokens)
        self._settle(used, counted, output, usage, result=result, problem=problem)

    def _count_reply(self, result: Any) -> int | None:
        """Return input plus counted output; ``None`` if the reply cannot be read at all."""
        from tbc.usage import reply_text

        text = reply_text(result)
        counted = self._manager.count(result if text is None else text, model=self.model)
        if not counted and text is None and not isinstance(result, _PLAIN):
            return None
        return self.input_tokens + counted

    def _settle(
        self,
        used: int | None,
        counted: int | None,
        output: int | None,
        usage: Usage | None,
        *,
        result: Any = None,
        problem: BaseException | None = None,
    ) -> None:
        """Book the usage, or what was recorded, or the count as an estimate; then remember, then raise."""
        hold, governor = self.hold, self._governor
        self.usage = usage
        if hold.state in ("open", "expired"):
            said = hold.unkept
            if said is None and used is not None:
                said = self._manager.said_of(hold, used, False, usage=usage)
            elif said is None and hold.recorded:
                said = Said(hold.recorded)
            elif said is None and counted is not None:
                said = self._manager.said_of(hold, counted, True, usage=usage)
            hold.end(said or Said(estimated=True))
        settlement = hold.settlement
        assert settlement is not None, "the hold has ended"
        if output is None:
            output = max(0, settlement.tokens - self.input_tokens)
        # What nobody knows teaches nothing, nor does a call that cost nothing, as from a cache of replies.
        if used or (used is None and (counted is not None or hold.recorded)):
            told = self.cap_from_history and governor.cap_kwarg is not None
            history = self._manager.output_history(governor.agent_name)
            history.add(output, cut_off=told and output >= self.cap > 0)
        if problem is not None:
            raise problem
        if governor.confidence_fn is not None and (result is not None or self._chunk_usage is None):
            confidence = governor.confidence_fn(result)
            if confidence is not None:
                self._manager.report_confidence(governor.agent_name, confidence)
        if governor.raise_overrun:
            self._manager.raise_overrun(settlement)


def _attach_result(error: BaseException, result: Any) -> None:
    try:
        error.result = result  # type: ignore[attr-defined]
    except AttributeError:
        error.add_note(f"the call had returned {result!r}")
