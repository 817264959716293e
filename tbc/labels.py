"""Labels of metrics, kept few: whoever stores metrics pays for every combination of them.

Examples
--------
>>> label = FirstLabels(most=2)
>>> [label(each) for each in ("writer", "reader", "scout", "writer")]
['writer', 'reader', '(other)', 'writer']
"""

from __future__ import annotations

from typing import Final

__all__ = ["OTHER", "FirstLabels"]

#: What stands for all labels beyond the first ones.
OTHER: Final = "(other)"


class FirstLabels:
    """The first labels that are seen, and ``(other)`` for the rest.

    Parameters
    ----------
    most : int
        How many are told apart.
    """

    __slots__ = ("_most", "_seen")

    def __init__(self, most: int) -> None:
        self._most = most
        self._seen: set[str] = set()

    def __call__(self, value: object) -> str:
        """Return the label of a value."""
        label = str(value)
        if label not in self._seen:
            if len(self._seen) >= self._most:
                return OTHER
            self._seen.add(label)
        return label
