"""Values of a file into frozen records, and words for what is wrong with them.

A record declares for each of its keys the reader of its value, which returns the value or raises a
`ValueError` that says what it must be. `Reading` looks at every part of a file and notes every problem with
the path of its key and the nearest right name. ``null`` is the same as leaving a key out. `tbc.files` makes
the values of a text.

Examples
--------
>>> @attrs.frozen
... class Tea:
...     sort: str = attrs.field(metadata=by(text))
...     cups: int = attrs.field(default=1, metadata=by(amount(1)))
>>> reading = Reading()
>>> reading.record({"sort": "green", "cups": 2}, Tea, "tea")
Tea(sort='green', cups=2)
>>> reading.record({"sort": "green", "cup": 2}, Tea, "tea"), reading.problems
(Tea(sort='green', cups=1), [('tea.cup', 'unknown key; did you mean cups?')])
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping
from difflib import get_close_matches
from typing import Any, TypeVar

import attrs

from tbc.contract import check_amount
from tbc.errors import InvalidAmountError
from tbc.files import Problem, join

__all__ = [
    "Reading",
    "a_list",
    "a_mapping",
    "amount",
    "by",
    "hint",
    "keys_of",
    "nearest",
    "one_of",
    "said",
    "shown",
    "text",
]

_Record = TypeVar("_Record")


class Reading:
    """One reading of a file: every part is looked at, and every problem noted.

    Parameters
    ----------
    places : mapping of str to str, optional
        Where keys belong, for those who put them elsewhere.
    stand_ins : mapping of str to object, optional
        Values for required keys that are missing or wrong, so that the others can be looked at.
    """

    def __init__(
        self, places: Mapping[str, str] | None = None, stand_ins: Mapping[str, object] | None = None
    ) -> None:
        #: What is wrong, so far.
        self.problems: list[Problem] = []
        self._places = places or {}
        self._stand_ins = stand_ins or {}

    def record(self, value: Any, kind: Callable[..., _Record], path: str) -> _Record | None:
        """Structure a mapping. With problems, return what is left without them, if that makes a record."""
        from cattrs.errors import ClassValidationError, ForbiddenExtraKeysError

        if not isinstance(value, dict):
            self.note(path, f"must be a mapping, not {shown(value)}")
            return None
        known = keys_of(kind)
        given = {key: each for key, each in value.items() if each is not None or key not in known}
        try:
            return _converter(kind).structure(given, kind)  # type: ignore[no-any-return]
        except ClassValidationError as group:
            for error in group.exceptions:
                if isinstance(error, ForbiddenExtraKeysError):
                    for key in sorted(error.extra_fields, key=list(value).index):
                        self._unknown_key(path, key, value[key], known)
                        del given[key]
                    continue
                name = next((note.name for note in _notes(error) if hasattr(note, "name")), "")
                self.note(join(path, name) if name else path, said(error))
                given.pop(name, None)
        # Why: the other keys may have problems with the rest of the file.
        missing = {key: each for key, each in self._stand_ins.items() if key in known and key not in given}
        try:
            return _converter(kind).structure({**missing, **given}, kind)  # type: ignore[no-any-return]
        except ClassValidationError:
            return None

    def _unknown_key(self, path: str, key: str, value: Any, known: list[str]) -> None:
        here = join(path, key)
        near = nearest(key, known, 0.75)
        inner = [name for name in value if name in self._places] if isinstance(value, dict) else []
        if near is None and inner:
            for name in inner:
                self.note(join(here, name), f"unknown key; did you mean {self._places[name]}?")
            return
        near = near or self._places.get(key) or nearest(key, known, 0.45)
        if near is None:
            place = nearest(key, self._places, 0.75)
            near = self._places[place] if place else None
        end = f"did you mean {near}?" if near else f"known are {', '.join(known)}"
        self.note(here, f"unknown key; {end}")

    def note(self, path: str, what: str) -> None:
        """Note what is wrong with the key of that path; empty: the file."""
        self.problems.append((path, what))


@functools.cache
def _converter(kind: Any) -> Any:
    """Make the converter: each key is read as its record declares, keys that it does not know are refused."""
    import cattrs
    from cattrs.gen import make_dict_structure_fn, override

    converter = cattrs.Converter(forbid_extra_keys=True, detailed_validation=True)

    def hook(read: Callable[[object], Any]) -> Any:
        return override(struct_hook=lambda value, _: read(value))

    reads = {one.name: hook(one.metadata["read"]) for one in attrs.fields(kind)}
    converter.register_structure_hook(kind, make_dict_structure_fn(kind, converter, **reads))
    return converter


def keys_of(kind: Any) -> list[str]:
    """Return the keys that a record has in a file."""
    return [one.name for one in attrs.fields(kind)]


def _notes(error: BaseException) -> list[Any]:
    return getattr(error, "__notes__", [])


# --- words for messages -----------------------------------------------------------------------------------


def nearest(name: str, names: Iterable[str], cutoff: float) -> str | None:
    """Return the name most like `name`, if one is a letter off or as like as `cutoff` (0 to 1) asks."""
    plain = {each.lower().replace("-", "_"): each for each in names}
    name = name.lower().replace("-", "_")
    found = get_close_matches(name, [each for each in plain if _one_letter_off(name, each)], n=1, cutoff=0.01)
    found = found or get_close_matches(name, plain, n=1, cutoff=cutoff)
    return plain[found[0]] if found else None


def _one_letter_off(one: str, other: str) -> bool:
    pairs = enumerate(zip(one, other, strict=False))
    start = next((place for place, (a, b) in pairs if a != b), min(len(one), len(other)))
    one, other = one[start:], other[start:]
    swapped = one[:2] == other[:2][::-1] and one[2:] == other[2:]
    return one[1:] == other[1:] or one[1:] == other or one == other[1:] or swapped


def hint(value: object, names: Iterable[str]) -> str:
    """Return the end of a message that says what was probably meant; empty if nothing comes near."""
    near = nearest(value, names, 0.5) if isinstance(value, str) else None
    return f"; did you mean {near}?" if near else ""


def shown(value: object) -> str:
    """Return a value as a message shows it."""
    text = "null" if value is None else str(value).lower() if isinstance(value, bool) else repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def said(error: BaseException) -> str:
    """Return what an error says about the value of a key."""
    if isinstance(error, KeyError):
        return "is missing"
    if isinstance(error, InvalidAmountError):
        return f"must be {error.rule}, not {shown(error.value)}"
    return str(error)


# --- how a value is read; each reader raises ValueError with what the value must be -------------------


def text(value: object) -> str:
    """Read text that is not blank."""
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"must be text, not {shown(value)}")
    return value


def amount(least: int) -> Callable[[object], int]:
    """Return the reader of a whole number from `least` up."""
    return lambda value: check_amount("amount", value, least=least)


def one_of(*choices: str) -> Callable[[object], str]:
    """Return the reader of a choice."""

    def read(value: object) -> str:
        if value not in choices or not isinstance(value, str):
            raise ValueError(f"must be {' or '.join(choices)}, not {shown(value)}{hint(value, choices)}")
        return value

    return read


def a_list(value: object) -> list[Any]:
    """Read a list."""
    if not isinstance(value, list):
        raise ValueError(f"must be a list, not {shown(value)}")
    return value


def a_mapping(value: object) -> dict[str, Any]:
    """Read a mapping."""
    if not isinstance(value, dict):
        raise ValueError(f"must be a mapping, not {shown(value)}")
    return value


def by(read: Callable[[object], Any]) -> dict[str, Any]:
    """Declare how the value of a key is read."""
    return {"read": read}
