"""The hash chain over a journal: any line that was changed, removed or added afterwards is found.

Every line has the SHA-256 of the hash before it and its own canonical form: the JSON array of its fields in
the order of `Fields`, ASCII only, without spaces. Before the first line stands a hash of the file's id and
the pool's name, so that no journal passes for that of another pool. The pool's row keeps the newest hash,
which finds a tail that was cut off. Who can rewrite the whole file can rewrite the chain too: against that,
keep a head (`PoolRow.head`) in another place.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from functools import lru_cache
from math import isfinite
from typing import Any, NamedTuple

from tbc.stores.rows import Line, LineRow, check_id, check_int, check_ints, check_text

__all__ = ["Fields", "PoolCheck", "fields_of", "follow", "genesis", "link"]

#: The fields of a line as they are kept: seq, at, kind, axis, agent, peer, allocated, consumed, held,
#: unpriced, hold_id, key, note, model, estimated.
Fields = tuple[Any, ...]

_AMOUNTS = ("seq", "allocated", "consumed", "held", "unpriced")

_sha256 = hashlib.sha256


def genesis(ledger_id: str, pool: str) -> bytes:
    """Return what stands before the first line of a pool's journal."""
    return _sha256(f"tbc journal\n{ledger_id}\n{pool}".encode()).digest()


def fields_of(line: Line) -> Fields:
    """Return the fields of a line, checked, as they are kept.

    Raises
    ------
    InvalidAmountError
        If an amount is not a whole number of 64 bits, an id none, or a text none.
    """
    if type(line) is not LineRow:
        line = LineRow._make([getattr(line, name) for name in LineRow._fields])
    (
        seq,
        at,
        kind,
        agent,
        peer,
        allocated,
        consumed,
        held,
        hold_id,
        key,
        note,
        estimated,
        axis,
        model,
        unpriced,
    ) = line
    check_ints(_AMOUNTS, (seq, allocated, consumed, held, unpriced))
    return (
        seq,
        float(at) + 0.0,  # -0.0 would come back as 0.0
        check_id("kind", str(kind)),
        check_id("axis", axis),
        check_id("agent_name", agent),
        None if peer is None else check_id("peer", peer),
        allocated,
        consumed,
        held,
        unpriced,
        None if hold_id is None else check_int("hold_id", hold_id),
        None if key is None else check_id("key", key),
        None if note is None else check_text("note", note),
        None if model is None else check_text("model", model),
        int(estimated),
    )


def link(previous: bytes, fields: Fields) -> bytes:
    """Return the hash of the line with these fields that follows the line with the hash `previous`."""
    (
        seq,
        at,
        kind,
        axis,
        agent,
        peer,
        allocated,
        consumed,
        held,
        unpriced,
        hold_id,
        key,
        note,
        model,
        estimated,
    ) = fields
    # What json.dumps would write, put together by hand: it is written and read once for every line.
    line = (
        f"[{seq},{at if isfinite(at) else json.dumps(at)},{_text(kind)},{_text(axis)},{_text(agent)},"
        f"{_text(peer)},{allocated},{consumed},{held},{unpriced},{'null' if hold_id is None else hold_id},"
        f"{_text(key)},{_text(note)},{_text(model)},{estimated}]"
    )
    return _sha256(previous + line.encode()).digest()


@lru_cache(4096)  # the same few names come with every line
def _text(value: str | None) -> str:
    return json.dumps(value)


class PoolCheck(NamedTuple):
    """What `verify` found in one pool.

    Attributes
    ----------
    pool : str
        Which.
    lines : int
        How many lines were read.
    seq : int or None
        The first bad line, if a line is bad.
    problem : str
        What is wrong, in words; empty if nothing is.
    """

    pool: str
    lines: int
    seq: int | None = None
    problem: str = ""

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong."""
        return not self.problem


class _BadLineError(Exception):
    """A line that does not belong where it stands."""

    def __init__(self, seq: int, problem: str) -> None:
        super().__init__(seq, problem)
        self.seq = seq
        self.problem = problem


def _whole(rows: Iterable[tuple[Any, ...]]) -> Iterator[tuple[Any, ...]]:
    """Yield rows; stop with `_BadLineError` at the first one whose text is none."""
    read = 0
    try:
        for row in rows:
            yield row
            read += 1
    except UnicodeDecodeError as error:
        raise _BadLineError(read + 1, f"line {read + 1} was changed: it has text that is none") from error


def _lines(start: bytes, rows: Iterable[tuple[Any, ...]], last: int, head: bytes) -> Iterator[Fields]:
    """Yield the fields of the lines; stop with `_BadLineError` at the first bad one."""
    seq, previous = 0, start
    for *fields, prev_hash, own_hash in _whole(rows):
        seq += 1
        if fields[0] != seq:
            raise _BadLineError(seq, f"line {seq} is missing: line {fields[0]} comes in its place")
        if prev_hash != previous:
            raise _BadLineError(seq, f"line {seq} does not follow from the line before it")
        if link(previous, tuple(fields)) != own_hash:
            raise _BadLineError(seq, f"line {seq} was changed")
        if seq > last:
            raise _BadLineError(seq, f"line {seq} is beyond the end of the journal, line {last}")
        previous = own_hash
        yield tuple(fields)
    if seq < last:
        raise _BadLineError(seq + 1, f"line {seq + 1} is missing: the journal should end with line {last}")
    if previous != head:
        raise _BadLineError(seq, f"line {seq}, the last, is not the one that the pool remembers")


def follow(
    pool: str,
    start: bytes,
    rows: Iterable[tuple[Any, ...]],
    last: int,
    head: bytes,
) -> tuple[PoolCheck, dict[tuple[str, str], list[int]]]:
    """Read a journal from its start, check the chain and add up the books.

    Parameters
    ----------
    pool : str
        Its name.
    start : bytes
        See `genesis`.
    rows : iterable of tuple
        For every line its fields, the hash before it and its own.
    last, head : int, bytes
        The number and the hash of the newest line, as the pool's row has them.

    Returns
    -------
    check : PoolCheck
        What was found.
    sums : dict
        By agent and axis: allocated, consumed, held and unpriced.
    """
    sums: dict[tuple[str, str], list[int]] = {}
    lines = 0
    try:
        for fields in _lines(start, rows, last, head):
            lines += 1
            _, _, _, axis, agent, peer, allocated, consumed, held, unpriced, *_ = fields
            books = sums.setdefault((agent, axis), [0, 0, 0, 0])
            books[0] += allocated
            books[1] += consumed
            books[2] += held
            books[3] += unpriced
            if peer is not None:
                sums.setdefault((peer, axis), [0, 0, 0, 0])[0] -= allocated
    except _BadLineError as bad:
        return PoolCheck(pool, lines, bad.seq, bad.problem), sums
    return PoolCheck(pool, lines), sums
