"""Bytes of a request into a frozen record, or what is wrong with them.

Refused before anything is built: what is too large, nested too deeply, no JSON (``NaN`` is none), or says a
key twice. Then every value is checked by its `tbc.service.values.Rule`.
"""

from __future__ import annotations

import asyncio
import functools
import json
import types
from collections.abc import Generator, Mapping
from typing import Any, Final, TypeVar, get_args, get_origin
from urllib.parse import parse_qsl

import attrs
import cattrs
from cattrs.gen import make_mapping_structure_fn

from tbc.errors import InvalidRequestError
from tbc.reading import hint, shown
from tbc.service.problems import Problem
from tbc.service.requests import MANY
from tbc.service.schema import fields_of
from tbc.service.values import Rule, rule_of

__all__ = ["DEEPEST", "Receive", "parse", "read_body", "read_query", "read_value", "structure"]

_Record = TypeVar("_Record")
Receive = Any

#: How deeply the values of a body may be nested.
DEEPEST: Final = 16


async def read_body(receive: Receive, most: int, seconds: float) -> bytes:
    """Return the whole body of a request. What came with the head costs no timer.

    Raises
    ------
    Problem
        It is larger than `most` bytes, takes longer than that many seconds, or its sender has left.
    """
    asked = receive()
    try:
        waits_for = asked.send(None)
    except StopIteration as came:  # it was there
        message = came.value
        if not message.get("more_body", False):
            return _part(message, 0, most)
        parts = [_part(message, 0, most)]
        rest: Any = None
    else:
        parts, rest = [], _resumed(asked, waits_for)
    size = sum(map(len, parts))
    try:
        async with asyncio.timeout(seconds):
            while True:
                message = await (receive() if rest is None else rest)
                rest = None
                parts.append(_part(message, size, most))
                size += len(parts[-1])
                if not message.get("more_body", False):
                    return b"".join(parts)
    except TimeoutError:
        raise Problem(
            408,
            "slow_body",
            f"The body did not come within {seconds:g} s.",
            "Send it faster. Nothing was done.",
            headers={"connection": "close"},
        ) from None


@types.coroutine
def _resumed(begun: Any, waits_for: Any) -> Generator[Any, Any, Any]:
    """Go on with a coroutine that has run to where it first waits."""
    try:
        while True:
            try:
                value = yield waits_for
            except BaseException as error:
                waits_for = begun.throw(error)
            else:
                waits_for = begun.send(value)
    except StopIteration as done:
        return done.value


def _part(message: Any, size: int, most: int) -> bytes:
    if message["type"] == "http.disconnect":
        raise Problem(400, "disconnected", "The client has left.", "Send it again.")
    part: bytes = message.get("body", b"")
    if size + len(part) > most:
        raise too_large(most)
    return part


def too_large(most: int) -> Problem:
    """Return what is said to a body that is too large."""
    return Problem(
        413,
        "body_too_large",
        f"A body has at most {most} bytes.",
        "Send less, in several requests.",
        headers={"connection": "close"},
    )


def parse(body: bytes) -> Any:
    """Return the value of a JSON text."""
    try:
        value = _decode(body.decode("utf-8"))
    except (ValueError, RecursionError) as error:  # what is no UTF-8, no JSON, or has numbers of great length
        reason = "nested too deeply" if isinstance(error, RecursionError) else _reason(error)
        raise Problem(
            400, "malformed_json", f"The body is no JSON: {reason}.", "Send one JSON object in UTF-8."
        ) from None
    if body.count(b"{") + body.count(b"[") > DEEPEST and _depth(value) > DEEPEST:
        raise Problem(
            400,
            "malformed_json",
            f"The body is nested more than {DEEPEST} levels deep.",
            "Send one JSON object in UTF-8.",
        )
    return value


def _reason(error: ValueError) -> str:
    if isinstance(error, json.JSONDecodeError | _NotJson):
        return str(error)
    return "it is not UTF-8" if isinstance(error, UnicodeDecodeError) else "a number is too long"


class _NotJson(ValueError):
    """Said of what Python's reader would let pass."""


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise _NotJson("a key is there twice")
    return found


def _no_constant(name: str) -> Any:
    raise _NotJson(f"{name} is no number")


_decode: Final = json.JSONDecoder(object_pairs_hook=_object, parse_constant=_no_constant).decode


def _depth(value: Any) -> int:
    level, depth = [value], 0
    while level:
        depth += 1
        inner = [each for each in level if isinstance(each, dict | list)]
        level = [one for each in inner for one in (each.values() if isinstance(each, dict) else each)]
    return depth - 1


def structure(value: Any, kind: type[_Record]) -> _Record:
    """Return a record.

    Raises
    ------
    InvalidRequestError, cattrs.ClassValidationError
        With the path of every key that is wrong.
    """
    if type(value) is not dict:
        raise InvalidRequestError([("", f"must be a JSON object, not {shown(value)}")])
    try:
        return _converter(False).structure(value, kind)  # type: ignore[no-any-return]
    except Exception:  # again, to find every problem
        known = [field.name for field in fields_of(kind)]
        unknown = [(key, f"unknown key{hint(key, known)}") for key in value if key not in known]
        if unknown:
            raise InvalidRequestError([(shown(key)[1:-1], what) for key, what in unknown]) from None
        return _converter(True).structure(value, kind)  # type: ignore[no-any-return]


@functools.cache
def _converter(detailed: bool) -> Any:
    converter = cattrs.Converter(forbid_extra_keys=True, detailed_validation=detailed)
    converter.register_structure_hook_factory(
        lambda kind: rule_of(kind) is not None, lambda kind: _checks(rule_of(kind))
    )
    converter.register_structure_hook(bool, _truth)

    def mapping(kind: Any) -> Any:
        inner = make_mapping_structure_fn(kind, converter, detailed_validation=detailed)

        def read(value: Any, kind: Any) -> Any:
            if type(value) is not dict or len(value) > MANY:
                raise ValueError(f"must be an object of at most {MANY} keys, not {shown(value)}")
            return inner(value, kind)

        return read

    converter.register_structure_hook_factory(_is_mapping, mapping)

    def many(kind: Any) -> Any:
        plain = get_args(kind)[0]
        inner = converter.get_structure_hook(plain)

        def read(value: Any, _: Any) -> Any:
            if type(value) is not list or len(value) > MANY:
                raise ValueError(f"must be a list of at most {MANY}, not {shown(value)}")
            return [inner(each, plain) for each in value]

        return read

    converter.register_structure_hook_factory(_is_list, many)

    def optional(kind: Any) -> Any:
        plain = next(each for each in get_args(kind) if each is not type(None))
        inner = converter.get_structure_hook(plain)
        return lambda value, _: None if value is None else inner(value, plain)

    converter.register_structure_hook_factory(
        lambda kind: type(None) in get_args(kind) and len(get_args(kind)) == 2, optional
    )

    def record(kind: Any) -> Any:
        fields_of(kind)  # resolves the types
        inner = cattrs.gen.make_dict_structure_fn(
            kind,
            converter,
            _cattrs_forbid_extra_keys=True,
            _cattrs_detailed_validation=detailed,
        )

        def read(value: Any, kind: Any) -> Any:
            if type(value) is not dict:
                raise ValueError(f"must be an object, not {shown(value)}")
            return inner(value, kind)

        return read

    converter.register_structure_hook_factory(attrs.has, record)
    return converter


def _is_mapping(kind: Any) -> bool:
    origin: Any = get_origin(kind)
    return origin is dict


def _is_list(kind: Any) -> bool:
    origin: Any = get_origin(kind)
    return origin is list


def _checks(rule: Rule | None) -> Any:
    assert rule is not None, "the predicate has found one"
    check = rule.check
    return lambda value, _: check(value)


def _truth(value: Any, _: Any) -> bool:
    if type(value) is not bool:
        raise ValueError(f"must be true or false, not {shown(value)}")
    return value


def read_value(name: str, text: str, kind: Any) -> Any:
    """Return a value out of a path or a header."""
    rule = rule_of(kind)
    assert rule is not None, "values outside of bodies have rules"
    try:
        return rule.check(_number_or_text(text, rule.schema))
    except ValueError as error:
        raise InvalidRequestError([(name, str(error))]) from None


def read_query(query: bytes, kind: type[_Record]) -> _Record:
    """Return the record that a query string stands for."""
    try:
        pairs = parse_qsl(query.decode("ascii"), keep_blank_values=True, max_num_fields=20)
    except ValueError:
        raise InvalidRequestError([("", "the query string cannot be read")]) from None
    given = dict(pairs)
    if len(given) != len(pairs):
        raise InvalidRequestError([("", "a name is there twice in the query string")])
    schemas: Mapping[str, Any] = {field.name: _plain_schema(field.type) for field in fields_of(kind)}
    return structure(
        {name: _number_or_text(text, schemas.get(name, {})) for name, text in given.items()}, kind
    )


def _plain_schema(kind: Any) -> dict[str, Any]:
    found = [rule_of(each) for each in (kind, *get_args(kind))]
    return next(rule.schema for rule in found if rule is not None)


def _number_or_text(text: str, schema: Mapping[str, Any]) -> Any:
    digits = text.isascii() and text.isdigit() and len(text) <= 20
    return int(text) if digits and schema.get("type") == "integer" else text
