"""Steps of workflows in tests: each call writes a line, so that a test sees what was really asked."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import tbc

CALLS: list[tuple[str, str | None]] = []
_LOCK = threading.Lock()


def _asked(what: object, model: str | None) -> None:
    with _LOCK:
        CALLS.append((str(what), model))
    log = os.environ.get("RUN_STEPS_LOG")
    if log:
        with Path(log).open("a", encoding="utf-8") as file:
            file.write(f"{what}\n")


def _reply(text: str, read: int, written: int) -> dict[str, Any]:
    return {
        "object": "chat.completion",
        "choices": [{"message": {"role": "assistant", "content": text}}],
        "usage": {
            "prompt_tokens": read,
            "completion_tokens": written,
            "total_tokens": read + written,
        },
    }


def ask(what: object, *, model: str | None = None, max_output_tokens: int = 100) -> dict[str, Any]:
    """Use ten tokens of input and the whole cap."""
    _asked(what, model)
    return _reply(f"answer to {what}", 10, max_output_tokens)


def ask_without_cap(what: object, *, model: str | None = None) -> dict[str, Any]:
    """Use more than anybody would think."""
    _asked(what, model)
    return _reply(f"answer to {what}", 10, 900)


async def ask_async(
    what: object, *, model: str | None = None, max_output_tokens: int = 100
) -> dict[str, Any]:
    """Be a coroutine."""
    _asked(what, model)
    return _reply(f"answer to {what}", 10, max_output_tokens)


def stream(what: object, *, max_output_tokens: int = 100) -> Any:
    """Be a generator of a provider's chunks."""
    _asked(what, None)
    for word in ("one ", "two"):
        yield {"object": "chat.completion.chunk", "choices": [{"index": 0, "delta": {"content": word}}]}
    yield {
        "object": "chat.completion.chunk",
        "choices": [],
        "usage": {"prompt_tokens": 7, "completion_tokens": 2, "total_tokens": 9},
    }


async def stream_async(what: object) -> Any:
    """Return an async stream."""

    async def chunks() -> Any:
        for each in stream(what):
            yield each

    return chunks()


def plain(what: object) -> object:
    """Return something that states no usage."""
    _asked(what, None)
    return {"seen": what}


def confident(what: object) -> dict[str, Any]:
    """Be sure from the second item on."""
    _asked(what, None)
    return {"output": f"about {what}", "usage": {"input_tokens": 1, "output_tokens": 1}, "confidence": 0.9}


def surrogate(what: object) -> object:
    """Return text that UTF-8 cannot hold, or raise it."""
    _asked(what, None)
    if what == "raise":
        raise ValueError("bad \ud800")
    return "a\ud800b"


def fail(what: object) -> object:
    """Raise."""
    _asked(what, None)
    raise ConnectionError("the line is dead")


def not_sent(what: object) -> object:
    """Prove that nothing was sent."""
    _asked(what, None)
    raise tbc.NotSent


def keep_nothing(what: object) -> object:
    """Return what JSON cannot hold."""
    _asked(what, None)
    return {"output": object(), "usage": {"input_tokens": 1, "output_tokens": 2}}


def look_at_budget(what: object, *, max_output_tokens: int = 100) -> dict[str, Any]:
    """Read what is left, and whether it is time to finish."""
    hold = tbc.current_hold()
    return {
        "output": {"left": hold.remaining, "wind_down": hold.wind_down},
        "usage": {"input_tokens": 1, "output_tokens": max_output_tokens},
    }


def look_at_decision(what: object, *, max_output_tokens: int = 100) -> dict[str, Any]:
    """Read what was decided about this call."""
    decision = tbc.current_hold().decision
    return {
        "output": None if decision is None else decision.note,
        "usage": {"input_tokens": 1, "output_tokens": max_output_tokens},
    }


_TOGETHER = threading.Barrier(2)


def meet(what: object, *, max_output_tokens: int = 100) -> dict[str, Any]:
    """Return only when another step is here too."""
    _TOGETHER.wait(timeout=30)
    return _reply(f"met {what}", 1, 1)


def die_at(what: object, *, model: str | None = None, max_output_tokens: int = 100) -> dict[str, Any]:
    """Kill this process the first time that it is asked for a certain thing."""
    _asked(what, model)
    mark = Path(os.environ.get("RUN_STEPS_MARK", ""))
    if str(what) == os.environ.get("RUN_STEPS_DIE_AT") and not mark.exists():
        mark.write_text("died", encoding="utf-8")
        os.kill(os.getpid(), signal.SIGKILL)
    return _reply(f"answer to {what}", 10, max_output_tokens)


def slow(what: object, *, model: str | None = None, max_output_tokens: int = 100) -> dict[str, Any]:
    """Take some time, so that a process can be killed meanwhile."""
    _asked(what, model)
    time.sleep(float(os.environ.get("RUN_STEPS_SECONDS", "0")))
    return _reply(f"answer to {what}", 10, max_output_tokens)
