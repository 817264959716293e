"""A process that has a manager on a store, and does what it is told, one request a line.

``python -m tests.fault.worker URL`` reads JSON lines ``[operation, args, how]`` and answers each with one:
``{"is": ...}``, or ``{"error": type, "says": text}``. It is answered when it has happened.
"""

from __future__ import annotations

import json
import sys
import threading
from typing import Any

import tbc
from tests.fault.processes import Program

__all__ = ["Worker"]


class Worker(Program):
    """Such a process, as the test sees it. Keyword arguments are the manager's."""

    def __init__(self, url: str, **how: Any) -> None:
        program = "import sys; from tests.fault.worker import serve; serve(*sys.argv[1:])"
        super().__init__(program, url, json.dumps(how))
        assert self.read() == "ready"

    def begin(self, operation: str, *args: Any, **how: Any) -> None:
        """Ask for an operation without waiting for it."""
        self.tell(json.dumps([operation, args, how]))

    def answer(self) -> dict[str, Any]:
        """Return the next answer."""
        answer: dict[str, Any] = json.loads(self.read())
        return answer

    def ask(self, operation: str, *args: Any, **how: Any) -> dict[str, Any]:
        """Have an operation done, and return its answer."""
        self.begin(operation, *args, **how)
        return self.answer()


class Operations:
    """What a worker can be asked for: operations of its manager, and of holds by their numbers."""

    def __init__(self, manager: tbc.BudgetManager) -> None:
        self._manager = manager
        self._holds: dict[int, tbc.Hold] = {}

    def hold(self, agent: str, tokens: int, **how: Any) -> int:
        hold = self._manager.hold(agent, tokens, **how)
        self._holds[hold.hold_id] = hold
        return hold.hold_id

    def holds(self, times: int, agent: str, tokens: int, **how: Any) -> list[Any]:
        """Ask for so many holds at once, from as many threads; numbers, or what the refusals are called."""
        found: list[Any] = []
        start = threading.Barrier(times)

        def ask() -> None:
            start.wait()
            found.append(answer(lambda: self.hold(agent, tokens, **how)))

        threads = [threading.Thread(target=ask) for _ in range(times)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return [each.get("is", each.get("error")) for each in found]

    def use(self, times: int, agent: str, tokens: int) -> dict[str, int]:
        """Hold and settle so many times; how many were granted and refused."""
        told = {"granted": 0, "refused": 0}
        for _ in range(times):
            try:
                self._manager.hold(agent, tokens).settle(tokens)
                told["granted"] += 1
            except tbc.BudgetExceededError:
                told["refused"] += 1
        return told

    def settle(self, hold: int, tokens: int | None = None) -> list[Any]:
        done = self._hold(hold).settle(tokens)
        return [done.state, done.tokens, done.late, done.repeated]

    def void(self, hold: int) -> list[Any]:
        done = self._hold(hold).void()
        return [done.state, done.tokens, done.late, done.repeated]

    def _hold(self, number: int) -> tbc.Hold:
        if number not in self._holds:
            self._manager.used()  # follow the others
            self._holds[number] = self._manager.ledger.open_holds[number]
        return self._holds[number]

    def report(self) -> Any:
        return self._manager.report()

    def __getattr__(self, name: str) -> Any:
        operation = getattr(self._manager, name)

        def done(*args: Any, **how: Any) -> str:
            return str(operation(*args, **how))

        return done


def answer(operation: Any) -> dict[str, Any]:
    try:
        return {"is": operation()}
    except Exception as error:
        return {"error": type(error).__name__, "says": str(error)}


def serve(url: str, how: str) -> None:
    """Do what the lines of the standard input say until they end."""
    manager = tbc.BudgetManager(store=url, **json.loads(how))
    operations = Operations(manager)
    print("ready", flush=True)
    for line in sys.stdin:
        name, args, named = json.loads(line)
        print(json.dumps(answer(lambda: getattr(operations, name)(*args, **named))), flush=True)  # noqa: B023
    manager.close()
