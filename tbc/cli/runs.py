"""``tbc runs`` and ``tbc report``: what was run, and what it cost."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from tbc.runs.bill import Charge

__all__ = ["report", "runs"]

_Flag = Annotated[bool, Parameter(negative="")]


def runs(*, folder: Path = Path(".tbc")) -> int:
    """List the runs, oldest first: how they stand and what they have spent.

    Parameters
    ----------
    folder
        Where runs are kept.
    """
    from tbc.runs.bill import make_bill, money
    from tbc.runs.history import open_store

    table = Table(box=box.SIMPLE_HEAD)
    for name in ("run", "state", "mode", "started (UTC)"):
        table.add_column(name, no_wrap=True)
    table.add_column("spent", justify="right")
    table.add_column("tokens", justify="right")
    with open_store(folder) as store:
        for row in store.runs():
            bill = make_bill(row, store.entries(row.pool), store.steps(row.run))
            started = f"{datetime.fromtimestamp(row.started_at, UTC):%Y-%m-%d %H:%M}"
            table.add_row(
                Text(row.run), row.state, row.mode, started, money(bill.total), f"{bill.total.tokens:,}"
            )
    _console().print(table)
    return 0


def report(
    run: str = "last", /, *, json: _Flag = False, csv: _Flag = False, folder: Path = Path(".tbc")
) -> int:
    """Show the bill of a run by agent, model, step and operation. Its totals are the journal's, exactly.

    Parameters
    ----------
    run
        Its name, or the beginning of it; "last" is the newest.
    json
        As JSON, dollars as decimal text.
    csv
        As CSV, a line for each charge.
    folder
        Where runs are kept.
    """
    from tbc.axes import format_amount
    from tbc.runs import bill as bills
    from tbc.runs.history import find_run, open_store

    with open_store(folder) as store:
        row = find_run(store, run)
        bill = bills.make_bill(row, store.entries(row.pool), store.steps(row.run))
    if json:
        print(bills.as_json(bill))
        return 0
    if csv:
        print(bills.as_csv(bill), end="")
        return 0
    console = _console()
    budget = ", ".join(format_amount(axis, amount) for axis, amount in bill.budget.items())
    console.print(
        Text(f"{row.run} ({row.workflow}): {row.state}, mode {row.mode}, budget {budget or 'none'}")
    )
    for title, charges in (
        ("by agent", bill.agents),
        ("by model", bill.models),
        ("by step", bill.steps),
        ("by operation", bill.operations),
    ):
        console.print(_table(title, charges))
    console.print(Text(f"total: {bills.money(bill.total)}, {bill.total.tokens:,} tokens"))
    return 0


def _console() -> Console:
    """Return standard output; where it is no terminal, wide enough for names."""
    console = Console()
    return console if console.is_terminal else Console(width=max(console.width, 140))


def _table(title: str, charges: tuple[Charge, ...]) -> Table:
    from tbc.runs.bill import money

    table = Table(box=box.SIMPLE_HEAD, title=title, title_justify="left")
    table.add_column(title.removeprefix("by "))
    table.add_column("spent", justify="right")
    table.add_column("tokens", justify="right")
    table.add_column("attempts" if title == "by operation" else "calls", justify="right")
    for charge in charges:
        guess = " ~" if charge.estimated else ""
        table.add_row(Text(charge.name), money(charge) + guess, f"{charge.tokens:,}", str(charge.calls))
    return table
