"""What goes into a store and what comes out: plain rows without rules.

Amounts are integers in the unit of their axis. Times are Unix seconds. Ids are short and printable, so that
they can stand in a path, a log line and a table: see `check_id`.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple, Protocol

from tbc.errors import InvalidAmountError

__all__ = [
    "AccountRow",
    "AgentRow",
    "EventRow",
    "HoldRow",
    "Line",
    "LineRow",
    "LoanRow",
    "Mark",
    "News",
    "OpRow",
    "PartRow",
    "PoolRow",
    "PoolState",
    "RunRow",
    "StepRow",
    "StoreInfo",
    "check_id",
    "check_int",
    "check_ints",
    "check_text",
]

_MOST_BYTES = 128
_IN_PATHS = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._:/-")


def check_id(name: str, value: object, *, in_paths: bool = False) -> str:
    """Return `value` if a store can keep it as an id.

    Parameters
    ----------
    name : str
        What it is the id of, for the message.
    value : object
        1 to 128 bytes of printable text: no line breaks, no control or bidirectional characters.
    in_paths : bool, default False
        Whether it may only have letters, digits and ``._:/-``, and no ``..``; so for pools and runs.

    Raises
    ------
    InvalidAmountError
        If it is anything else.
    """
    if isinstance(value, str) and _is_id(value, in_paths):
        return value
    allowed = "letters, digits and ._:/- without '..'" if in_paths else "printable text"
    raise InvalidAmountError(name, value, f"1 to {_MOST_BYTES} bytes of {allowed}")


@lru_cache(4096)  # the same few names come with every line
def _is_id(value: str, in_paths: bool) -> bool:
    return (
        value.isprintable()
        and 0 < len(value.encode()) <= _MOST_BYTES
        and (not in_paths or (_IN_PATHS.issuperset(value) and ".." not in value))
    )


def check_int(name: str, value: object) -> int:
    """Return `value` if it is an ``int`` of at most 64 bits.

    Raises
    ------
    InvalidAmountError
        If it is anything else; a ``bool`` and a ``float`` are.
    """
    if type(value) is int and -(2**63) <= value < 2**63:
        return value
    raise InvalidAmountError(name, value, "an int of at most 64 bits")


def check_ints(names: Sequence[str], values: Sequence[object]) -> None:
    """Check each value as `check_int` does."""
    for value in values:
        if type(value) is not int or not -(2**63) <= value < 2**63:
            for name, each in zip(names, values, strict=True):
                check_int(name, each)


def check_text(name: str, value: object) -> str:
    """Return `value` if every store can keep it as text: a ``str`` without NUL characters.

    Raises
    ------
    InvalidAmountError
        If it is anything else.
    """
    if isinstance(value, str) and "\0" not in value:
        return value
    raise InvalidAmountError(name, value, "text without NUL characters")


class Line(Protocol):
    """A line of the journal as a store sees it: what a `tbc.Entry` has."""

    # ruff: noqa: D102
    @property
    def seq(self) -> int: ...
    @property
    def at(self) -> float: ...
    @property
    def kind(self) -> str: ...
    @property
    def agent_name(self) -> str: ...
    @property
    def peer(self) -> str | None: ...
    @property
    def allocated(self) -> int: ...
    @property
    def consumed(self) -> int: ...
    @property
    def held(self) -> int: ...
    @property
    def hold_id(self) -> int | None: ...
    @property
    def key(self) -> str | None: ...
    @property
    def note(self) -> str | None: ...
    @property
    def estimated(self) -> bool: ...
    @property
    def axis(self) -> str: ...
    @property
    def model(self) -> str | None: ...
    @property
    def unpriced(self) -> int: ...


class LineRow(NamedTuple):
    """One line of the journal, in the order of the fields of a `tbc.Entry`."""

    seq: int
    at: float
    kind: str
    agent_name: str
    peer: str | None
    allocated: int
    consumed: int
    held: int
    hold_id: int | None = None
    key: str | None = None
    note: str | None = None
    estimated: bool = False
    axis: str = "tokens"
    model: str | None = None
    unpriced: int = 0


class PoolRow(NamedTuple):
    """A pool: one root and its tree.

    Attributes
    ----------
    pool, mode : str
        Its name, and ``"enforce"`` or ``"audit"``.
    created_at : float
        When it was opened.
    terms : str
        What else its owner wants to find again, as JSON.
    version : int
        Raised by every transaction that wrote to the pool.
    seq : int
        The last line of its journal.
    head : bytes
        The hash of that line. Kept elsewhere, it proves that nothing was cut off.
    """

    pool: str
    mode: str
    created_at: float
    terms: str = "{}"
    version: int = 0
    seq: int = 0
    head: bytes = b""


class Mark(NamedTuple):
    """How far a pool has come: what a reader knows of it, and what a writer must begin with.

    Attributes
    ----------
    version : int
        Raised by every transaction that wrote to the pool.
    seq : int
        The last line of its journal.
    head : bytes
        The hash of that line.
    """

    version: int = 0
    seq: int = 0
    head: bytes = b""


class AgentRow(NamedTuple):
    """An agent's place in the tree and its terms (JSON)."""

    agent: str
    position: int
    parent: str | None
    terms: str = "{}"
    last_confidence: float | None = None
    closed: bool = False


class AccountRow(NamedTuple):
    """An agent's numbers on one axis."""

    agent: str
    axis: str
    capped: bool
    allocated: int
    consumed: int
    held: int
    min_reserve: int = 0
    unpriced: int = 0


class PartRow(NamedTuple):
    """What a hold sets aside on one axis, and what it set aside at first.

    `unpriced` is 1 where nobody knows the price of what is set aside.
    """

    axis: str
    amount: int
    granted: int
    unpriced: int = 0


class LoanRow(NamedTuple):
    """What of a hold was lent on one axis; those of one axis are in the order of lending."""

    axis: str
    lender: str
    kind: str
    amount: int


class HoldRow(NamedTuple):
    """A hold. `outcome` is how it ended, as JSON; `lease` what makes it a lease, if it is one.

    To a writer, ``None`` for `parts` and `loans` says that they are as they were; without parts, only its
    state, its expiry, its outcome and its lease are written.
    """

    hold_id: int
    agent: str
    state: str
    at: float
    expires_at: float
    key: str | None = None
    operation: str | None = None
    model: str | None = None
    request_hash: str | None = None
    outcome: str | None = None
    lease: str | None = None
    parts: Sequence[PartRow] | None = ()
    loans: Sequence[LoanRow] | None = ()


class OpRow(NamedTuple):
    """The first answer under a key, with what it was the answer to."""

    key: str
    kind: str
    request_hash: str
    response: str
    created_at: float


class RunRow(NamedTuple):
    """A run of a workflow. `fingerprints` and `limits` are JSON."""

    run: str
    pool: str
    workflow: str
    state: str
    mode: str
    started_at: float
    updated_at: float
    path: str | None = None
    source: str = ""
    fingerprints: str = "{}"
    limits: str = "{}"
    exit_reason: str | None = None


class StepRow(NamedTuple):
    """A step of a run; `item` tells the steps of a ``for_each`` apart. `result` is JSON."""

    step: str
    item: str = ""
    state: str = "pending"
    attempt: int = 0
    operation: str | None = None
    result: str | None = None
    fingerprint: str | None = None
    started_at: float | None = None
    ended_at: float | None = None
    error: str | None = None


class EventRow(NamedTuple):
    """Something that happened in a run. `body` is JSON."""

    seq: int
    at: float
    kind: str
    body: str


class PoolState(NamedTuple):
    """Everything to rebuild the books of a pool.

    Attributes
    ----------
    pool : PoolRow
        With the last `seq` of its journal.
    agents : tuple of AgentRow
        In the order of registration, the root among them.
    accounts : tuple of AccountRow
        By name and axis.
    holds : tuple of HoldRow
        The open ones, oldest first.
    ended : tuple of HoldRow
        The last ones that ended, oldest first.
    ops : tuple of OpRow
        The last answers by key, oldest first.
    """

    pool: PoolRow
    agents: tuple[AgentRow, ...]
    accounts: tuple[AccountRow, ...]
    holds: tuple[HoldRow, ...]
    ended: tuple[HoldRow, ...]
    ops: tuple[OpRow, ...]


class News(NamedTuple):
    """What has changed of a pool since a `Mark`.

    Attributes
    ----------
    mark : Mark
        How far it has come.
    lines : tuple of LineRow
        The new lines of its journal, oldest first.
    agents : tuple of AgentRow
        Those that were written since, in the order of registration.
    accounts : tuple of AccountRow
        Those that the new lines name, as they are now.
    holds : tuple of HoldRow
        Those that the new lines name, as they are now, oldest first.
    """

    mark: Mark
    lines: tuple[LineRow, ...]
    agents: tuple[AgentRow, ...]
    accounts: tuple[AccountRow, ...]
    holds: tuple[HoldRow, ...]


class StoreInfo(NamedTuple):
    """What a store says of itself.

    Attributes
    ----------
    path, ledger_id, engine : str
        Where it is, what tells it from every other one, and the database with its version.
    schema, epoch : int
        The version of the tables, and how often it came out of a backup.
    created_at : float
        When it was made.
    size, log_size : int
        Bytes of the file or the tables, and of the log beside the file.
    pools, runs, lines : int
        How many it holds.
    """

    path: str
    ledger_id: str
    engine: str
    schema: int
    epoch: int
    created_at: float
    size: int
    log_size: int
    pools: int
    runs: int
    lines: int
