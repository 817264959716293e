"""``tbc store``: whether a store is what was written to it, a copy of it, and what it holds."""

from __future__ import annotations

import json as json_format
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

from cyclopts import App, Parameter
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from tbc.cli.live import printable
from tbc.errors import InvalidAmountError, StoreCorruptError, StoreError

if TYPE_CHECKING:
    from tbc.stores.rows import PoolRow, RunRow, StoreInfo
    from tbc.stores.store import Store

__all__ = ["DAMAGED", "Checked", "PoolSize", "backup", "check_pools", "find_heads", "info", "opened", "store"]

#: The exit code that means "the store is not what was written to it".
DAMAGED = 4
_SHORT = 12
_POSTGRES = ("postgresql://", "postgres://")
_Flag = Annotated[bool, Parameter(negative="")]

store = App(name="store", help="Look after a store: verify it, copy it, see what it holds.")
store.command("tbc.cli.leases:leases", name="leases", help="List the leases that are open or unreported.")
store.command(
    "tbc.cli.leases:close_lease", name="close-lease", help="Book what a lost worker spent, and free the rest."
)


class Checked(NamedTuple):
    """What was found in one pool.

    Attributes
    ----------
    pool : str
        Which.
    lines : int
        How many lines of its journal were read.
    head : bytes
        The hash of its newest line when the check began.
    problem : str
        What is wrong, in words; empty if nothing is.
    """

    pool: str
    lines: int
    head: bytes
    problem: str


class PoolSize(NamedTuple):
    """How much a pool holds: `agents`, open holds and `lines` of its journal are counts.

    `mode` is the one that it was opened in at first; each process has its own.
    """

    pool: str
    mode: str
    agents: int
    open_holds: int
    lines: int


@store.command
def verify(
    place: Annotated[str, Parameter(name="STORE")],
    /,
    *,
    pool: str | None = None,
    head: Annotated[tuple[str, ...], Parameter(negative="", consume_multiple=False, show_default=False)] = (),
    heads: _Flag = False,
) -> int:
    """Check every journal's chain of hashes, and the books against the journals. Others may go on writing.

    Exit codes: 0, all is as it was written; 2, the arguments are wrong or there is no such store; 4, the
    store is damaged or was changed by other hands, or a head that was kept elsewhere is not in it.

    Who can rewrite a whole store can rewrite its chains too. Keep the heads that --heads prints in another
    place, and give them to --head later.

    Parameters
    ----------
    place
        A file such as .tbc/runs.db, or a URL: sqlite:///FILE or postgresql://...
    pool
        Check this pool only.
    head
        A head that was kept elsewhere: one of the pools must still have the line with this hash. May be
        given more than once.
    heads
        Also print the full heads: hash, number of the line, pool.
    """
    wanted = [_head(text) for text in head]
    console = _console()
    try:
        with opened(place) as found:
            pools = [row for row in found.pools() if pool in (None, row.pool)]
            if pool is not None and not pools:
                raise InvalidAmountError("--pool", pool, f"a pool of this store: {names(found.pools())}")
            with _Progress(sum(row.seq for row in pools)) as progress:
                checks = check_pools(found, pools, progress.begin)
                sound = [check.pool for check in checks if not check.problem]
                missing = find_heads(found, sound, wanted, progress.begin)
    except StoreCorruptError as error:
        print(f"tbc: {printable(str(error))}", file=sys.stderr)
        return DAMAGED
    console.print(_verify_table(checks) if checks else Text("No pools: there is nothing to check."))
    for each in missing:
        where = f"pool {pool!r}" if pool is not None else "any pool that is ok"
        said = f"head {each.hex()}: no line of {where} has this hash. The end was cut off, or an older "
        console.print(Text(printable(said + "copy or another store is in its place.")), soft_wrap=True)
    if heads:
        for check, row in zip(checks, pools, strict=True):
            if not check.problem:
                print(f"{row.head.hex()} {row.seq} {printable(row.pool)}")
    return DAMAGED if missing or any(check.problem for check in checks) else 0


@store.command
def backup(
    place: Annotated[str, Parameter(name="STORE")], target: Annotated[str, Parameter(name="TARGET")], /
) -> int:
    """Copy a SQLite store into a new file while others go on writing to it.

    Parameters
    ----------
    place
        A file such as .tbc/runs.db, or sqlite:///FILE.
    target
        The new file. It is refused if there is one.
    """
    if place.startswith(_POSTGRES):
        raise StoreError(
            "postgresql",
            "tbc copies SQLite files only; a server has tools that do it better",
            "Use  pg_dump --format=custom --file=TARGET DATABASE  and put it back with pg_restore, or the "
            "server's continuous archiving; then run  tbc store verify",
        )
    from tbc.stores.sqlite import SqliteStore

    with opened(place) as found:
        found.backup(target)
    with SqliteStore(target, create=False) as copy:
        has = copy.info()
    said = (
        f"{has.path}: {has.size:,} bytes; pools: {has.pools:,}, lines: {has.lines:,}, runs: {has.runs:,}, "
        f"epoch: {has.epoch}"
    )
    _console().print(Text(printable(said)), soft_wrap=True)
    return 0


@store.command
def info(place: Annotated[str, Parameter(name="STORE")], /, *, json: _Flag = False) -> int:
    """Show what a store is and what it holds.

    Parameters
    ----------
    place
        A file such as .tbc/runs.db, or a URL: sqlite:///FILE or postgresql://...
    json
        As JSON.
    """
    with opened(place) as found:
        says, runs = found.info(), found.runs()
        sizes = [_size(found, row) for row in found.pools()]
    if json:
        print(json_format.dumps(_described(says, sizes, runs), indent=2))
        return 0
    console = _console()
    grid = Table.grid(padding=(0, 2))
    for name, value in _facts(says, runs):
        grid.add_row(name, Text(printable(value)))
    console.print(grid)
    if sizes:
        table = Table(box=box.SIMPLE_HEAD)
        for name in ("pool", "opened in"):
            table.add_column(name, overflow="fold")
        for name in ("agents", "open holds", "lines"):
            table.add_column(name, justify="right")
        for size in sizes:
            counts = (f"{count:,}" for count in size[2:])
            table.add_row(Text(printable(size.pool)), Text(size.mode), *counts)
        console.print(table)
    return 0


def opened(place: str) -> Store:
    """Open a store that is there; never make one.

    Raises
    ------
    StoreError
        If it cannot be opened.
    """
    from tbc.stores.opening import open_store

    if "://" not in place:
        place = f"sqlite:///{place}"
    try:
        return open_store(place, create=False)
    except InvalidAmountError as error:
        raise StoreError(
            f"{place.partition('://')[0]}://", "no store can be opened by such a URL", str(error)
        ) from None


def names(pools: Sequence[PoolRow]) -> str:
    """Return the names of the last pools in words."""
    shown = [row.pool for row in pools[-5:]]
    return (f"... ({len(pools)} pools), " if len(pools) > 5 else "") + ", ".join(shown) or "it has none"


# -- what is printed, as data ------------------------------------------------------------------------------


def check_pools(
    store: Store, pools: Sequence[PoolRow], begin: Callable[[str, int], object] = lambda pool, lines: 0
) -> list[Checked]:
    """Verify pools one after the other.

    Parameters
    ----------
    store : Store
        Whose.
    pools : sequence of PoolRow
        Which.
    begin : callable, optional
        Told the pool and its number of lines before each check.
    """
    found = []
    for row in pools:
        begin(row.pool, row.seq)
        (check,) = store.verify(row.pool)
        found.append(Checked(row.pool, check.lines, row.head, check.problem))
    return found


def find_heads(
    store: Store,
    pools: Sequence[str],
    heads: Sequence[bytes],
    begin: Callable[[str, int], object] = lambda pool, lines: 0,
) -> list[bytes]:
    """Return those heads that no line of these pools has; the start of a journal counts as a line.

    Parameters
    ----------
    store : Store
        Whose.
    pools : sequence of str
        Pools whose chains have been verified: the hashes are made anew from the lines.
    heads : sequence of bytes
        What was kept elsewhere.
    begin : callable, optional
        Told the pool and 0 before each search.
    """
    missing = dict.fromkeys(heads)
    ledger_id = store.info().ledger_id
    for pool in pools:
        if not missing:
            break
        begin(pool, 0)
        for own_hash in _hashes(store, ledger_id, pool):
            missing.pop(own_hash, None)
    return list(missing)


def _hashes(store: Store, ledger_id: str, pool: str) -> Iterator[bytes]:
    from tbc.stores.chain import fields_of, genesis, link

    last = genesis(ledger_id, pool)
    yield last
    for line in store.entries(pool):
        last = link(last, fields_of(line))
        yield last


def _head(text: str) -> bytes:
    try:
        head = bytes.fromhex(text)
    except ValueError:
        head = b""
    if len(head) != 32:
        raise InvalidAmountError("--head", text, "64 hexadecimal digits, as --heads prints them")
    return head


def _size(store: Store, row: PoolRow) -> PoolSize:
    state = store.load_pool(row.pool, recent=0)
    if state is None:
        raise StoreCorruptError(store.path, f"pool {row.pool!r} has gone", "Run tbc store verify")
    return PoolSize(row.pool, row.mode, len(state.agents), len(state.holds), state.pool.seq)


def _facts(says: StoreInfo, runs: Sequence[RunRow]) -> list[tuple[str, str]]:
    states = ", ".join(f"{count:,} {state}" for state, count in Counter(run.state for run in runs).items())
    return [
        ("store", says.path),
        ("engine", says.engine),
        ("ledger id", says.ledger_id),
        ("schema", str(says.schema)),
        ("epoch", f"{says.epoch}" + (" (a copy, or a copy of one)" if says.epoch else "")),
        ("created", f"{datetime.fromtimestamp(says.created_at, UTC):%Y-%m-%d %H:%M:%S} UTC"),
        ("size", f"{says.size:,} bytes"),
        ("log", f"{says.log_size:,} bytes"),
        ("pools", f"{says.pools:,}"),
        ("lines", f"{says.lines:,}"),
        ("runs", f"{says.runs:,}" + (f" ({states})" if states else "")),
    ]


def _described(says: StoreInfo, sizes: Sequence[PoolSize], runs: Sequence[RunRow]) -> dict[str, Any]:
    return {
        "store": says.path,
        "engine": says.engine,
        "ledger_id": says.ledger_id,
        "schema": says.schema,
        "epoch": says.epoch,
        "created_at": says.created_at,
        "size": says.size,
        "log_size": says.log_size,
        "lines": says.lines,
        "pools": [size._asdict() for size in sizes],
        "runs": [{"run": run.run, "pool": run.pool, "state": run.state} for run in runs],
    }


# -- how it is printed ---------------------------------------------------------------------------------------


def _console() -> Console:
    """Return standard output; where it is no terminal, wide enough for names."""
    console = Console()
    return console if console.is_terminal else Console(width=max(console.width, 140))


def _verify_table(checks: Sequence[Checked]) -> Table:
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("pool", overflow="fold")
    table.add_column("lines checked", justify="right")
    table.add_column("head", no_wrap=True)
    table.add_column("chain and books", overflow="fold")
    for check in checks:
        verdict = Text(printable(check.problem), "red") if check.problem else Text("ok", "green")
        table.add_row(
            Text(printable(check.pool)), f"{check.lines:,}", check.head.hex()[:_SHORT] + "...", verdict
        )
    return table


class _Progress:
    """Shows on standard error, if that is a terminal, which pool is being read."""

    def __init__(self, lines: int) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

        console = Console(stderr=True)
        self._progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("lines"),
            TimeElapsedColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._task = self._progress.add_task("", total=lines)
        self._current = 0

    def begin(self, pool: str, lines: int) -> None:
        """Say that this pool, of so many lines, is read from now on."""
        what = "checking" if lines else "looking for the head in"
        shown = f"{what} {printable(pool)[:40]}"
        self._progress.update(self._task, advance=self._current, description=shown)
        self._current = lines

    def __enter__(self) -> _Progress:
        self._progress.__enter__()
        return self

    def __exit__(self, *left: Any) -> None:
        self._progress.__exit__(*left)
