"""Keys: what makes a request safe to repeat. The first answer is kept, refusals too."""

from __future__ import annotations

from collections.abc import Container
from typing import Any

from tbc.errors import InvalidAmountError, KeyConflictError

__all__ = ["Answers"]


class Answers:
    """First answers by key.

    Parameters
    ----------
    keep : int
        How many are remembered at least. Older ones are forgotten, but never that of an open hold.
    """

    def __init__(self, keep: int) -> None:
        self._keep = keep
        self._answers: dict[str, tuple[tuple[object, ...], Any]] = {}

    def recall(self, key: str | None, content: tuple[object, ...]) -> Any:
        """Return the first answer given under `key`, or ``None`` if the key is new.

        Raises
        ------
        KeyConflictError
            If the key was used with other content.
        """
        if key is None:
            return None
        if not isinstance(key, str) or not key:
            raise InvalidAmountError("key", key, "a non-empty str or None")
        first = self._answers.get(key)
        if first is None:
            return None
        if first[0] != content:
            raise KeyConflictError(key, first[0], content)
        return first[1]

    def knows(self, key: str) -> bool:
        """Return whether the first answer under `key` is at hand."""
        return key in self._answers

    def remember(
        self, key: str | None, content: tuple[object, ...], answer: Any, open_holds: Container[int]
    ) -> None:
        """Keep the first answer, and forget the oldest whose hold is not open."""
        if key is None:
            return
        self._answers[key] = (content, answer)
        for _ in range(len(self._answers) - self._keep):
            oldest = next(iter(self._answers))
            kept = self._answers.pop(oldest)
            if getattr(kept[1], "hold_id", None) in open_holds:
                self._answers[oldest] = kept
