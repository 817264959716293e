"""The OpenAPI 3.1 document: made of the same operations, records and shapes that serve and check requests."""

from __future__ import annotations

from collections.abc import Iterable
from http import HTTPStatus
from typing import Any, Final

import attrs

from tbc import __version__
from tbc.service.answers import ErrorAnswer
from tbc.service.calls import Operation
from tbc.service.schema import Schemas, fields_of
from tbc.service.values import Key

__all__ = ["document"]

_JSON: Final = "application/json"
#: What every request may be answered with, and every operation on a pool.
_ALWAYS: Final = (400, 403, 421, 422, 431, 500, 503)
_ON_A_POOL: Final = (507,)
_WITH_BODY: Final = (408, 413, 415)
_WITH_TOKENS: Final = (401, 429)


def document(operations: Iterable[Operation], *, tokens: bool) -> dict[str, Any]:
    """Return the document.

    Parameters
    ----------
    operations : iterable of Operation
        What is served.
    tokens : bool
        Whether bearer tokens are asked for.
    """
    schemas = Schemas()
    paths: dict[str, dict[str, Any]] = {}
    for operation in operations:
        found = _operation(operation, schemas, tokens=tokens)
        paths.setdefault(operation.path, {})[operation.method.lower()] = found
    components: dict[str, Any] = {"schemas": dict(sorted(schemas.named.items()))}
    if tokens:
        components["securitySchemes"] = {
            "token": {
                "type": "http",
                "scheme": "bearer",
                "description": "As `tbc token create` shows it, once.",
            }
        }
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "tbc",
            "version": __version__,
            "description": "Token budget contracts: the ledger of a pool, for any language.",
            "license": {"name": "MIT", "identifier": "MIT"},
        },
        "paths": paths,
        "components": components,
    }


def _operation(operation: Operation, schemas: Schemas, *, tokens: bool) -> dict[str, Any]:
    parameters: list[dict[str, Any]] = [
        {"name": name, "in": "path", "required": True, "schema": schemas.of(kind)}
        for name, kind in operation.params.items()
    ]
    if operation.query is not None:
        parameters += [_query(field, schemas) for field in fields_of(operation.query)]
    headers = {**operation.headers, **({"Idempotency-Key": Key} if operation.keyed else {})}
    parameters += [
        {"name": name, "in": "header", "required": False, "schema": schemas.of(kind)}
        for name, kind in headers.items()
    ]
    statuses = {*_ALWAYS, *operation.refusals}
    if operation.scope is not None:
        statuses |= {*_ON_A_POOL, *(_WITH_TOKENS if tokens else ())}
    if operation.body is not None:
        statuses |= set(_WITH_BODY)
    found: dict[str, Any] = {
        "operationId": operation.name,
        "summary": operation.summary,
        "parameters": parameters,
        "responses": {
            "200": _answer(operation, schemas),
            **{str(status): _refusal(status, schemas) for status in sorted(statuses)},
        },
    }
    if operation.body is not None:
        found["requestBody"] = {"required": True, "content": {_JSON: {"schema": schemas.of(operation.body)}}}
    if tokens and operation.scope is not None:
        found["security"] = [{"token": []}]
        found["x-scope"] = operation.scope
    return found


def _query(field: attrs.Attribute[Any], schemas: Schemas) -> dict[str, Any]:
    schema = schemas.field(field)
    if "anyOf" in schema:  # a query string has no null
        schema = next(each for each in schema["anyOf"] if each.get("type") != "null")
    return {"name": field.name, "in": "query", "required": field.default is attrs.NOTHING, "schema": schema}


def _answer(operation: Operation, schemas: Schemas) -> dict[str, Any]:
    shapes = operation.answer if isinstance(operation.answer, tuple) else (operation.answer,)
    content = {
        shape if isinstance(shape, str) else _JSON: {
            "schema": {"type": "string"} if isinstance(shape, str) else schemas.of(shape)
        }
        for shape in shapes
    }
    return {"description": "Done.", "content": content}


def _refusal(status: int, schemas: Schemas) -> dict[str, Any]:
    return {
        "description": HTTPStatus(status).phrase,
        "content": {_JSON: {"schema": schemas.of(ErrorAnswer)}},
    }
