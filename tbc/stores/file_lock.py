"""Who may write to a file next: a lock that the kernel keeps, so that nobody is passed by for long.

SQLite lets those who wait sleep and look again, and whoever comes at the right moment is first: with long
commits, a process may get nothing for seconds. Waiting in the kernel ends that. The lock only says whose turn
it is; what keeps two writers apart is SQLite's own.

The kernel frees the lock of a process that dies. A kernel call cannot be left before the lock is there, so a
thread makes it; who has waited for long enough goes, and the thread gives the lock back when it comes.
"""

from __future__ import annotations

import os
import threading
import time
import weakref
from collections.abc import Generator
from contextlib import contextmanager
from typing import Final

from tbc.errors import StoreBusyError, StoreError

try:
    import fcntl
except ImportError:  # Windows has no such lock, and SQLite waits alone
    fcntl = None  # type: ignore[assignment]

__all__ = ["FileLock"]

_OPEN: weakref.WeakSet[FileLock] = weakref.WeakSet()


class FileLock:
    """The lock that stands in front of a file, in a file of its own beside it.

    Parameters
    ----------
    path : str
        The file; its lock is ``path + ".lock"``, readable by its owner alone, and stays there.

    Raises
    ------
    StoreError
        If that file cannot be opened.

    Notes
    -----
    Thread-safe. A forked child has no part in the locks of its parent.
    """

    def __init__(self, path: str) -> None:
        self._path: Final = path
        self._turn = threading.RLock()  # of the threads that use this object
        self._mutex = threading.Lock()  # of what follows
        self._changed = threading.Condition(self._mutex)
        self._asking = False  # a thread is in the kernel, waiting
        self._wanted = False  # and somebody waits for it
        self._held = False
        self._file: int | None = None
        if fcntl is None:
            return
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        try:
            self._file = os.open(f"{path}.lock", flags, 0o600)
        except OSError as error:
            raise self._refused(error) from error
        _OPEN.add(self)

    @contextmanager
    def hold(self, timeout_s: float) -> Generator[float]:
        """Return a block that one thread of one process is in at a time; entered with the seconds left.

        Parameters
        ----------
        timeout_s : float
            Seconds to wait for it at most.

        Raises
        ------
        StoreBusyError
            The others took longer.
        StoreError
            The file system cannot lock.
        """
        if fcntl is None:
            yield timeout_s
            return
        # Ctrl-C may come after any call: what was taken by it is given back all the same.
        ends: float | None = None
        is_ours = False
        try:
            if not self._turn.acquire(blocking=False):
                ends = self._wait_for_threads(timeout_s)
            is_ours = True
            if not self._take_at_once():
                ends = time.monotonic() + timeout_s if ends is None else ends
                if not self._wait(ends - time.monotonic()):
                    raise self._busy(timeout_s)
            yield timeout_s if ends is None else max(0.0, ends - time.monotonic())
        finally:
            try:
                if is_ours:
                    with self._mutex:
                        if self._held and self._file is not None:  # `_free`, in which it might come first
                            self._held = False
                            fcntl.flock(self._file, fcntl.LOCK_UN)
            finally:
                try:  # noqa: SIM105  # nothing may be called before the release
                    self._turn.release()
                except RuntimeError:  # it was not ours yet
                    pass

    def close(self) -> None:
        """Let go of the file; a second time changes nothing."""
        with self._mutex:
            file, self._file = self._file, None
            if file is not None:
                os.close(file)

    def __del__(self) -> None:
        self.close()

    def _wait_for_threads(self, timeout_s: float) -> float:
        """Wait for this process's own threads, and return when the time is over."""
        ends = time.monotonic() + timeout_s
        if not self._turn.acquire(timeout=max(0.0, timeout_s)):
            raise self._busy(timeout_s)
        return ends

    # -- taking it, by one thread at a time ----------------------------------------------------------------

    def _take_at_once(self) -> bool:
        with self._mutex:
            if self._asking:  # what the thread gets would be ours too, and freed by it
                return False
            file = self._open_file()
            try:
                self._held = True
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                self._held = False
                if isinstance(error, BlockingIOError):
                    return False
                raise self._refused(error) from error
            return True

    def _wait(self, seconds: float) -> bool:
        with self._changed:
            try:
                self._wanted = True
                if not self._asking:
                    thread = threading.Thread(
                        target=self._ask, args=(self._open_file(),), name="tbc file lock", daemon=True
                    )
                    self._asking = True
                    try:
                        thread.start()
                    except RuntimeError:  # Python ends: SQLite waits alone
                        self._asking = False
                        return True
                return self._changed.wait_for(lambda: self._held or not self._asking, max(0.0, seconds))
            finally:
                self._wanted = False

    def _ask(self, file: int) -> None:
        """Wait in the kernel, and hand the lock over."""
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
            got = True
        except OSError:  # closed meanwhile, or a file system that cannot: SQLite waits alone
            got = False
        with self._changed:
            self._asking = False
            self._held = got and self._file == file
            if not self._wanted:
                self._free()
            self._changed.notify_all()

    def _free(self) -> None:
        if self._held and self._file is not None:
            fcntl.flock(self._file, fcntl.LOCK_UN)
        self._held = False

    def _open_file(self) -> int:
        if self._file is None:
            raise StoreError(self._path, "it is closed", "Open it again")
        return self._file

    # -- refusals ------------------------------------------------------------------------------------------

    def _busy(self, timeout_s: float) -> StoreError:
        return StoreBusyError(self._path, f"others kept it locked for {timeout_s:g} s", "Try again")

    def _refused(self, error: OSError) -> StoreError:
        return StoreError(
            self._path, f"it cannot be locked: {error}", "Use a local disk, and a folder of ours"
        )

    def _forget(self) -> None:
        """In a forked child: have no part in what the parent locks, also not when it dies."""
        file, self._file = self._file, None
        if file is not None:
            os.close(file)


def _forget_all() -> None:
    for lock in list(_OPEN):
        lock._forget()
    _OPEN.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_all)
