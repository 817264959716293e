"""A bank that is open while its clerks are killed: random operations, what was answered, and who checks it.

``work`` is what a process does: operations by a seed, each written to a history before it is asked and after
it is answered. ``wrongs`` reads the histories and the journal afterwards, and knows nothing of how the
library computes: it adds up lines.
"""

from __future__ import annotations

import contextlib
import json
import random
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import tbc

__all__ = ["AGENTS", "TOTAL", "open_bank", "work", "wrongs"]

TOTAL = 3_000
#: Name, priority, reserve; each owns 300.
AGENTS = [("a", 1, 40), ("b", 1, 0), ("c", 2, 60), ("d", 3, 0), ("e", 3, 25)]
_SHARED = 400  # keys that all processes use, each for a request that follows from its number


def open_bank(url: str) -> None:
    with contextlib.closing(tbc.BudgetManager(store=url, max_tokens=TOTAL)) as manager:
        for name, priority, reserve in AGENTS:
            manager.register_agent(name, priority=priority, max_tokens=300, min_reserve=reserve)


# -- a clerk -----------------------------------------------------------------------------------------------


class _Clerk:
    def __init__(self, manager: tbc.BudgetManager, seed: int, history: Any) -> None:
        self._manager = manager
        self._chance = random.Random(seed)
        self._seed = seed
        self._history = history
        self._holds: list[tbc.Hold] = []
        self._number = 0

    def step(self) -> None:
        self._number += 1
        name = self._chance.choices(
            ["hold", "settle", "void", "extend", "record_usage", "top_up", "rebalance", "read"],
            [30, 22, 6, 6, 8, 4, 6, 12],
        )[0]
        shared = self._chance.random() < 0.3 and name in ("hold", "record_usage", "top_up", "rebalance")
        number = self._chance.randrange(_SHARED)
        key = f"shared {name} {number}" if shared else f"{self._seed} {self._number}"
        chance = random.Random(key)  # a shared key is always for the same request
        agent = chance.choice(AGENTS)[0]
        getattr(self, name)(key, agent, chance.randrange(1, 60))

    def _do(self, name: str, request: dict[str, Any], operation: Any) -> Any:
        self._write({"ask": name, **request})
        try:
            answer, result = "done", operation()
        except (tbc.BudgetExceededError, tbc.HoldEndedError) as error:
            answer, result = type(error).__name__, error
        shown = self._shown(result)
        self._write({"answer": answer, "op": name, **request, "got": shown})
        return result

    def _write(self, line: dict[str, Any]) -> None:
        self._history.write(json.dumps(line) + "\n")
        self._history.flush()

    @staticmethod
    def _shown(result: Any) -> Any:
        if isinstance(result, tbc.Hold):
            return result.hold_id
        if isinstance(result, tuple) and result and hasattr(result[0], "allocated"):
            return [
                [each.agent_name, each.allocated, each.consumed, each.held, each.remaining, each.lent]
                for each in result
            ]
        if isinstance(result, tbc.Rebalance):
            return [[each.donor, each.recipient, each.amount] for each in result.transfers]
        if isinstance(result, Exception):
            return str(result)
        return [result.state, result.tokens, result.late] if isinstance(result, tbc.Settlement) else None

    def hold(self, key: str, agent: str, amount: int) -> None:
        request = {"key": key, "agent": agent, "tokens": amount}
        got = self._do("hold", request, lambda: self._manager.hold(agent, amount, key=key, expires_s=1.5))
        if isinstance(got, tbc.Hold):
            self._holds = [*self._holds[-6:], got]

    def settle(self, key: str, agent: str, amount: int) -> None:
        if self._holds:
            hold, above = self._chance.choice(self._holds), self._chance.random() < 0.1
            used = hold.tokens + 15 if above else self._chance.randrange(hold.tokens + 1)
            self._do("settle", {"hold": hold.hold_id, "tokens": used}, lambda: hold.settle(used))

    def void(self, key: str, agent: str, amount: int) -> None:
        if self._holds:
            hold = self._chance.choice(self._holds)
            self._do("void", {"hold": hold.hold_id}, hold.void)

    def extend(self, key: str, agent: str, amount: int) -> None:
        if self._holds:
            hold, more = self._chance.choice(self._holds), self._chance.randrange(1, 20)
            request = {"hold": hold.hold_id, "tokens": more, "key": key}
            self._do("extend", request, lambda: hold.extend(more, key=key))

    def record_usage(self, key: str, agent: str, amount: int) -> None:
        request = {"key": key, "agent": agent, "tokens": amount % 8}
        self._do("record_usage", request, lambda: self._manager.record_usage(agent, amount % 8, key=key))

    def top_up(self, key: str, agent: str, amount: int) -> None:
        request = {"key": key, "agent": agent, "tokens": amount}
        self._do("top_up", request, lambda: self._manager.top_up(agent, amount, key=key))

    def rebalance(self, key: str, agent: str, amount: int) -> None:
        request = {"key": key, "agent": agent, "tokens": amount}
        self._do("rebalance", request, lambda: self._manager.rebalance({agent: amount}, key=key))

    def read(self, key: str, agent: str, amount: int) -> None:
        self._do("read", {}, self._manager.accounts)


def work(url: str, seed: int, path: str, seconds: float) -> None:
    """Do operations until the time is over, or until it is killed."""
    ends = time.monotonic() + seconds
    with open(path, "w") as history, contextlib.closing(tbc.BudgetManager(store=url)) as manager:
        clerk = _Clerk(manager, seed, history)
        print("ready", flush=True)
        while time.monotonic() < ends:
            clerk.step()


# -- who checks it -------------------------------------------------------------------------------------

_BETWEEN_SIBLINGS = ("loan", "cover", "rebalance")
_TRANSFERS = ("loan", "draw", "cover", "hand_down")


def wrongs(
    histories: Iterable[list[dict[str, Any]]],
    lines: list[Any],
    report: Mapping[str, Mapping[str, int | None]],
) -> list[str]:
    """Return all that cannot have happened, in words.

    Parameters
    ----------
    histories : iterable of list of dict
        What each process wrote, in its order.
    lines : list of Entry or LineRow
        The whole journal.
    report : mapping
        What the manager shows in the end.
    """
    histories = list(histories)
    return [*_of_journal(lines, report), *_of_answers(histories, lines), *_of_keys(histories, lines)]


def _of_journal(lines: list[Any], report: Mapping[str, Mapping[str, int | None]]) -> Iterator[str]:
    """Yield what is wrong with conservation, floors, directions, overspending, and the last report."""
    ranks = {name: (priority, reserve) for name, priority, reserve in AGENTS} | {tbc.ROOT: (0, 0)}
    names = list(ranks)
    allocated, consumed, held = dict.fromkeys(names, 0), dict.fromkeys(names, 0), dict.fromkeys(names, 0)
    ended: dict[int, str] = {}

    def remaining(name: str) -> int:
        return allocated[name] - consumed[name] - held[name]

    for number, line in enumerate(lines, 1):
        me, giver, kind = line.agent_name, line.peer, str(line.kind)
        if line.seq != number:
            yield f"line {number} is missing"
            return
        allocated[me] += line.allocated
        consumed[me] += line.consumed
        held[me] += line.held
        if giver is not None:
            allocated[giver] -= line.allocated
            if kind != "return" and line.allocated and remaining(giver) < ranks[giver][1]:
                yield f"line {number} takes {giver} below its reserve: {remaining(giver)}"
            if kind in _BETWEEN_SIBLINGS and ranks[giver][0] > ranks[me][0]:
                yield f"line {number} runs uphill, from {giver} to {me}"
        elif line.allocated and me != tbc.ROOT:
            yield f"line {number} allocates out of nothing"
        if line.consumed < 0 or held[me] < 0:
            yield f"line {number} takes back what was spent, or more than was held"
        later = lines[number] if number < len(lines) else None
        lends = later is not None and later.hold_id == line.hold_id and str(later.kind) in _TRANSFERS
        if kind in ("hold", "extend") and line.held and not lends and remaining(me) < 0:
            yield f"line {number} grants what is not there: {me} has {remaining(me)}"
        if kind in ("settle", "void", "expire", "late_settle"):
            before = ended.get(line.hold_id)
            if before is not None and (before, kind) != ("expire", "late_settle"):
                yield f"hold {line.hold_id} ends twice: {before}, {kind}"
            ended[line.hold_id] = kind
        if sum(allocated.values()) not in (0, TOTAL):
            yield f"line {number}: {sum(allocated.values())} are allocated in all, not {TOTAL}"
    for name, shown in report.items():
        summed = {"allocated": allocated[name], "consumed": consumed[name], "remaining": remaining(name)}
        if dict(shown) != summed:
            yield f"{name} is shown as {dict(shown)}, and its lines sum to {summed}"


def _of_answers(histories: list[list[dict[str, Any]]], lines: list[Any]) -> Iterator[str]:
    """Yield what was answered and is not in the journal, and reads that do not add up."""
    kept = {fact for line in lines for fact in _facts(line)}
    for history in histories:
        asked: dict[str, Any] | None = None
        for event in history:
            if "ask" in event:
                if asked is not None:
                    yield f"asked for {event} before {asked} was answered"
                asked = event
                continue
            asked = None
            if event["op"] == "read":
                yield from _of_read(event["got"])
            elif any(kept.isdisjoint(alternatives) for alternatives in _claims(event)):
                yield f"answered, and not kept: {event}"


def _facts(line: Any) -> list[tuple[Any, ...]]:
    """Return what a line proves."""
    kind = str(line.kind)
    return [
        (kind, line.hold_id, line.key, line.agent_name, line.held),
        (kind, line.hold_id, line.consumed),
        (kind, line.hold_id, "more", line.held),
        (kind, line.key, "used", line.consumed),
        (kind, line.key, "got", line.allocated),
        (kind, line.key, line.peer, line.agent_name, line.allocated),
    ]


def _claims(event: dict[str, Any]) -> list[list[tuple[Any, ...]]]:
    """Return what an answer says has happened: each of it is proved by one of its facts."""
    name, got, key, tokens, hold = (event.get(each) for each in ("op", "got", "key", "tokens", "hold"))
    if name == "record_usage":  # an overrun is booked too
        return [[("usage", key, "used", tokens)]]
    if event["answer"] != "done":
        return []
    if name == "hold":
        return [[("hold", got, key, event["agent"], tokens)]]
    if name == "settle":
        return [[("settle", hold, tokens), ("late_settle", hold, tokens)]]
    if name == "void":
        return [[("void", hold, 0)]]
    if name == "extend":
        return [[("extend", hold, "more", tokens)]]
    if name == "top_up":
        return [[("top_up", key, "got", tokens)]]
    assert name == "rebalance", name
    return [[(kind, key, *move) for kind in ("rebalance", "draw")] for move in got]


def _of_read(accounts: list[list[Any]]) -> Iterator[str]:
    if sum(each[1] for each in accounts) != TOTAL:
        yield f"a read sums to {sum(each[1] for each in accounts)}, not {TOTAL}: {accounts}"
    for name, allocated, consumed, held, remaining, _ in accounts:
        if remaining != allocated - consumed - held or held < 0 or consumed < 0:
            yield f"a read of {name} does not add up: {accounts}"


def _of_keys(histories: list[list[dict[str, Any]]], lines: list[Any]) -> Iterator[str]:
    """Yield keys with more than one answer, or more than one effect."""
    first: dict[str, tuple[str, Any]] = {}
    for history in histories:
        for event in history:
            if "answer" in event and "key" in event:
                answer = event["answer"], event["got"]
                known = first.setdefault(event["key"], answer)
                if known != answer:
                    yield f"key {event['key']!r} was answered {known} and {answer}"
    effects: dict[tuple[str, str], int] = {}
    for line in lines:
        kind = str(line.kind)
        if line.key is not None and kind in ("hold", "usage", "top_up"):
            effects[line.key, kind] = effects.get((line.key, kind), 0) + 1
    for (key, kind), count in effects.items():
        if count > 1:
            yield f"key {key!r} has {count} lines of kind {kind}"


if __name__ == "__main__":
    work(sys.argv[1], int(sys.argv[2]), sys.argv[3], float(sys.argv[4]))
