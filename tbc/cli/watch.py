"""``tbc watch``: the accounts of a pool while others spend from them."""

from __future__ import annotations

import sys
import time
from contextlib import suppress
from datetime import UTC, datetime
from itertools import accumulate
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from tbc.axes import NANO, USD, Axis, format_amount, format_number
from tbc.cli.checks import check_port, check_within
from tbc.cli.live import printable
from tbc.cli.store import names, opened
from tbc.cli.watched import Place, Share, Sight, Sums, Watched
from tbc.clock import EPOCH, system_clock
from tbc.errors import InvalidAmountError, StoreBusyError, StoreError

if TYPE_CHECKING:
    from tbc.stores.rows import AccountRow
    from tbc.stores.store import Store

__all__ = ["bar", "picture", "short", "watch"]

_STORE_FAILED = 4
_MOST = 30
_LEAST = 3
_Flag = Annotated[bool, Parameter(negative="")]
#: What a bar is made of: its words, the glyphs, those where there is ASCII only, and the colours.
_PARTS = (
    ("spent", "█", "#", "red"),
    ("held", "▓", "=", "yellow"),
    ("reserve", "▒", "-", "blue"),
    ("free", "░", ".", "green"),
)
_NOTHING = Share(0, 0, 0, 0, 0, 0)
_MIN_NAME, _MIN_BAR, _MAX_BAR = 10, 6, 24
_HEADING = "spent/alloc"
#: How many columns the lines of a tree may take.
_DEEPEST = 12


def watch(
    place: Annotated[str, Parameter(name="STORE")],
    /,
    *,
    pool: str | None = None,
    once: _Flag = False,
    every: float = 0.5,
    web: _Flag = False,
    port: int = 8788,
) -> int:
    """Show the accounts of a pool while others spend: spent, held, reserved and free, on tokens and dollars.

    It only reads, and nobody has to wait for it. The 30 agents that were active last are shown. Ctrl-C ends
    it. With --web it is the live page of docs/live.md, for browsers on this machine.

    Exit codes: 0, it was ended; 2, the arguments are wrong, there is no such store, or it has several pools
    and --pool names none; 4, the store vanished or failed meanwhile.

    Parameters
    ----------
    place
        A file such as .tbc/runs.db, or a URL: sqlite:///FILE or postgresql://...
    pool
        Which pool. Default: the only one.
    once
        Show it once, as plain text. So it is where the output is no terminal.
    every
        Seconds between two looks.
    web
        Serve it as a page at http://127.0.0.1, without any way to write.
    port
        The port of the page; 0 takes any that is free.
    """
    check_within("--every", every, 0.05, 3_600, "seconds")
    check_port(port)
    console = Console()
    try:
        with opened(place) as store:
            name = _which(store, pool)
            if web:
                _serve(store, name, port)
                return 0
            watched = Watched(store, name)
            try:
                if once or not console.is_terminal:
                    sight = watched.sight(_now())
                    console.print(picture(sight, console.width, ascii_only=console.options.ascii_only))
                else:
                    _follow(watched, console, every)
            except StoreError as error:
                print(f"tbc: {printable(str(error))}", file=sys.stderr)
                return _STORE_FAILED
    except KeyboardInterrupt:
        pass
    return 0


def _serve(store: Store, pool: str, port: int) -> None:
    """Serve the live page until SIGTERM or Ctrl-C."""
    from tbc.service import Pools, Service
    from tbc.service.server import serve
    from tbc.service.viewed import ViewedPool

    pools = Pools(lambda name: ViewedPool(store, name), store)
    service = Service(pools, pool=pool, here_only=True, role="viewer")
    serve(
        service,
        "127.0.0.1",
        port,
        grace_s=1,
        started=lambda where: print(f"tbc shows pool {printable(pool)!r} at {where}", flush=True),
    )


def _which(store: Store, pool: str | None) -> str:
    pools = store.pools()
    if pool is not None and all(row.pool != pool for row in pools):
        raise InvalidAmountError("--pool", pool, f"a pool of this store: {names(pools)}")
    if not pools:
        raise StoreError(store.path, "it has no pools yet", "Watch it when something has written to it")
    if pool is None and len(pools) > 1:
        raise StoreError(store.path, f"it has {len(pools)} pools: {names(pools)}", "Name one with --pool")
    return pools[0].pool if pool is None else pool


def _follow(watched: Watched, console: Console, every: float) -> None:
    most = _LEAST
    with Live(console=console, screen=True, auto_refresh=False) as live:
        while True:
            sight = watched.sight(_now(), most=most)
            if most != _room(console.height, sight):
                most = _room(console.height, sight)
                sight = watched.sight(_now(), most=most)
            live.update(picture(sight, console.width, ascii_only=console.options.ascii_only), refresh=True)
            time.sleep(every)
            with suppress(StoreBusyError):  # the picture stays, and the next look tells the rest
                watched.look()


def _now() -> float:
    return EPOCH + system_clock()


def _room(height: int, sight: Sight) -> int:
    """Return how many agents fit on a screen of this height beside the rest."""
    lists = [len(rows) + 1 for rows in (sight.moves, sight.refusals) if rows]
    return max(_LEAST, min(_MOST, height - 5 - 2 * len(sight.sums) - sum(lists)))


# -- how it is drawn -----------------------------------------------------------------------------------------


def picture(sight: Sight, width: int, *, ascii_only: bool = False) -> RenderableType:
    """Return what there is to see of a pool, drawn.

    Parameters
    ----------
    sight : Sight
        What there is to see.
    width : int
        Columns of the terminal.
    ascii_only : bool, default False
        Whether it can show nothing but ASCII.
    """
    counts = f"{sight.agents:,} agents, open holds: {sight.open_holds:,}, line {sight.seq:,}"
    drawn: list[RenderableType] = [
        _line(
            ("pool ", ""), (printable(sight.pool), "bold"), (f", opened in {sight.mode} mode, {counts}", "")
        )
    ]
    for axis, sums in sight.sums.items():
        drawn += _totals(axis, sums, width, ascii_only=ascii_only)
    drawn.append(_agents(sight, width, ascii_only=ascii_only))
    hidden = sight.agents - len(sight.places)
    drawn.append(_line((f"{hidden:,} more agents are not shown" if hidden else "", "dim")))
    if sight.moves:
        drawn.append(_line(("last transfers (UTC)", "bold")))
        amounts = [format_amount(move.axis, move.amount) for move in sight.moves]
        widest = max(map(len, amounts))
        for move, amount in zip(sight.moves, amounts, strict=True):
            said = f"{_time(move.at)}  {_flat(move.kind):<9}  {amount:>{widest}}  "
            way = f"{_flat(move.donor)} -> {_flat(move.recipient)}"
            drawn.append(_line((said + way, ""), ascii_only=ascii_only))
    if sight.refusals:
        drawn.append(_line(("last refusals (UTC)", "bold")))
        drawn.extend(
            _line((f"{_time(each.at)}  {_flat(each.step)}: {_flat(each.reason)}", ""), ascii_only=ascii_only)
            for each in sight.refusals
        )
    legend = Text(no_wrap=True)
    for word, glyph, plain, colour in _PARTS:
        legend.append(plain if ascii_only else glyph, colour).append(f" {word}  ", "dim")
    drawn.append(legend.append("~ rounded", "dim"))
    return Group(*drawn)


def bar(share: Share, width: int, *, ascii_only: bool = False) -> Text:
    """Return a bar of `width` columns; blank if there is nothing to divide."""
    amounts = (share.spent, share.held, share.reserve, share.free)
    whole = sum(amounts)
    if not whole or width < 1:
        return Text(" " * max(0, width))
    # The ends are rounded, not the parts, so that these always fill the bar.
    ends = [(2 * end * width + whole) // (2 * whole) for end in accumulate(amounts)]
    drawn = Text(no_wrap=True)
    for (_, glyph, plain, colour), start, end in zip(_PARTS, (0, *ends), ends, strict=False):
        drawn.append((plain if ascii_only else glyph) * (end - start), colour)
    return drawn


def short(axis: Axis, amount: int) -> str:
    """Return an amount in few characters; ``~`` says that it is rounded."""
    exact = format_number(axis, amount)
    sign, size = ("-" if amount < 0 else ""), abs(amount)
    if axis == USD:
        if len(exact) <= 8:
            return exact
        if size < 1_000_000 * NANO:
            decimals = 4 if size < 100 * NANO else 2
            parts = 10**decimals
            rounded = (2 * size * parts + NANO) // (2 * NANO)
            if rounded == 0:
                return f"{sign}<$0.0001"
            return f"~{sign}${rounded // parts}.{rounded % parts:0{decimals}d}"
        size, sign = size // NANO, f"{sign}$"
    elif size < 1_000_000:
        return exact
    unit, letter = next((found for found in ((10**12, "T"), (10**9, "B")) if size >= found[0]), (10**6, "M"))
    whole, hundredths = divmod(size * 100 // unit, 100)
    is_exact = amount % (unit // 100 * (NANO if axis == USD else 1)) == 0
    number = f"{whole:,}.{hundredths:02d}"
    return f"{sign}{number.rstrip('0').rstrip('.')}{letter}" if is_exact else f"~{sign}{number}{letter}"


def _totals(axis: Axis, sums: Sums, width: int, *, ascii_only: bool) -> list[Text]:
    """Return the lines on one axis of the whole pool: a bar with the spend rate, and the same in words."""
    words = _in_words(axis, sums)
    rate = f"  {short(axis, sums.per_minute)}/min"
    if not any(sums.capped):
        return [_line((f"{axis:<7}{words}{rate}", ""), ascii_only=ascii_only)]
    drawn = bar(sums.capped, width - 7 - len(rate), ascii_only=ascii_only)
    indent = " " * min(7, max(0, width - len(words)))
    return [
        Text.assemble(f"{axis:<7}", drawn, rate, no_wrap=True),
        _line((indent + words, ""), ascii_only=ascii_only),
    ]


def _in_words(axis: Axis, sums: Sums) -> str:
    share = sums.capped
    amounts = {"spent": share.spent, "held": share.held, "reserve": share.reserve, "free": share.free}
    said = [f"{short(axis, amount)} {word}" for word, amount in amounts.items() if amount]
    if share.allocated:
        said = [(", ".join(said) or "nothing left") + f" of {short(axis, share.allocated)}"]
    if share.owed:
        said.append(f"{short(axis, share.owed)} owed")
    if sums.uncapped:
        said.append(f"{short(axis, sums.uncapped)} spent without a cap")
    return ", ".join(said) or "nothing spent"


def _agents(sight: Sight, width: int, *, ascii_only: bool) -> Table:
    """Return the tree of agents, with a bar and numbers for each axis."""
    axes = list(sight.sums)
    names = [_branch(place, ascii_only=ascii_only) for place in sight.places]
    numbers = {axis: [_numbers(axis, place.accounts.get(axis)) for place in sight.places] for axis in axes}
    widest = sum(max(len(text) for text in (_HEADING, *texts)) for texts in numbers.values())
    room = width - widest - 4 * len(axes)
    longest = max((name.cell_len for name in names), default=0)
    for_name = max(_MIN_NAME, min(longest, room - _MIN_BAR * len(axes)))
    for_bar = max(_MIN_BAR, min(_MAX_BAR, (room - for_name) // max(1, len(axes))))
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    table.add_column("agent", width=for_name, no_wrap=True, overflow=_overflow(ascii_only))
    for axis in axes:
        table.add_column(axis, width=for_bar, no_wrap=True)
        table.add_column(_HEADING, justify="right", no_wrap=True)
    for row, (name, place) in enumerate(zip(names, sight.places, strict=True)):
        cells: list[Text] = []
        for axis in axes:
            account = place.accounts.get(axis)
            share = Share.of(account) if account is not None and account.capped else _NOTHING
            cells.append(bar(share, for_bar, ascii_only=ascii_only))
            cells.append(Text(numbers[axis][row], "bold red" if share.owed else ""))
        table.add_row(name, *cells)
    return table


def _branch(place: Place, *, ascii_only: bool) -> Text:
    """Return an agent's name behind the lines that lead to it."""
    down, none = ("| ", "  ") if ascii_only else ("│ ", "  ")
    more, last = ("|-", "`-") if ascii_only else ("├╴", "└╴")
    above = "".join(none if ended else down for ended in place.lasts[:-1])
    own = (last if place.lasts[-1] else more) if place.lasts else ""
    name = _flat(place.agent) + (" (closed)" if place.closed else "")
    return Text.assemble((above[-_DEEPEST:] + own, "dim"), (name, "dim" if place.closed else ""))


def _numbers(axis: Axis, account: AccountRow | None) -> str:
    if account is None:
        return "-"
    spent = short(axis, account.consumed)
    return f"{spent}/{short(axis, account.allocated)}" if account.capped else f"{spent}/no cap"


def _line(*parts: tuple[str, str], ascii_only: bool = False) -> Text:
    return Text.assemble(*parts, no_wrap=True, overflow=_overflow(ascii_only))


def _overflow(ascii_only: bool) -> Literal["crop", "ellipsis"]:
    return "crop" if ascii_only else "ellipsis"


def _flat(text: str) -> str:
    """Return text that commands no terminal and stays on its line."""
    return " ".join(printable(text).split())


def _time(at: float) -> str:
    return f"{datetime.fromtimestamp(at, UTC):%H:%M:%S}"
