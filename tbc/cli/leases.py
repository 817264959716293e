"""``tbc store leases`` and ``close-lease``: what workers have leased, and what an operator does about it."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Any

from cyclopts import Parameter
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from tbc.axes import AXES, Axis, format_amount
from tbc.cli.live import printable
from tbc.cli.store import names, opened
from tbc.clock import StoreClock
from tbc.errors import InvalidAmountError
from tbc.keeper import Keeper
from tbc.leases import Amounts
from tbc.leasing import LeaseRecord
from tbc.manager import BudgetManager
from tbc.stores.store import Store

__all__ = ["close_lease", "leases"]


def leases(place: Annotated[str, Parameter(name="STORE")], /, *, pool: str | None = None) -> int:
    """List the open leases: which worker may spend what, until when. Overdue ones are marked.

    What is leased stays set aside until its worker reports or close-lease says what was spent.

    Parameters
    ----------
    place
        A file such as .tbc/runs.db, or a URL: sqlite:///FILE or postgresql://...
    pool
        Of this pool only.
    """
    table = Table(box=box.SIMPLE_HEAD)
    for name in ("pool", "lease", "agent", "worker", "leased", "reported", "ends"):
        table.add_column(name, overflow="fold")
    count = 0
    with opened(place) as found:
        for each in _pools(found, pool):
            for record in _leases_of(found, each):
                count += 1
                table.add_row(
                    Text(printable(each)),
                    str(record.hold_id),
                    Text(printable(record.agent_name)),
                    Text(printable(record.holder)),
                    _amounts(record.amount),
                    _amounts(record.reported),
                    _end(record),
                )
    console = Console()
    console = console if console.is_terminal else Console(width=max(console.width, 160))
    console.print(table if count else Text("No lease is open."))
    return 0


def close_lease(
    place: Annotated[str, Parameter(name="STORE")],
    hold_id: Annotated[int, Parameter(name="LEASE")],
    /,
    *,
    pool: str | None = None,
    tokens: int | None = None,
    usd: str | None = None,
    calls: int | None = None,
    note: str = "closed by an operator",
) -> int:
    """End the lease of a worker that is gone: book what it spent in all, free the rest.

    Refused until the lease's end, and a tenth of its length, have passed. If the worker comes back after all
    and reports more, that is booked too.

    Parameters
    ----------
    place
        A file such as .tbc/runs.db, or a URL: sqlite:///FILE or postgresql://...
    hold_id
        The number of the lease, as leases lists it.
    pool
        Its pool; needed if the store has several.
    tokens
        Tokens spent in all. Left out: all that is set aside, as an estimate; so for the others.
    usd
        Dollars spent in all.
    calls
        Calls made in all.
    note
        For the journal.
    """
    with opened(place) as found:
        pools = _pools(found, pool)
        if len(pools) != 1:
            raise InvalidAmountError("--pool", pool, f"one of the pools: {names(found.pools())}")

        manager: Any = BudgetManager(store=found, pool=pools[0])
        with manager:
            ended = manager.close_lease(hold_id, tokens, usd=usd, calls=calls, note=note)
    if ended.repeated:
        print(f"Lease {hold_id} had ended; what is said more is booked.")
    else:
        booked = [("tokens", ended.tokens), *((each.axis, each.amount) for each in ended.others)]
        said = ", ".join(format_amount(axis, amount) for axis, amount in booked)
        agent = printable(repr(ended.agent_name))
        print(f"Lease {hold_id} of {agent} has ended: {said} booked now, the rest is free.")
    return 0


def _pools(found: Store, pool: str | None) -> list[str]:
    pools = [row.pool for row in found.pools() if pool in (None, row.pool)]
    if pool is not None and not pools:
        raise InvalidAmountError("--pool", pool, f"a pool of this store: {names(found.pools())}")
    return pools


def _leases_of(found: Store, pool: str) -> list[LeaseRecord]:
    """Return the open leases of a pool. Nothing is written: what has expired there is freed by others."""
    manager = BudgetManager(clock=StoreClock(found.clock()))
    state = found.load_pool(pool, recent=0)
    if state is not None:
        Keeper(manager, found, pool).restore(state)
    return manager.leases()


def _amounts(amounts: Amounts) -> str:
    told: list[Axis] = [axis for axis in AXES if amounts.on(axis)]
    return ", ".join(format_amount(axis, amounts.on(axis)) for axis in told) or "0"


def _end(record: LeaseRecord) -> Text:
    ends = f"{datetime.fromtimestamp(record.ends_at, UTC):%Y-%m-%d %H:%M:%S} UTC"
    return Text(f"{ends}, overdue", "red") if record.overdue else Text(ends)
