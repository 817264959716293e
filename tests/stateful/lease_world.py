"""A world of workers that lease from one pool over a bad network, decided by one seed.

The workers run the real `LeaseHolder`, the pool is a real manager; only the network, the clocks and the
model calls are made up. Messages are lost, doubled, late and overtake each other; workers pause for longer
than a lease, crash and forget everything, or are shut down while a request is open; all clocks drift by up
to a tenth and jump; the pool runs dry and is topped up. `World.run` raises `Broken` as soon as a promise
does not hold.

In half of the worlds there are whole `LeasedManager`s too. Their calls take their time, outlive their holds
and are settled late: when their slice is in use, given back, or closed by an operator, or their manager is
closed.

What is spent is also counted by the world itself, which no worker and no pool can see: the provider's bill.
"""

from __future__ import annotations

import atexit
import heapq
import itertools
import random
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import tbc
from tbc.leased import LeasedManager
from tbc.leases import Amounts, Ask, Lease, LeaseHolder, Refused, Report, Slice
from tbc.slices import SliceDesk
from tbc.testing import check_books

END, REST = 60.0, 60.0
LEASE = Lease(share=0.1, seconds=10.0)


class Broken(AssertionError):
    """A promise does not hold."""


def require(truth: bool, message: str) -> None:
    if not truth:
        raise Broken(message)


class World:
    """One seed's world.

    `holder_kind` is the worker's machine, `manager_kind` that of the workers that are whole managers; `front`
    is what stands between the network and the pool. Tests plant faults through them.
    """

    def __init__(
        self,
        seed: int,
        holder_kind: type[LeaseHolder] = LeaseHolder,
        front: type[Front] | None = None,
        operator: Callable[[World, Any], None] | None = None,
        manager_kind: type[LeasedManager] = LeasedManager,
    ) -> None:
        self.random = random.Random(seed)
        self.now, self.steps = 0.0, 0
        self.seen: tuple[int, ...] = ()
        self.queue: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self.numbers = itertools.count()
        self.holder_kind = holder_kind
        self.manager_kind = manager_kind
        # Where the pool's clock jumps, the operator trusts no end and books what is set aside; where it only
        # drifts, he asks the provider and books what was spent.
        self.jumps = self.random.random() < 0.5
        self.patience = self.random.choice((0.0, 0.8))
        self.drift, self.offset = self.random.choice((0.9, 1.0, 1.1)), 0.0
        most = self.random.randint(200, 2000)
        self.caps = {"tokens": most, "calls": most // 3}
        self.pool = self.open_pool(max_tokens=self.caps["tokens"], max_calls=self.caps["calls"])
        for name, priority in (("reader", 1), ("writer", 9)):
            self.pool.register_agent(name, priority, max_tokens=0, max_calls=0)
        self.front = (front or Front)(self)
        self.operator = operator or World.close_overdue
        self.spent = Counter[int]()  # by lease: the bill, in tokens
        self.called = Counter[int]()
        self.direct = [0, 0]
        self.late = [0, 0]  # of all that: by calls whose holds had expired
        self.untold = Counter[tuple[int, str]]()  # by lease and axis: what only a later report can say
        self.told_late = 0  # calls that were settled late, when their lease had been given back
        self.known: set[int] = set()  # leases that a worker has heard of
        self.crashed: set[str] = set()
        self.in_full: set[int] = set()
        self.workers = [Worker(self, number) for number in range(4)]
        managers = [Manager(self, number) for number in range(self.random.choice((0, 2)))]
        for worker in (*self.workers, *managers):
            self.after(self.random.random(), worker.tick)
        self.after(1.0, self.sweep)

    def open_pool(self, **caps: int) -> Any:
        return tbc.BudgetManager(clock=self.store_clock, **caps)

    def store_clock(self) -> float:
        return self.now * self.drift + self.offset

    def after(self, seconds: float, work: Callable[..., None], *arguments: Any) -> None:
        heapq.heappush(self.queue, (self.now + seconds, next(self.numbers), work, arguments))

    def send(self, work: Callable[..., None], *arguments: Any) -> None:
        """Deliver a message never, once or twice, soon or late; faithfully once the world comes to rest."""
        if self.now > END:
            self.after(0.01, work, *arguments)
            return
        fate = self.random.random()
        for _ in range(0 if fate < 0.1 else 2 if fate > 0.85 else 1):
            soon = self.random.random() < 0.9
            self.after(self.random.expovariate(3.0) if soon else self.random.uniform(2, 8), work, *arguments)

    def run(self) -> World:
        while self.queue and self.queue[0][0] < END + REST:
            self.now, _, work, arguments = heapq.heappop(self.queue)
            work(*arguments)
            self.steps += 1
            self.check()
        self.check_at_rest()
        return self

    def sweep(self) -> None:
        if self.jumps and self.random.random() < 0.02:
            self.offset += self.random.uniform(0, 60)
        if self.random.random() < 0.05 and self.now < END:
            self.pool.top_up(tbc.ROOT, 60, calls=20)
            self.caps = {"tokens": self.caps["tokens"] + 60, "calls": self.caps["calls"] + 20}
        for record in self.pool.leases():
            self.operator(self, record)
        if self.now < END + REST - 10:
            self.after(1.0, self.sweep)

    def close_overdue(self, record: Any) -> None:
        hold = self.pool._leases[record.hold_id]
        alive = hold.key.split("/")[2] not in self.crashed
        # He comes when he has the time; at rest, the living give back by themselves.
        if not record.overdue or (self.random.random() < self.patience if self.now < END else alive):
            return
        if self.jumps:
            self.in_full.add(record.hold_id)
            self.pool.close_lease(record.hold_id)
        else:
            spent, called = self.spent[record.hold_id], self.called[record.hold_id]
            self.pool.close_lease(record.hold_id, spent, calls=called)

    # -- what must hold ----------------------------------------------------------------------------------

    def check(self) -> None:
        ledger = self.pool.ledger
        seen = ledger.seq, len(ledger.open_holds), self.called.total()
        if seen == self.seen:
            return
        self.seen = seen
        for axis, cap, spent, late in (
            ("tokens", self.caps["tokens"], self.spent.total() + self.direct[0], self.late[0]),
            ("calls", self.caps["calls"], self.called.total() + self.direct[1], self.late[1]),
        ):
            require(spent <= cap + late, f"overspent: {spent} of {cap} {axis}, {late} late")
            every = [ledger.look_up(axis, books) for books in ledger.every_account()]
            numbers = [(each.allocated, each.consumed, each.held) for each in every if each is not None]
            require(sum(each[0] for each in numbers) == cap, f"allocated in all is not {cap}: {numbers}")
            require(min(map(min, numbers)) >= 0, f"{axis} negative: {numbers}")
            owed = sum(max(0, c + h - a) for a, c, h in numbers)
            require(owed <= late, f"{owed} {axis} owed, {late} late: {numbers}")
        for hold_id, hold in self.pool._leases.items():
            for axis, spent in (("tokens", self.spent[hold_id]), ("calls", self.called[hold_id])):
                part = hold.part(axis)
                held = 0 if part is None or hold.settlement is not None else part.amount
                charged = hold.reported.on(axis) + held + self.untold[hold_id, axis]
                require(spent <= charged, f"{hold!r}: {spent} {axis} spent, {charged} charged")

    def check_at_rest(self) -> None:
        check_books(self.pool)
        require(not self.pool.leases(), f"never closed: {self.pool.leases()}")
        charged = [0, 0]
        for hold_id, hold in self.pool._leases.items():
            told, spent = hold.reported, (self.spent[hold_id], self.called[hold_id])
            charged = [charged[0] + told.tokens, charged[1] + told.calls]
            life = str(hold.key).split("/")[2]
            if life in self.crashed:
                continue
            require(hold_id in self.known, f"{hold!r} was granted, and its worker never knew")
            require(told.tokens >= spent[0] and told.calls >= spent[1], f"{hold!r}: {told}, spent {spent}")
            if hold_id not in self.in_full:
                require((told.tokens, told.calls) == spent, f"{hold!r}: charged {told}, spent {spent}")
        for axis, own, direct in zip(("tokens", "calls"), charged, self.direct, strict=True):
            consumed = sum(row["consumed"] for row in self.pool.report(axis).values())
            require(consumed == own + direct, f"{consumed} {axis} consumed, {own} + {direct} charged")


class Front:
    """Where messages reach the pool."""

    def __init__(self, world: World) -> None:
        self.world = world

    def receive(self, message: Ask | Report, worker: Worker, life: str) -> None:
        self.world.send(worker.receive, life, message, self.answer(message))

    def answer(self, message: Ask | Report) -> Slice | Refused | Report:
        return self.world.pool.answer(message)


class Worker:
    """A process that spends. Its true spending is told to the world at once."""

    def __init__(self, world: World, number: int) -> None:
        self.world, self.number, self.lives = world, number, 0
        self.agent = ("reader", "writer")[number % 2]
        self.drift, self.offset = world.random.choice((0.9, 1.0, 1.1)), 0.0
        self.start()

    def start(self) -> None:
        self.lives += 1
        self.life = f"{self.number}.{self.lives}"
        self.holder = self.world.holder_kind(self.agent, f"w{self.number}", LEASE, self.life)
        self.holder.clock = self.clock  # for planted faults only: the real one reads none
        self.used: dict[int | None, Amounts] = {}
        self.asked_again = 0.0

    def clock(self) -> float:
        return self.world.now * self.drift + self.offset

    def used_now(self) -> Amounts:
        return self.used.get(self.holder.hold_id, Amounts())

    def say(self, message: Ask | Report) -> None:
        self.world.send(self.world.front.receive, message, self, self.life)

    def tick(self) -> None:
        world, rnd, holder = self.world, self.world.random, self.holder
        if world.now < END:
            if rnd.random() < 0.003:
                world.crashed.add(self.life)
                self.start()
                holder = self.holder
            if rnd.random() < 0.002:
                self.offset += rnd.uniform(0, 30)
            if rnd.random() < 0.01:
                world.after(rnd.uniform(1, 20), self.tick)  # the whole process sleeps
                return
            if rnd.random() < 0.02 and holder.asked is None:
                holder.close(self.used_now())
            if rnd.random() < 0.6:
                self.work(rnd.randint(1, 5))
        elif not holder.shut:
            holder.shut_down(self.used_now())
        elif holder.asked is not None and rnd.random() < 0.3:
            self.say(holder.asked)
        if rnd.random() < 0.2:
            for report in holder.final_reports():
                self.say(report)
        if world.now < END + REST / 2:
            world.after(rnd.uniform(0.1, 0.4), self.tick)

    def work(self, tokens: int) -> None:
        world, holder = self.world, self.holder
        used = self.used_now()
        more = used.plus(Amounts(tokens, 0, 1))
        if holder.hold_id is not None and holder.has_room(more, self.clock()):
            self.used[holder.hold_id] = more
            world.spent[holder.hold_id] += tokens
            world.called[holder.hold_id] += 1
            if world.random.random() < 0.3:
                self.say(holder.report(more))
        elif holder.asked is None or self.clock() - self.asked_again > 2:
            self.asked_again = self.clock()
            self.say(holder.ask(Amounts(tokens, 0, 1), used, self.clock()))

    def receive(self, life: str, message: Ask | Report, answer: Slice | Refused | Report) -> None:
        if life != self.life:
            return
        if isinstance(answer, Report):
            self.holder.acknowledged(answer)
            return
        if (
            isinstance(answer, Refused)
            and isinstance(answer.error, tbc.SliceTooSmallError)
            and message.key == getattr(self.holder.asked, "key", None)
        ):
            self.hold_directly(answer.error.needed if answer.error.axis == "tokens" else 1)
        self.holder.take(message.key, answer, self.used_now())
        self.world.known |= {self.holder.hold_id, *self.holder.closing} - {None}

    def hold_directly(self, tokens: int) -> None:
        try:
            self.world.pool.hold(self.agent, tokens).settle(tokens)
        except tbc.BudgetExceededError:
            return
        self.world.direct[0] += tokens
        self.world.direct[1] += 1


class Line:
    """What a manager has of the pool: some requests do not arrive, some answers do not, some arrive again."""

    def __init__(self, world: World) -> None:
        self.world = world

    def __getattr__(self, name: str) -> Any:
        return getattr(self.world.pool, name)

    def answer(self, message: Ask | Report) -> Slice | Refused | Report:
        world = self.world
        fate = world.random.random() if world.now <= END else 1.0
        if fate < 0.1:
            raise tbc.StoreBusyError("pool", "locked", "Try again")
        answer = world.front.answer(message)
        if fate > 0.9 and world.now <= END:
            world.after(world.random.uniform(0, 8), world.front.answer, message)
        if fate < 0.2:
            raise tbc.StoreBusyError("pool", "locked", "Try again")
        if isinstance(answer, Slice):
            world.known.add(answer.hold_id)
        return answer


class Manager:
    """A process that spends through a `LeasedManager`, in calls that take their time."""

    def __init__(self, world: World, number: int) -> None:
        self.world, self.number, self.lives = world, number, 0
        self.agent = ("reader", "writer")[number % 2]
        self.drift, self.offset = world.random.choice((0.9, 1.0, 1.1)), 0.0
        self.mine: list[str] = []  # its lives since it crashed last
        self.closing: list[LeasedManager] = []
        self.busy = True
        self.start()

    def start(self) -> None:
        self.lives += 1
        self.life = f"m{self.number}.{self.lives}"
        self.mine.append(self.life)
        line: Any = Line(self.world)
        self.manager = self.world.manager_kind(line, LEASE, holder=f"m{self.number}", clock=self.clock)
        self.manager._life = self.life
        atexit.unregister(self.manager._at_exit)

    def clock(self) -> float:
        return self.world.now * self.drift + self.offset

    def tick(self) -> None:
        world, rnd = self.world, self.world.random
        if world.now < END:
            if rnd.random() < 0.002:
                world.crashed.update(self.mine)
                self.mine, self.closing = [], []
                self.start()
            if rnd.random() < 0.002:
                self.offset += rnd.uniform(0, 30)
            if rnd.random() < 0.01:
                world.after(rnd.uniform(1, 20), self.tick)
                return
            if rnd.random() < 0.03:
                self.busy = not self.busy
            if self.busy and rnd.random() < 0.3:
                self.begin(rnd.randint(1, 5))
            if rnd.random() < 0.01:
                self.closing.append(self.manager)
                self.start()
        elif self.manager not in self.closing:
            self.closing.append(self.manager)
        for manager in (self.manager, *self.closing):
            with suppress(tbc.StoreError):
                manager.tend()
        for manager in self.closing:
            self.close(manager)
        if world.now < END + REST / 2:
            world.after(rnd.uniform(0.1, 0.4), self.tick)

    def close(self, manager: LeasedManager) -> None:
        for seat in manager._seats.values():
            for books in (seat.books, *seat.watched):
                if books is not None and any(books.in_flight()):
                    self.world.in_full.add(books.hold_id)
        with suppress(tbc.StoreError):
            manager.close()

    def begin(self, tokens: int) -> None:
        world, rnd, manager = self.world, self.world.random, self.manager
        try:
            hold = manager.hold(self.agent, tokens, expires_s=rnd.uniform(0.5, 4))
        except (tbc.BudgetExceededError, tbc.StoreError):
            return
        books = manager._seats[self.agent].books if isinstance(hold._desk, SliceDesk) else None
        lasts = rnd.uniform(4, 25) if rnd.random() < 0.3 else rnd.expovariate(1.0)
        world.after(lasts, self.end, self.life, manager, books, hold, rnd.randint(0, tokens))

    def end(self, life: str, manager: LeasedManager, books: Any, hold: Any, used: int) -> None:
        world, rnd = self.world, self.world.random
        if life in world.crashed:
            return
        first = hold.state in ("open", "expired")
        try:
            settlement, answered = hold.settle(used), True
        except tbc.StoreError:
            if books is None:  # of a process of the pool that is gone
                hold = world.pool.find_hold(hold.hold_id)
                hold.settle(used)
            settlement, answered = hold.settlement, False
            if books is not None and rnd.random() < 0.7:  # else it is left to the manager
                world.after(rnd.uniform(0.2, 3), self.end, life, manager, books, hold, used)
        if settlement.late and first:
            world.late = [world.late[0] + used, world.late[1] + 1]
        if books is None:
            world.direct = [world.direct[0] + used, world.direct[1] + 1]
            return
        number, left = books.hold_id, manager._seats[self.agent].books is not books
        if first:
            world.spent[number] += used
            world.called[number] += 1
            world.told_late += settlement.late and left
            # What is set aside for the lease covers it; but not what is late, or if an operator was first.
            ended = world.pool._leases[number].settlement is not None
            if not answered or (not left and (settlement.late or ended)):
                world.untold[number, "tokens"] += used
                world.untold[number, "calls"] += 1
        elif answered:
            world.untold[number, "tokens"] -= used
            world.untold[number, "calls"] -= 1
