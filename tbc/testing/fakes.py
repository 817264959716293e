"""Fakes for tests of agents: no network, no randomness."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from typing import Any

__all__ = ["FakeModel"]


class FakeModel:
    """A scripted provider that counts its calls and replies with plain dicts that state their usage.

    Parameters
    ----------
    script : iterable of int, str, dict or exception
        One item per call: an ``int`` is the output's tokens, a ``str`` the text (one token a word), a dict is
        replied as it is, an exception is raised. The last item repeats.
    input_tokens : int, optional
        Tokens that every reply states for its input; default: the words of the prompt.

    Attributes
    ----------
    calls : int
        How often it was called, also where it raised.
    prompts : list of object
        What it was called with.

    Examples
    --------
    >>> model = FakeModel([3, RuntimeError("overloaded")])
    >>> reply = model("two words", max_tokens=100)
    >>> reply["usage"]
    {'prompt_tokens': 2, 'completion_tokens': 3, 'total_tokens': 5}
    >>> model.calls
    1
    """

    def __init__(self, script: Iterable[Any] = (10,), *, input_tokens: int | None = None) -> None:
        self._script = list(script)
        self._input_tokens = input_tokens
        self._lock = threading.Lock()
        self.calls = 0
        self.prompts: list[object] = []

    def __call__(self, prompt: object, *, max_tokens: int | None = None) -> dict[str, Any]:
        """Reply as the script says; an output above `max_tokens` is cut off, as a provider would."""
        with self._lock:
            item = self._script[min(self.calls, len(self._script) - 1)]
            self.calls += 1
            self.prompts.append(prompt)
        if isinstance(item, BaseException):
            raise item
        if isinstance(item, dict):
            return item
        words = item.split() if isinstance(item, str) else ["word"] * item
        words = words[:max_tokens]
        used = len(str(prompt).split()) if self._input_tokens is None else self._input_tokens
        return {
            "choices": [{"message": {"role": "assistant", "content": " ".join(words)}}],
            "usage": {
                "prompt_tokens": used,
                "completion_tokens": len(words),
                "total_tokens": used + len(words),
            },
        }

    async def acall(self, prompt: object, *, max_tokens: int | None = None) -> dict[str, Any]:
        """Reply in the same way to a caller that awaits."""
        return self(prompt, max_tokens=max_tokens)
