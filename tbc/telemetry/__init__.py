"""Telemetry by OpenTelemetry: inference spans of governed calls, and metrics of tokens and budgets.

Off until `instrument` is called for a manager. Needs ``tbc[otel]``, which is the API alone: what is done with
spans and metrics is up to the SDK of the program. docs/telemetry.md lists every name.
"""

from __future__ import annotations

import atexit
import weakref
from contextlib import AbstractContextManager, suppress
from typing import TYPE_CHECKING, Any, Final

try:
    from opentelemetry.metrics import MeterProvider, get_meter, get_meter_provider
    from opentelemetry.trace import TracerProvider, get_tracer
except ImportError as error:
    raise ImportError(
        'tbc.telemetry needs opentelemetry-api. Install it with:  pip install "tbc[otel]"', name=error.name
    ) from error

from tbc.errors import InvalidContractError
from tbc.events import Event
from tbc.labels import FirstLabels
from tbc.telemetry.budgets import Budgets
from tbc.telemetry.calls import Calls, Provider
from tbc.telemetry.conventions import Conventions
from tbc.watching import HeldCall, watched

if TYPE_CHECKING:
    from tbc.holds import Hold

__all__ = ["Conventions", "Instrumentation", "Provider", "instrument", "is_set_up"]

_SCOPE: Final = "tbc"
#: How many agents are told apart in metrics.
_AGENTS: Final = 100
_ACTIVE: Final[weakref.WeakSet[Instrumentation]] = weakref.WeakSet()


class Instrumentation:
    """The telemetry of one manager, until it is removed."""

    def __init__(self, manager: Any, calls: Calls, budgets: Budgets) -> None:
        self._manager = weakref.ref(manager)
        self._calls, self._budgets = calls, budgets
        manager.call_watcher = calls
        self._unsubscribe = manager.subscribe(self._told)
        _ACTIVE.add(self)

    def _told(self, event: Event) -> None:
        self._budgets.told(event)
        self._calls.flush()

    def inference(self, hold: Hold) -> AbstractContextManager[HeldCall]:
        """Write a span for a call under a hold of your own: `govern` does that by itself.

        Enter it around the call and the end of its hold, and set the `usage` of what it returns, if it is
        known:

            ``with telemetry.inference(hold) as call:``
                ``reply = ask(...)``
                ``call.usage = read_usage(reply)``
                ``hold.settle(usage=call.usage)``
        """
        return watched(self._calls, hold)

    def flush(self) -> None:
        """End the spans of streams that were left half-way, which otherwise end with the next event."""
        self._calls.flush()

    def remove(self) -> None:
        """Tell nothing more. Calls in flight still end their spans."""
        manager = self._manager()
        if manager is not None and manager.call_watcher is self._calls:
            manager.call_watcher = None
        self._unsubscribe()
        self._calls.flush(all_of_them=True)
        _ACTIVE.discard(self)


def instrument(
    manager: Any,
    tracer_provider: TracerProvider | None = None,
    meter_provider: MeterProvider | None = None,
    *,
    provider: Provider | None = None,
    pool: str | None = None,
    conventions: Conventions = "0.1",
) -> Instrumentation:
    """Tell OpenTelemetry of a manager's governed calls and budgets from now on.

    Parameters
    ----------
    manager : BudgetManager
        Whose. One that is instrumented already stays as it is: no call is told twice.
    tracer_provider, meter_provider : TracerProvider, MeterProvider, optional
        Where spans and metrics go. Default: the global ones.
    provider : str or callable, optional
        Whose models are called (``gen_ai.provider.name``): a name, or a function from the model to one.
        Default: as the price data says, else ``"unknown"``.
    pool : str, optional
        Written with everything as ``tbc.pool``.
    conventions : {"0.1", "1.41"}, default "0.1"
        Which release of the GenAI conventions names the metrics: the first of their own, or the last within
        the general semantic conventions.

    Returns
    -------
    Instrumentation
        Its `remove` ends it.

    Examples
    --------
    >>> import tbc
    >>> manager = tbc.BudgetManager(max_tokens=1_000)
    >>> telemetry = tbc.telemetry.instrument(manager)
    >>> telemetry is tbc.telemetry.instrument(manager)
    True
    >>> telemetry.remove()
    """
    if conventions not in ("0.1", "1.41"):
        raise InvalidContractError(f"conventions must be '0.1' or '1.41', not {conventions!r}")
    for each in list(_ACTIVE):
        if each._manager() is manager:
            return each
    from tbc import __version__

    tracer = get_tracer(_SCOPE, __version__, tracer_provider)
    meter = get_meter(_SCOPE, __version__, meter_provider)
    fixed = {} if pool is None else {"tbc.pool": pool}
    budgets = Budgets(meter, manager.contracts, FirstLabels(_AGENTS), fixed)
    return Instrumentation(manager, Calls(tracer, meter, conventions, provider, budgets, fixed), budgets)


def is_set_up() -> bool:
    """Return whether the program has an SDK for metrics: the API alone exports nothing."""
    return not type(get_meter_provider()).__module__.startswith("opentelemetry.metrics")


@atexit.register
def _flush_all() -> None:
    for each in list(_ACTIVE):
        with suppress(Exception):
            each._calls.flush(all_of_them=True)
