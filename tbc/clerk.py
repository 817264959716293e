"""The clerk: lets operations on books in memory happen in a store, many of them in one transaction.

Whoever has an operation puts it in a queue and waits for the desk. Who gets there serves everybody in the
queue: opens a transaction, lets the books follow what others have written, runs the operations on them,
writes what is new, and commits. Those that came meanwhile are served by the next one: under load, one commit
carries many operations ("group commit"), and alone nobody waits for anybody. Coroutines are served by a
thread of the clerk's, so that an event loop never waits. Of threads that were served together, the first one
that comes again waits a moment for the others, or every other commit would be for one operation.

An operation is only answered when what it did is kept. If it cannot be kept, memory takes it back and the
operation raises the store's error. One that stops half-way, by an error that is no refusal, is taken back
too, and the others are done without it.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
import time
import warnings
from collections import deque
from collections.abc import Callable
from copy import copy
from typing import TYPE_CHECKING, Any, Final

from tbc.clock import system_clock
from tbc.errors import StoreAwayError, StoreError, StoreStaleError, StoreUnknownError, TBCError

if TYPE_CHECKING:
    from tbc.keeper import Changes, Keeper
    from tbc.ledger import Ledger
    from tbc.stores.store import Store

__all__ = ["Clerk"]

#: Seconds for which a store that cannot be reached is not asked again: at first, and at most.
_FIRST_PAUSE_S: Final = 0.25
_LONGEST_PAUSE_S: Final = 15.0
#: Seconds for which who serves waits at most for those who were served together before.
_GATHER_S: Final = 0.0003
#: Seconds after which who waits looks whether anybody serves: who was to may have been interrupted.
_LOOK_S: Final = 1.0
#: How much work that nobody waits for may be left until the store can be written to, and is tried at a time.
_LEFT_MOST: Final = 10_000
_LEFT_AT_ONCE: Final = 500


class _Task:
    """An operation, and how it ended."""

    __slots__ = ("_error", "_result", "done", "future", "gate", "leads", "operation", "what")

    def __init__(
        self,
        operation: Callable[[], Any],
        future: asyncio.Future[Any] | None = None,
        what: str | None = None,
    ) -> None:
        self.operation = operation
        self.future = future
        self.what = what  # in words, if nobody waits for it
        self.done = False
        self.gate: Any = None  # locked while its thread waits
        self.leads = False  # whether its thread serves
        self._result: Any = None
        self._error: BaseException | None = None

    def execute(self) -> None:
        self._result = self._error = None
        try:
            self._result = self.operation()
        except StoreStaleError:  # memory has to follow first, for all
            raise
        except Exception as error:
            self._error = error

    def fail(self, error: BaseException) -> None:
        self._result, self._error = None, error

    @property
    def is_torn(self) -> bool:
        """Whether it may have stopped half-way: its error is none of those that leave the books whole."""
        error = self._error
        return error is not None and (not isinstance(error, TBCError) or isinstance(error, StoreError))

    @property
    def is_unkept(self) -> bool:
        """Whether nobody waits for it, and the store could not keep it."""
        return self.what is not None and isinstance(self._error, StoreError)

    def outcome(self) -> Any:
        if self._error is not None:
            raise self._error
        return self._result

    def deliver(self) -> None:
        """Give the outcome to who awaits it; in the event loop."""
        future = self.future
        if future is None or future.done():
            return
        if self._error is not None:
            future.set_exception(self._error)
        else:
            future.set_result(self._result)


class _TornError(Exception):
    """An operation stopped half-way: what was done with it is taken back, and the others are done again."""


class Clerk:
    """Runs operations on a pool that is kept in a store.

    Parameters
    ----------
    keeper : Keeper
        Between the books and the store.
    store : Store
        Where they are kept.
    pool : str
        Under which name.
    ledger : Ledger
        The books.
    tell : callable
        Called after operations have been kept, outside of all locks.
    """

    def __init__(
        self, keeper: Keeper, store: Store, pool: str, ledger: Ledger, tell: Callable[[], None]
    ) -> None:
        self._keeper = keeper
        self._store = store
        self._pool = pool
        self._ledger = ledger
        self._tell = tell
        self._queue: deque[_Task] = deque()
        self._left: deque[_Task] = deque()  # what nobody waits for and could not be kept yet
        self._dropped = 0
        self._mutex = threading.Lock()  # of the queue, and of who serves
        self._desk = threading.Lock()  # locked while somebody serves
        self._led = False  # whether somebody serves, or is told to
        self._thread_leads = False
        self._together = 1  # how many there were to serve last time
        self._serving: int | None = None  # the thread that serves
        self._torn = False  # whether memory may be neither what is kept nor ahead of it
        self._sent: tuple[Changes, Any] | None = None  # what is being written, and the writer
        self._closed = False
        self._away: StoreError | None = None  # why the store is not asked before `_ask_again_at`
        self._ask_again_at = self._pause = 0.0
        self._pid = os.getpid()
        self._awaited = threading.Semaphore(0)
        self._thread: threading.Thread | None = None

    # -- having an operation done ------------------------------------------------------------------------

    def run(self, operation: Callable[[], Any]) -> Any:
        """Return what the operation returns, or raise what it raises, once it is kept.

        Raises
        ------
        StoreError
            It could not be kept, and nothing has changed.
        """
        if self._serving == threading.get_ident():  # an operation that is part of another
            return operation()
        self._check_process()
        task = _Task(operation)
        with self._mutex:
            self._queue.append(task)
            if self._led:
                task.gate = threading.Lock()
                task.gate.acquire()
            else:
                self._led = task.leads = True
        try:
            if task.gate is not None:
                while not task.gate.acquire(timeout=_LOOK_S):  # until it is done, or its turn to serve
                    if not self._desk.locked():
                        task.leads = True
                        break
            if task.leads:
                self._serve(task)
        except BaseException:
            self._withdraw(task)
            raise
        finally:
            if task.leads:
                self._hand_over()
        self._tell()
        return task.outcome()

    def _hand_over(self) -> None:
        """Let the next in the queue serve: one that waits, or the thread for those who await."""
        with self._mutex:
            following = next((task for task in list(self._queue) if task.gate is not None), None)
            if following is not None:
                if not following.leads:
                    following.leads = True
                    following.gate.release()
            elif self._queue:
                self._wake()
            else:
                self._led = False
        self._see_to_it()  # what was put in the queue while the mutex was locked

    async def arun(self, operation: Callable[[], Any], *, undo: Callable[[Any], Any] | None = None) -> Any:
        """Await `run`. If nobody waits any more, it is not done or undone; without `undo`, it is done."""
        self._check_process()
        task = _Task(operation, asyncio.get_running_loop().create_future())
        assert task.future is not None
        self._put(task)
        try:
            if self._closed:  # its thread has ended
                with contextlib.suppress(StoreError):  # the task has it
                    await asyncio.to_thread(self.run, _do_nothing)
            return await task.future
        except asyncio.CancelledError:
            if undo is not None and not self._withdraw(task):
                self.later(
                    lambda: None if task._result is None else undo(task._result),
                    "what was granted to a caller that had gone",
                )
            raise

    def later(self, operation: Callable[[], Any], what: str = "an operation") -> None:
        """Have the operation done soon. Never waits: for finalizers and timers.

        If the store cannot keep it then, it is left until `try_again`; `what` says what it is. It may be done
        twice, if the answer to the first time was lost: it has to see for itself that it has been done.
        """
        if not self.is_elsewhere:
            self._put(_Task(operation, what=what))

    def try_again(self, most: int = _LEFT_AT_ONCE) -> None:
        """Do what was left; what still cannot be kept is left again."""
        if not self._left:
            return
        with contextlib.suppress(IndexError):
            for _ in range(most):
                task = self._left.popleft()
                task.done = False
                self._queue.append(task)
        self._serve_queue()

    def _serve_queue(self) -> None:
        with contextlib.suppress(StoreError):
            self.run(_do_nothing)

    def _put(self, task: _Task) -> None:
        self._queue.append(task)
        self._see_to_it()

    def _see_to_it(self) -> None:
        """Have what is in the queue served, if nobody does. Whoever has the mutex does that when it is free.

        Never waits: a finalizer may come while this thread has locked it.
        """
        if self._queue and not self._led and self._mutex.acquire(blocking=False):
            try:
                if not self._led:
                    self._led = True
                    self._wake()
            finally:
                self._mutex.release()

    def _withdraw(self, task: _Task) -> bool:
        """Take a task back out of the queue; whether it was there."""
        try:
            self._queue.remove(task)
        except ValueError:
            return False
        return True

    @property
    def is_elsewhere(self) -> bool:
        """Whether this is a forked child, and the clerk was left in the parent."""
        return self._pid != os.getpid()

    @property
    def is_closed(self) -> bool:
        """Whether nobody serves any more what nobody waits for."""
        return self._closed

    def _check_process(self) -> None:
        if self.is_elsewhere:  # before any lock: another thread may have had it at the fork
            raise StoreError(
                self._store.path,
                "its manager was opened before the fork",
                "Open a manager of its own in the child process",
            )

    def ask_again(self) -> None:
        """Ask a store that was away with the next operation, without a pause."""
        self._ask_again_at = 0.0

    def close(self) -> None:
        """Serve what is in the queue and what was left, and end the thread; warn of what cannot be kept."""
        self._serve_queue()
        self.ask_again()
        for _ in range(0, len(self._left), _LEFT_AT_ONCE):
            self.try_again()
        with self._mutex:  # nobody is just telling the thread to serve
            self._closed = True
        thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            self._awaited.release()
            thread.join()
        if self._queue:  # it came while the thread ended
            self._serve_queue()
        undone, self._dropped = len(self._left) + self._dropped, 0
        if undone:
            first = "; ".join(str(task.what) for task in list(self._left)[:10])
            self._left.clear()
            warnings.warn(
                f"store {self._store.path!r} could not be written to until the end, "
                f"{undone} left undone: {first}",
                RuntimeWarning,
                stacklevel=3,
            )

    # -- the thread for those who await ------------------------------------------------------------------

    def _wake(self) -> None:
        """Tell the thread to serve; under the mutex."""
        if self._closed:  # no thread can be started while Python ends
            self._led = False
            return
        self._thread_leads = True
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name=f"tbc clerk of {self._pool}", daemon=True)
            self._thread.start()
        self._awaited.release()

    def _work(self) -> None:
        while True:
            self._awaited.acquire()
            if self._thread_leads:
                self._thread_leads = False
                try:
                    with contextlib.suppress(Exception):  # everybody has been told
                        self._serve()
                finally:
                    self._hand_over()
                self._tell()
            elif self._closed:
                return

    # -- serving; at the desk ------------------------------------------------------------------------------

    def _serve(self, own: _Task | None = None) -> None:
        """Serve all that are in the queue; `own` is the task of this thread."""
        if own is not None:
            self._gather()
        with self._desk:
            if own is None or not own.done:
                self._serve_queued(own)

    def _serve_queued(self, own: _Task | None) -> None:
        batch: list[_Task] = []
        with contextlib.suppress(IndexError):  # others may withdraw meanwhile
            batch.extend(self._queue.popleft() for _ in range(len(self._queue)))
        self._serving = threading.get_ident()
        try:
            self._serve_or_fail(batch)
        except BaseException:
            self._queue.extendleft(task for task in reversed(batch) if not task.done and task is not own)
            raise
        finally:
            self._serving = None
        self._together = len(batch) + len(self._queue)
        self._answer(batch)

    def _gather(self) -> None:
        """Let the other threads run until as many have come as last time, or a moment has passed."""
        end = system_clock() + _GATHER_S
        while len(self._queue) < self._together and system_clock() < end:
            time.sleep(0)

    def _answer(self, batch: list[_Task]) -> None:
        """Tell those who wait."""
        awaited: dict[asyncio.AbstractEventLoop, list[_Task]] = {}
        for task in batch:
            task.done = True
            if task.future is not None:
                awaited.setdefault(task.future.get_loop(), []).append(task)
            elif task.gate is not None and not task.leads:
                task.gate.release()
            elif task.is_unkept:
                self._leave(task)
        for loop, tasks in awaited.items():
            with contextlib.suppress(RuntimeError):  # it is closed: nobody waits there any more
                loop.call_soon_threadsafe(_deliver, tasks)

    def _leave(self, task: _Task) -> None:
        """Put aside what nobody waits for."""
        if len(self._left) < _LEFT_MOST:
            self._left.append(task)
        else:
            self._dropped += 1

    def _serve_or_fail(self, batch: list[_Task]) -> None:
        try:
            if self._away is not None and system_clock() < self._ask_again_at:
                raise self._away
            self._serve_all(batch)
            self._away, self._pause = None, 0.0
        except StoreAwayError as error:  # many that ask would keep it away
            if self._away is None or system_clock() >= self._ask_again_at:
                self._pause = min(_LONGEST_PAUSE_S, max(_FIRST_PAUSE_S, 2 * self._pause))
                self._ask_again_at = system_clock() + self._pause
            self._away = error
            _fail_all(batch, error)
        except StoreError as error:
            _fail_all(batch, error)
        except Exception as error:  # something that cannot be kept: the others are not to suffer for it
            undone = [task for task in batch if not task.done]
            if not undone:  # an interrupt: everybody has been told
                raise
            for task in undone:
                if len(batch) > 1:
                    self._serve_or_fail([task])
                else:
                    task.fail(error)

    def _serve_all(self, batch: list[_Task]) -> None:
        """Run the operations and keep what they did; if the pool has moved on, run them again there."""
        optimistic = True
        while True:
            if self._torn:
                self._keeper.count_calls()
                with self._store.transaction(self._pool):
                    self._keeper.reload()
            self._torn = True
            try:
                self._transact(batch, optimistic)
                self._torn = False
                return
            except _TornError:
                with self._ledger.lock:
                    self._keeper.undo()
                self._torn = False
                batch = [task for task in batch if not task.is_torn]
                if not batch:
                    return
            except StoreStaleError:
                with self._ledger.lock:
                    self._keeper.undo()
                self._torn = False
                if not optimistic:  # nobody can have been faster: these are other books
                    raise
                optimistic = False
            except BaseException as error:
                may_come = self._may_come_yet(error)
                if not isinstance(error, StoreAwayError) and self._was_kept():
                    self._torn = False
                    if isinstance(error, StoreError):  # a lost answer: it has been found
                        return
                    self._answer(batch)
                else:
                    with self._ledger.lock:
                        self._keeper.undo()
                    self._torn = False
                    if may_come:
                        _fail_all(batch, self._interrupted())
                        self._answer(batch)
                raise

    def _may_come_yet(self, error: BaseException) -> bool:
        """Return whether what an interrupt left with a server may be written yet: it is not done again."""
        sent = self._sent
        is_sent = sent is not None and bool(sent[0].lines) and sent[1].is_sent
        return is_sent and not isinstance(error, TBCError)

    def _interrupted(self) -> StoreError:
        return StoreUnknownError(
            self._store.path,
            "the thread that wrote for all who waited was interrupted: whether it was written is not known",
            "Ask again with the same key",
        )

    def _was_kept(self) -> bool:
        """Return whether what was interrupted had been committed already; remember it then."""
        sent, self._sent = self._sent, None
        if sent is None or not sent[0].lines:  # what wrote no line may happen again
            return False
        changes, end = sent[0], sent[1].mark(self._pool)
        try:
            self._store.news(self._pool, end)
        except StoreError:  # the journal has no such line
            return False
        with self._ledger.lock:
            self._keeper.kept(changes, end)
        return True

    def _transact(self, batch: list[_Task], optimistic: bool) -> None:
        keeper, pool = self._keeper, self._pool
        at = keeper.mark if optimistic else None
        self._sent = None
        with self._store.transaction(pool, at=at) as writer:
            if writer.mark(pool) != keeper.mark:
                self._follow()
            for task in batch:
                task.execute()
                if task.is_torn:
                    raise _TornError
            with self._ledger.lock:
                changes = keeper.changes()
            if changes:
                keeper.write(writer, changes)
                self._sent = changes, writer
            elif optimistic and not self._store.locks_first and self._follow():
                raise StoreStaleError(self._store.path, "the pool has moved on", "Ask again")
        if changes:
            with self._ledger.lock:
                keeper.kept(changes, writer.mark(pool))
                self._sent = None

    def _follow(self) -> bool:
        """Let memory follow the store; whether there was anything new."""
        news = self._store.news(self._pool, self._keeper.mark)
        if news.mark.version == self._keeper.mark.version:
            return False
        with self._ledger.lock:
            self._keeper.follow(news)
        return True


def _fail_all(batch: list[_Task], error: StoreError) -> None:
    """Give everybody an error of their own: what a call had returned is put on it."""
    for task in batch:
        own = copy(error)
        own.__cause__ = error.__cause__
        task.fail(own)


def _do_nothing() -> None:
    """Be served, with all that are in the queue."""


def _deliver(tasks: list[_Task]) -> None:
    for task in tasks:
        task.deliver()
