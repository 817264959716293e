"""Governed calls as inference spans: one for each call that was made, from its start to the end of its hold.

A call that was refused has no span: the span that it was refused in gets an event. A call in which other
governed calls were made is taken for the agent around them: what they used is said by them, and not again.
No argument, reply, key or message of an error is ever looked at.
"""

from __future__ import annotations

import functools
import logging
import re
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from contextvars import ContextVar, Token
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, ParamSpec, TypeVar

from opentelemetry import context as contexts
from opentelemetry.metrics import Meter
from opentelemetry.trace import Span, SpanKind, StatusCode, Tracer, get_current_span, set_span_in_context

from tbc import catalogue
from tbc.axes import USD
from tbc.clock import system_clock, wall_ns
from tbc.current import CARRIED, AsCurrent
from tbc.error_codes import code_of
from tbc.errors import BudgetExceededError, UnknownPriceError
from tbc.labels import OTHER, FirstLabels
from tbc.telemetry import conventions as names
from tbc.telemetry.conventions import Conventions, make_instruments, usage_attributes

if TYPE_CHECKING:
    from tbc.decision import Settlement
    from tbc.telemetry.budgets import Budgets
    from tbc.usage import Usage
    from tbc.watching import WatchedCall

__all__ = ["Calls", "Provider"]

P = ParamSpec("P")
R = TypeVar("R")
#: Whose models are called: a name, or a function from the model to one.
Provider = str | Callable[[str | None], str | None]

_LOG: Final = logging.getLogger("tbc")
_UNKNOWN: Final = "unknown"
#: What a model is called: anything else is not written.
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/@+-]{0,127}", re.ASCII)
_INNERMOST: ContextVar[_Watched | None] = ContextVar("tbc_watched_call", default=None)
CARRIED.append(_INNERMOST)  # calls in threads are in the call that they were started in


def _quiet(method: Callable[P, R]) -> Callable[P, R | None]:
    """Return a method that raises nothing: no call fails because it cannot be told of."""

    @functools.wraps(method)
    def quiet(*args: P.args, **kwargs: P.kwargs) -> R | None:
        try:
            return method(*args, **kwargs)
        except Exception:
            _LOG.exception("telemetry failed")
            return None

    return quiet


class Calls:
    """Watches the governed calls of one manager; see `tbc.watching.CallWatcher`.

    Parameters
    ----------
    tracer, meter : Tracer, Meter
        Make spans and instruments.
    release : {"0.1", "1.41"}
        Of the conventions.
    provider : str or callable, optional
        Whose models are called. Default: as the price data says.
    budgets : Budgets
        Counts refusals without a decision.
    fixed : dict
        Attributes of everything.
    """

    def __init__(
        self,
        tracer: Tracer,
        meter: Meter,
        release: Conventions,
        provider: Provider | None,
        budgets: Budgets,
        fixed: dict[str, str],
    ) -> None:
        self.tracer = tracer
        self.release = release
        self.instruments = make_instruments(meter, release)
        self.fixed = fixed
        self.label = FirstLabels(100)
        self._budgets = budgets
        self._provider = provider
        self._left: deque[_Watched] = deque()  # streams left half-way, to be ended by the next who may wait

    @_quiet
    def began(self, call: WatchedCall) -> _Watched:
        """Note that a call has its hold and is made now."""
        self.flush()
        outer = _INNERMOST.get()
        if outer is not None:
            outer.wraps = True
        return _Watched(self, call, outer)

    @_quiet
    def refused(self, call: WatchedCall, error: BudgetExceededError | UnknownPriceError) -> None:
        """Note that a call was refused: it is not made."""
        decision = None if isinstance(error, UnknownPriceError) else error.decision
        reason = code_of(error).code if decision is None else str(decision.status)
        if decision is None:
            self._budgets.refused(reason, call.agent_name)
        said: dict[str, Any] = {names.AGENT: call.agent_name, "tbc.reason": reason, **self.fixed}
        if decision is not None:
            said |= {"tbc.axis": decision.axis, "tbc.requested": decision.requested}
            if decision.available is not None:
                said["tbc.available"] = decision.available
        get_current_span().add_event("tbc.refused", said)

    def provider_of(self, model: str | None) -> str:
        """Return the name of the provider of a model."""
        if callable(self._provider):
            return self._provider(model) or _UNKNOWN
        if self._provider is not None:
            return self._provider
        found = None if model is None else catalogue.provider_of(model)
        return _UNKNOWN if found is None else names.WELL_KNOWN.get(found, found)

    def leave(self, watched: _Watched) -> None:
        """End a call later. Never waits."""
        self._left.append(watched)

    def flush(self, *, all_of_them: bool = False) -> None:
        """End the spans of streams that were left half-way; those whose hold has not ended yet later."""
        for _ in range(len(self._left)):
            with suppress(IndexError):  # another thread has taken it
                watched = self._left.popleft()
                if watched.is_settled or all_of_them:
                    watched.finish(None)
                else:
                    self._left.append(watched)


class _Watched:
    """One governed call while it runs; see `tbc.watching.Watch`."""

    def __init__(self, calls: Calls, call: WatchedCall, outer: _Watched | None) -> None:
        self._calls, self._call = calls, call
        self.wraps = False
        self._ended = False
        self._end_ns: int | None = None
        model = call.model if call.model is not None and _NAME.fullmatch(call.model) else None
        self._model = OTHER if model is None and call.model is not None else model
        self._provider = calls.provider_of(model)
        attributes: dict[str, Any] = {
            names.OPERATION: "chat",
            names.PROVIDER: self._provider,
            names.AGENT: call.agent_name,
            **calls.fixed,
        }
        if call.operation is not None:
            attributes["tbc.operation"] = call.operation
        if self._model is not None:
            attributes[names.MODEL] = self._model
        if call.hands_over_cap:
            attributes[names.MAX_TOKENS] = call.cap
        decision = call.hold.decision
        if decision is not None:
            attributes["tbc.decision"] = str(decision.status)
        # Why: a thread that was given its hold alone has no span to be under.
        under = None
        if outer is not None and not get_current_span().get_span_context().is_valid:
            under = set_span_in_context(outer.span)
        self._start_ns, self._start = wall_ns(), system_clock()
        self.span: Span = calls.tracer.start_span(
            "chat" if self._model is None else f"chat {self._model}",
            context=under,
            kind=SpanKind.CLIENT,
            attributes=attributes,
            start_time=self._start_ns,
        )

    def running(self) -> _Running:
        """Return what to enter around the code of the call, and for every step of its stream anew."""
        return _Running(self, self._call)

    @_quiet
    def streams(self) -> None:
        """Note that the first chunk has come."""
        self.span.set_attribute(names.STREAM, True)
        self._calls.instruments.first_chunk.record(system_clock() - self._start, self._measured())

    @_quiet
    def ended(self, error: BaseException | None) -> None:
        """Note that the call has ended; said more than once, the first counts."""
        if not self._ended and self._end_ns is None:
            self.finish(error)
        self._calls.flush()

    def left(self) -> None:
        """Note that its stream was left half-way. Never waits: finalizers come here too."""
        if not self._ended and self._end_ns is None:
            self._end_ns = self._now_ns()
            self._calls.leave(self)

    @property
    def is_settled(self) -> bool:
        """Whether the hold has ended."""
        return self._call.hold.settlement is not None

    @_quiet
    def finish(self, error: BaseException | None) -> None:
        """End the span, and measure the call."""
        if self._ended:
            return
        self._ended = True
        end_ns = self._now_ns() if self._end_ns is None else self._end_ns
        span, settlement = self.span, self._call.hold.settlement
        failed = {} if error is None else {names.ERROR: _name_of(error)}
        if error is not None:
            span.set_attributes(failed)
            span.set_status(StatusCode.ERROR)
        span.set_attribute("tbc.hold.state", self._call.hold.state)
        if self.wraps:
            span.update_name(f"invoke_agent {self._call.agent_name}")
            span.set_attribute(names.OPERATION, "invoke_agent")
        else:
            usage = self._stated(settlement)
            if settlement is not None and settlement.state == "settled":
                span.set_attributes(_booked(settlement))
            if usage is not None:
                span.set_attributes(usage_attributes(usage, self._calls.release))
            measured = self._measured()
            self._calls.instruments.count(usage, measured)
            seconds = (end_ns - self._start_ns) / 1e9
            self._calls.instruments.duration.record(seconds, {**measured, **failed})
        span.end(end_ns)

    def _now_ns(self) -> int:
        return self._start_ns + round((system_clock() - self._start) * 1e9)

    def _measured(self) -> dict[str, Any]:
        """Return the attributes of measurements: few."""
        found = {names.OPERATION: "chat", names.PROVIDER: self._provider}
        return found if self._model is None else {**found, names.MODEL: self._calls.label(self._model)}

    def _stated(self, settlement: Settlement | None) -> Usage | None:
        """Return the usage that the provider stated, and nobody else."""
        usage = self._call.usage
        if usage is None or usage.tokens is None or settlement is None or settlement.estimated:
            return None
        return usage


class _Running:
    """Makes a call the current one: its hold for `tbc.current_hold`, its span for spans inside of it."""

    __slots__ = ("_hold", "_mine", "_theirs", "_watched")

    def __init__(self, watched: _Watched, call: WatchedCall) -> None:
        self._watched = watched
        self._hold = AsCurrent(call.hold)

    def __enter__(self) -> None:
        self._hold.__enter__()
        self._mine: Token[_Watched | None] = _INNERMOST.set(self._watched)
        self._theirs = contexts.attach(set_span_in_context(self._watched.span))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            _INNERMOST.reset(self._mine)
        except ValueError:  # garbage collection left it in another context, which never had the span
            pass
        else:
            contexts.detach(self._theirs)
        self._hold.__exit__()


def _booked(settlement: Settlement) -> dict[str, Any]:
    """Return what was booked: tokens and, where dollars are kept and the price is known, the cost."""
    found: dict[str, Any] = {"tbc.tokens": settlement.tokens, "tbc.estimated": settlement.estimated}
    booking = settlement.on(USD)
    if booking is not None and booking.unpriced:
        found["tbc.cost.unpriced"] = True
    elif booking is not None:
        found |= {
            "tbc.cost.nano_usd": booking.amount,
            "tbc.cost.estimated": booking.estimated,
            "tbc.cost.source": "local",
        }
    if settlement.unpaid is not None:
        found["tbc.overrun"] = True
    return found


def _name_of(error: BaseException) -> str:
    kind = type(error)
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
