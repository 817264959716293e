"""Connections to a PostgreSQL server: taken, given back, and lost.

The server may be away, hang without a word, or come back; a thread may be interrupted anywhere. Nobody waits
without an end, nobody is left out because of what others met with, and nothing is lost for good.
"""

from __future__ import annotations

import select
import threading
import time
import weakref
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any, Final, TypeVar
from urllib.parse import quote

import psycopg
import psycopg_pool

from tbc.errors import StoreAwayError, StoreBusyError, StoreError, TBCError

__all__ = ["Connection", "Connections"]

T = TypeVar("T")

_CONNECT_S: Final = 5
_HASTY_S: Final = 2
_RETRY_S: Final = 0.25
_KEEPALIVE_S: Final = 10


class Connection(psycopg.Connection[tuple[Any, ...]]):
    """A connection that is closed when the server has been silent for too long.

    Attributes
    ----------
    patience_s : float
        For how long it may be silent: longer than its own limit for a statement, of which it would tell.
    at_work : callable, optional
        Asked then: whether the server lives, and works on what has no limit. ``None``: it does not.
    """

    patience_s: Final = 8.0
    at_work: Callable[[], bool] | None = None

    def wait(self, gen: Generator[Any, Any, T], *args: Any, **named: Any) -> T:
        """Wait for an answer."""
        return super().wait(self._bounded(gen), *args, **named)

    def _bounded(self, gen: Generator[Any, Any, T]) -> Generator[Any, Any, T]:
        """Go on with what psycopg waits for: it comes here ten times a second, also if nothing came."""
        end = time.monotonic() + self.patience_s
        try:
            wanted = next(gen)
            while True:
                came = yield wanted
                if came:
                    end = time.monotonic() + self.patience_s
                elif time.monotonic() > end:
                    if self.at_work is None or not self.at_work():
                        self.close()
                        raise psycopg.OperationalError("the server does not answer")
                    end = time.monotonic() + self.patience_s
                wanted = gen.send(came)
        except StopIteration as done:
            answer: T = done.value
            return answer


class _Use:
    """That a connection is in use. It is gone with whoever was interrupted, as the connection is."""

    __slots__ = ("__weakref__",)


class Connections:
    """The connections of one process to one server.

    Parameters
    ----------
    url : str
        Where it is, as libpq takes it.
    most : int
        How many may be in use at once; who wants more waits.
    set_up : callable
        Given each new connection before anybody has it.

    Attributes
    ----------
    path : str
        Where the server is, without the password.
    settings : dict
        How to connect, as psycopg takes it.

    Raises
    ------
    StoreError
        If the address cannot be read.
    """

    def __init__(self, url: str, most: int, set_up: Callable[[Connection], None]) -> None:
        self.path, self.settings = _read(url)
        self._most = most
        self._set_up = set_up
        self._uses: weakref.WeakSet[_Use] = weakref.WeakSet()
        self._renewing = threading.Lock()
        self._pool: psycopg_pool.ConnectionPool[Connection] | None = None

    def open(self) -> None:
        """Begin to connect."""
        self._pool = self._new_pool()

    def close(self) -> None:
        """Let go of them; those that are in use when they are given back."""
        pool, self._pool = self._pool, None
        if pool is not None:
            pool.close()

    @property
    def is_closed(self) -> bool:
        """Whether they are closed, or not open yet."""
        return self._pool is None

    def connect(self, *, timeout_s: int | None = None) -> Connection:
        """Return one more connection, for what may take long; whoever has it closes it.

        Raises
        ------
        StoreAwayError
            If the server cannot be reached.
        """
        settings = self.settings if timeout_s is None else {**self.settings, "connect_timeout": timeout_s}
        try:
            connection = Connection.connect(**settings)
        except psycopg.Error as error:
            said = _without(str(error).strip(), self.settings.get("password"))
            raise StoreAwayError(
                self.path,
                f"it cannot be reached ({said}); nothing was written",
                "Check that the server runs, and the address",
            ) from None
        connection.at_work = self._lives
        return connection

    @contextmanager
    def taken(self) -> Generator[Connection]:
        """Yield a connection that nobody else uses; it goes back without a transaction.

        Whoever is interrupted may leave it in the middle of an answer: then it is closed.

        Raises
        ------
        StoreAwayError, StoreBusyError
            If there is none for five seconds: since the server cannot be reached, or all are in use.
        """
        pool, connection, use = self._alive()
        whole = False
        try:
            yield connection
            whole = True
        except TBCError:
            whole = True
            raise
        finally:
            try:
                if not whole:
                    connection.close()
                elif not connection.closed and connection.info.transaction_status:
                    connection.execute("ROLLBACK")
            except psycopg.Error:
                connection.close()
            finally:
                self._uses.discard(use)
                pool.putconn(connection)

    def _new_pool(self) -> psycopg_pool.ConnectionPool[Connection]:
        return psycopg_pool.ConnectionPool(
            connection_class=Connection,
            kwargs=self.settings,
            min_size=1,
            max_size=self._most,
            configure=self._set_up,
            reconnect_timeout=_RETRY_S,  # who waits asks again: nobody waits out a pause made for others
            name="tbc",
            open=True,
        )

    def _alive(self) -> tuple[psycopg_pool.ConnectionPool[Connection], Connection, _Use]:
        """Return a connection that the server has not hung up on, where it belongs, and that it is in use.

        The server is not asked. Nothing was sent on one that is found dead here, so that another one can be
        taken instead.
        """
        end, renewed = time.monotonic() + _CONNECT_S, False
        while True:
            pool = self._pool
            if pool is None:
                raise StoreError(self.path, "it is closed", "Open it again")
            try:
                connection = pool.getconn(_RETRY_S)
            except psycopg_pool.PoolClosed:  # there may be a new one
                continue
            except psycopg_pool.PoolTimeout as error:
                if time.monotonic() < end:
                    continue
                if len(self._uses) >= self._most:
                    raise StoreBusyError(
                        self.path,
                        f"all {self._most} connections of this process were in use for {_CONNECT_S} s; "
                        "nothing was written",
                        "Try again, or open the store with more connections",
                    ) from error
                if not renewed and self._renew(pool):
                    end, renewed = time.monotonic() + _CONNECT_S, True
                    continue
                raise StoreAwayError(
                    self.path,
                    f"it could not be reached for {_CONNECT_S} s; nothing was written",
                    "Try again when the server runs",
                ) from error
            use = _Use()
            self._uses.add(use)
            try:
                poll = select.poll()
                poll.register(connection.fileno(), select.POLLIN)
                while poll.poll(0):  # a last word may come before the end
                    connection.pgconn.consume_input()
            except BaseException as error:
                connection.close()
                self._uses.discard(use)
                pool.putconn(connection)
                if not isinstance(error, psycopg.OperationalError):
                    raise
            else:
                return pool, connection, use

    def _renew(self, pool: psycopg_pool.ConnectionPool[Connection]) -> bool:
        """Begin with new connections, if the server can be reached; whether it can.

        Interrupts may have lost the old ones: the pool goes on counting those.
        """
        if not self._renewing.acquire(blocking=False):
            return False
        try:
            self.connect(timeout_s=_HASTY_S).close()
            if self._pool is pool:
                self._pool = self._new_pool()
                pool.close(1)
            return True
        finally:
            self._renewing.release()

    def _lives(self) -> bool:
        """Return whether the server says anything at all."""
        try:
            psycopg.connect(**self.settings).close()
        except psycopg.errors.ConnectionTimeout:
            return False
        except psycopg.Error:
            pass  # it says no
        return True


def _read(url: str) -> tuple[str, dict[str, Any]]:
    """Return where a server is, without the password, and how to connect to it."""
    try:
        settings = psycopg.conninfo.conninfo_to_dict(url)
    except (psycopg.Error, TypeError):
        # What it says may quote the password.
        raise StoreError(
            "postgresql://",
            "its address cannot be read",
            'Write it as "postgresql://user:password@host:port/database", with other characters than '
            "letters and digits percent-encoded",
        ) from None
    user = f"{quote(str(settings['user']), safe='')}@" if settings.get("user") else ""
    port = f":{settings['port']}" if settings.get("port") else ""
    host = quote(str(settings.get("host", "")), safe=",.:[]")
    path = f"postgresql://{user}{host}{port}/{quote(str(settings.get('dbname', '')), safe='')}"
    return path, {
        "connect_timeout": _CONNECT_S,
        "keepalives_idle": _KEEPALIVE_S,
        "keepalives_interval": _CONNECT_S,
        "keepalives_count": 3,
        "application_name": "tbc",
        **settings,
        "client_encoding": "UTF8",
        "autocommit": True,
        "prepare_threshold": 0,
    }


def _without(text: str, secret: object) -> str:
    return text.replace(str(secret), "***") if secret else text
