"""Types into JSON Schema: what requests may have, and what answers look like.

Records and typed dicts become named schemas of their own, referred to where they are used.

Examples
--------
>>> from tbc.service.values import Amount
>>> Schemas().of(Amount | None)["anyOf"][1]
{'type': 'null'}
"""

from __future__ import annotations

import inspect
from types import NoneType, UnionType
from typing import Any, Final, Literal, NotRequired, Union, get_args, get_origin, get_type_hints, is_typeddict

import attrs

from tbc.service.values import rule_of

__all__ = ["Schemas"]

_PLAIN: Final[dict[Any, dict[str, Any]]] = {
    str: {"type": "string"},
    int: {"type": "integer"},
    float: {"type": "number"},
    bool: {"type": "boolean"},
    NoneType: {"type": "null"},
    Any: {},
}


class Schemas:
    """Schemas of types, and the named ones among them.

    Attributes
    ----------
    named : dict of str to dict
        By name: what ``#/components/schemas`` has.
    """

    def __init__(self) -> None:
        self.named: dict[str, dict[str, Any]] = {}

    def of(self, kind: Any) -> dict[str, Any]:
        """Return the schema of a type; of a record, a reference to it."""
        rule = rule_of(kind)
        if rule is not None:
            return dict(rule.schema)
        if kind in _PLAIN:
            return dict(_PLAIN[kind])
        origin, inner = get_origin(kind), get_args(kind)
        if origin is Literal:
            return {"enum": list(inner)}
        if origin in (Union, UnionType):
            return {"anyOf": [self.of(each) for each in inner]}
        if origin is list:
            return {"type": "array", "items": self.of(inner[0])}
        if origin is dict:
            return {
                "type": "object",
                "propertyNames": self.of(inner[0]),
                "additionalProperties": self.of(inner[1]),
            }
        if attrs.has(kind) or is_typeddict(kind):
            return self._reference(kind)
        raise TypeError(f"{kind!r} has no schema")

    def _reference(self, kind: Any) -> dict[str, Any]:
        name = kind.__name__.lstrip("_")
        if name not in self.named:
            self.named[name] = {}  # first: it may refer to itself
            self.named[name] = self._typed_dict(kind) if is_typeddict(kind) else self._record(kind)
        return {"$ref": f"#/components/schemas/{name}"}

    def _typed_dict(self, kind: Any) -> dict[str, Any]:
        hints = get_type_hints(kind, include_extras=True)
        optional = {name for name, each in hints.items() if get_origin(each) is NotRequired}
        return {
            "type": "object",
            "description": inspect.getdoc(kind) or "",
            "properties": {
                name: self.of(get_args(each)[0] if name in optional else each) for name, each in hints.items()
            },
            "required": [name for name in hints if name not in optional],
            "additionalProperties": False,
        }

    def _record(self, kind: Any) -> dict[str, Any]:
        schema: dict[str, Any] = {
            "type": "object",
            "description": inspect.getdoc(kind) or "",
            "properties": {field.name: self.field(field) for field in fields_of(kind)},
            "required": [field.name for field in fields_of(kind) if field.default is attrs.NOTHING],
            "additionalProperties": False,
        }
        alternatives = [
            {
                "not": {
                    "required": list(pair),
                    "properties": {name: {"not": {"type": "null"}} for name in pair},
                }
            }
            for pair in getattr(kind, "only_one_of", ())
        ]
        if alternatives:
            schema["allOf"] = alternatives
        return schema

    def field(self, field: attrs.Attribute[Any]) -> dict[str, Any]:
        """Return the schema of one key of a record, with its default where JSON has it."""
        schema = self.of(field.type)
        if type(field.default) in (str, int, float, bool):
            schema["default"] = field.default
        limit = field.metadata.get("most")
        return schema if limit is None else {**schema, "maxProperties": limit}


def fields_of(kind: Any) -> tuple[attrs.Attribute[Any], ...]:
    """Return the fields of a record with their types as types."""
    attrs.resolve_types(kind)
    fields: tuple[attrs.Attribute[Any], ...] = attrs.fields(kind)
    return fields
