"""Programs that run beside the tests: started, listened to, stopped, and never left behind."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path

__all__ = ["DEEP", "Program", "eventually"]

#: Whether there is time for hundreds of kills.
DEEP = os.environ.get("TBC_DEEP") == "1"

_ROOM = str(Path(__file__).resolve().parents[2])


def eventually(truth: Callable[[], object], seconds: float = 15.0) -> bool:
    """Return whether it becomes true soon."""
    ends = time.monotonic() + seconds
    while not truth():
        if time.monotonic() > ends:
            return False
        time.sleep(0.01)
    return True


class Program:
    """A Python program of its own. It can be read line by line, and is killed when its block is left."""

    def __init__(self, code: str, *arguments: object) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-W", "error", "-c", textwrap.dedent(code), *map(str, arguments)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=_ROOM,
        )
        self.pid = self._process.pid

    def read(self) -> str:
        """Return the next line; a program that has died instead says why."""
        line = self._process.stdout.readline()
        if not line:
            raise AssertionError(f"ended with {self._process.wait()}: {self._process.stderr.read()}")
        return line.strip()

    def tell(self, line: str = "") -> None:
        """Let it go on where it reads a line."""
        self._process.stdin.write(f"{line}\n")
        self._process.stdin.flush()

    def send(self, number: int) -> None:
        """Send it a signal."""
        self._process.send_signal(number)

    def ended(self, timeout_s: float = 90) -> tuple[int, str, str]:
        """Return how it ended by itself: its code, and the rest of what it wrote."""
        out, err = self._process.communicate(timeout=timeout_s)
        return self._process.returncode, out, err

    def killed(self) -> str:
        """Kill it at once, and return the rest of what it wrote."""
        self.send(signal.SIGKILL)
        return self._process.communicate(timeout=60)[0]

    def __enter__(self) -> Program:
        return self

    def __exit__(self, *error: object) -> None:
        if self._process.poll() is None:
            self._process.kill()
            self._process.communicate(timeout=60)
        for pipe in (self._process.stdin, self._process.stdout, self._process.stderr):
            if pipe is not None and not pipe.closed:
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()
