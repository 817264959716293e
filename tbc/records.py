"""Records as JSON and back: what was answered, and how a hold ended, for those who ask again later.

A record is written with its class and its fields by name; those that have their defaults are left out, and so
are fields that are not known when it is read. Nothing but these classes is ever built.
"""

from __future__ import annotations

import json
from typing import Any

import attrs
import numpy as np

from tbc.clearing import Clearing
from tbc.decision import Booking, Decision, Kind, Settlement, Status, Transfer
from tbc.errors import CarveOutError, LeaseOpenError, SliceTooSmallError
from tbc.leases import Amounts, LeaseTerms, Slice
from tbc.reallocator import Rebalance

__all__ = ["from_json", "to_json"]

_FROZEN: dict[str, Any] = {kind.__name__: kind for kind in (Transfer, Decision, Rebalance, Clearing)}
_TUPLES: dict[str, Any] = {kind.__name__: kind for kind in (Amounts, Booking, LeaseTerms, Settlement, Slice)}
_ERRORS: dict[str, Any] = {
    kind.__name__: kind for kind in (CarveOutError, LeaseOpenError, SliceTooSmallError)
}
_WORDS: dict[str, Any] = {kind.__name__: kind for kind in (Kind, Status)}

_SCALARS = frozenset({str, int, float, bool, type(None)})
_NEEDED = object()
#: The fields of those that are tuples, with their defaults.
_FIELDS: dict[str, Any] = {
    name: [(field, kind._field_defaults.get(field, _NEEDED)) for field in kind._fields]
    for name, kind in _TUPLES.items()
}
_dump = json.JSONEncoder(separators=(",", ":"), check_circular=False).encode


def to_json(value: object) -> str:
    """Return a record, or a plain value, as JSON.

    Raises
    ------
    TypeError
        If it is anything else.
    """
    return _dump(_plain(value))


def from_json(text: str) -> Any:
    """Return what `to_json` was given; sequences come back as tuples."""
    return _built(json.loads(text))


def _plain(value: object) -> Any:
    kind = type(value)
    if kind in _SCALARS:
        return value
    name = kind.__name__
    if name in _WORDS:
        return {"": name, "is": str(value)}
    if value is None or isinstance(value, str | int | float):
        return value
    if name in _TUPLES:
        told = {"": name}
        for (field, default), each in zip(_FIELDS[name], value, strict=True):  # type: ignore[call-overload]
            if each != default:
                told[field] = each if type(each) in _SCALARS else _plain(each)
        return told
    if name in _FROZEN:
        fields = [field.name for field in attrs.fields(_FROZEN[name])]
        return {"": name, **{field: _plain(getattr(value, field)) for field in fields}}
    if isinstance(value, BaseException) and name in _ERRORS:
        return {"": name, "is": [_plain(each) for each in value.args]}
    if isinstance(value, np.ndarray):
        return {"": "array", "is": value.tolist()}
    if isinstance(value, dict):
        return {"": "dict", "is": [[_plain(key), _plain(each)] for key, each in value.items()]}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    raise TypeError(f"{type(value).__name__} is no record")


def _built(value: Any) -> Any:
    if isinstance(value, list):
        return tuple(map(_built, value))
    if not isinstance(value, dict):
        return value
    name = value.pop("")
    if name in _WORDS:
        return _WORDS[name](value["is"])
    if name in _ERRORS:
        return _ERRORS[name](*_built(value["is"]))
    if name == "array":
        return np.array(value["is"], dtype=np.int64)
    if name == "dict":
        return dict(map(_built, value["is"]))
    kind: Any = _TUPLES.get(name) or _FROZEN[name]
    known = kind._fields if name in _TUPLES else [field.name for field in attrs.fields(kind)]
    return kind(**{field: _built(each) for field, each in value.items() if field in known})
