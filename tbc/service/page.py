"""The live page: files that a browser is given as they are, and may keep.

They hold no numbers: what the page shows it asks of the service with the reader's own token.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Iterator, Mapping
from importlib.resources import files
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from starlette.routing import Route

from tbc.service.calls import Call, Operation
from tbc.service.problems import Problem, answer_to

if TYPE_CHECKING:
    from importlib.resources.abc import Traversable

    from tbc.service.app import Service

__all__ = ["POLICY", "page_routes"]

#: What the page may load, and from where: from this server, and nothing that is written into it.
POLICY: Final = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "connect-src 'self'",
        "img-src 'self' data:",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",
    )
)
_KINDS: Final = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
    ".json": "application/json",
    ".LICENSE": "text/plain; charset=utf-8",
}
_GUARDS: Final = (
    (b"content-security-policy", POLICY.encode()),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"referrer-policy", b"no-referrer"),
    (b"x-content-type-options", b"nosniff"),
)


class _File(NamedTuple):
    body: bytes
    kind: bytes
    tag: bytes


async def _nothing(call: Call) -> None:
    """Serve nothing: files are sent as they are."""


_PAGE: Final = Operation(
    name="page",
    method="GET",
    path="/",
    summary="The live page.",
    scope=None,
    serve=_nothing,
    answer="text/html",
)


def page_routes(service: Service) -> list[Route]:
    """Return the routes of the page and its files, which are read once."""
    served = _Files(service, _static())
    return [Route("/", served), Route("/static/{name:path}", served)]


@functools.cache
def _static() -> Mapping[str, _File]:
    return dict(_read(files("tbc.service") / "static", ""))


def _read(folder: Traversable, at: str) -> Iterator[tuple[str, _File]]:
    for each in folder.iterdir():
        name = f"{at}{each.name}"
        kind = _KINDS.get(f".{each.name.rpartition('.')[2]}")
        if each.is_dir():
            yield from _read(each, f"{name}/")
        elif kind is not None:
            body = each.read_bytes()
            tag = f'"{hashlib.sha256(body).hexdigest()[:32]}"'
            yield name, _File(body, kind.encode(), tag.encode())


class _Files:
    """Serves the files by their names."""

    def __init__(self, service: Service, named: Mapping[str, _File]) -> None:
        self._service = service
        self._named = named

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        try:
            status, headers, body = await self._answer(scope)
        except Problem as problem:
            status, said, answer = answer_to(problem)
            body = json.dumps(answer).encode()
            headers = [(b"content-type", b"application/json"), (b"cache-control", b"no-store")]
            headers += [(name.encode(), text.encode()) for name, text in said.items()]
        length = [] if status == 304 else [(b"content-length", b"%d" % len(body))]
        await send(
            {"type": "http.response.start", "status": status, "headers": [*headers, *_GUARDS, *length]}
        )
        sent = b"" if scope["method"] == "HEAD" or status == 304 else body
        await send({"type": "http.response.body", "body": sent})

    async def _answer(self, scope: Any) -> tuple[int, list[tuple[bytes, bytes]], bytes]:
        if scope["method"] not in ("GET", "HEAD"):
            raise Problem(
                405,
                "method_not_allowed",
                f"{scope['method']} is not served here.",
                "Use GET.",
                headers={"allow": "GET, HEAD"},
            )
        headers = dict(scope["headers"])
        await self._service.admit(_PAGE, headers)
        found = self._named.get(scope["path_params"].get("name", "index.html"))
        if found is None:
            raise Problem(404, "not_found", "Nothing is served at this path.", "See /openapi.json.")
        said = [(b"etag", found.tag), (b"cache-control", b"no-cache"), (b"content-type", found.kind)]
        known = [each.strip().removeprefix(b"W/") for each in headers.get(b"if-none-match", b"").split(b",")]
        if found.tag in known or b"*" in known:
            return 304, said[:2], b""
        return 200, said, found.body
