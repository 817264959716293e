"""The ASGI application: paths to operations, requests to calls, and one envelope for whatever goes wrong."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import json
import logging
import threading
from collections.abc import AsyncGenerator, Iterable, Mapping
from typing import TYPE_CHECKING, Any, Final

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from tbc.clock import Clock, system_clock
from tbc.errors import InvalidContractError, InvalidRequestError, StoreError, UnknownPriceError
from tbc.service import agent_runs, agents, spending, tiers
from tbc.service.answers import HealthAnswer
from tbc.service.bearers import Bearers
from tbc.service.bodies import parse, read_body, read_query, read_value, structure, too_large
from tbc.service.calls import Call, Operation, Text
from tbc.service.door import Door
from tbc.service.limits import Limits
from tbc.service.metrics import CONTENT_TYPE, MetricsAnswer, wants_json
from tbc.service.openapi import document
from tbc.service.page import page_routes
from tbc.service.pools import OpenPool, Pools
from tbc.service.problems import Problem, answer_to, pool_differs
from tbc.service.requests import EventsQuery
from tbc.service.roles import Role, serves
from tbc.service.stream import Listeners, follow
from tbc.service.tiers import FlatQuestion, Judged, Tiers
from tbc.service.values import Amount, Key

if TYPE_CHECKING:
    from tbc.policy import Policy
    from tbc.service.asking import PolicyProcess
    from tbc.service.executors import Executor

__all__ = ["Service", "create_app"]

_LOG: Final = logging.getLogger("tbc.service")
_encode: Final = json.JSONEncoder(separators=(",", ":"), check_circular=False).encode
#: What every answer says of itself: keep it, guess at it or frame it nowhere.
_HEADERS: Final = (
    (b"cache-control", b"no-store"),
    (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'"),
    (b"referrer-policy", b"no-referrer"),
    (b"x-content-type-options", b"nosniff"),
)
#: Seconds that what was cut off at the end has to book what it spent, and between two looks at it.
_SETTLE_S: Final = 5.0
_LOOK_S: Final = 0.01
#: Seconds that the books have to be closed at the end.
_CLOSE_S: Final = 10.0
_JSON_KIND: Final = ((b"content-type", b"application/json"),)


class Service:
    """What serves: the pools, the limits, and whether it is ending.

    Parameters
    ----------
    pools : Pools
        The books.
    pool : str
        Which of them is meant where no token says it.
    limits : Limits
        How much one client may ask.
    bearers : Bearers, optional
        The tokens that are asked for. Default: whoever reaches the server may do everything.
    here_only : bool
        Whether it is reached from this machine alone.
    policy : Policy, optional
        Which class of model a step is given. Default: `tbc.policy.DEFAULT`.
    executor : Executor, optional
        What carries the steps of runs out. Default: they are simulated.
    role : {"both", "policy", "executor", "viewer"}
        What of it all is served.
    policy_process : PolicyProcess, optional
        Who chooses for the steps of runs. Default: this process.
    clock : callable
        Seconds, never going back.
    """

    def __init__(
        self,
        pools: Pools,
        *,
        pool: str = "default",
        limits: Limits | None = None,
        bearers: Bearers | None = None,
        here_only: bool = False,
        policy: Policy | None = None,
        executor: Executor | None = None,
        role: Role = "both",
        policy_process: PolicyProcess | None = None,
        clock: Clock = system_clock,
    ) -> None:
        self.pools = pools
        self.limits = Limits() if limits is None else limits
        self.clock = clock
        self._door = Door(pool, bearers, here_only=here_only, rate=self.limits.rate, clock=clock)
        self._policy = policy
        self.executor = executor
        self.policy_process = policy_process
        self.draining = False
        self.stuck = False
        self.at_work = 0
        self._turn = asyncio.Lock()
        self._listeners: dict[str, Listeners] = {}
        every: tuple[Operation, ...] = (
            *spending.OPERATIONS,
            *agents.OPERATIONS,
            *tiers.OPERATIONS,
            *agent_runs.OPERATIONS,
            EVENTS,
            METRICS,
            Operation(
                name="health",
                method="GET",
                path="/health",
                summary="Whether requests are served, and whether the store answers, if there is one.",
                scope=None,
                serve=_health,
                answer=HealthAnswer,
            ),
        )
        self.operations = tuple(each for each in every if serves(role, each))
        self.document = document(self.operations, tokens=self._door.asks_for_tokens)

    async def admit(self, operation: Operation, headers: Mapping[bytes, bytes]) -> OpenPool | None:
        """Return the pool that a request is about, if it is about one, and if whoever sent it may."""
        name = self._door.admit(operation, headers)
        if operation.scope is None:
            return None
        try:
            return self.pools.open.get(name) or await self.pools.get(name)
        except InvalidContractError as error:  # nothing that the request says
            raise pool_differs(error) from error

    def check_names(self, headers: Mapping[bytes, bytes]) -> None:
        """Refuse what a page of the web may have sent; see `Door.check_names`."""
        self._door.check_names(headers)

    def still_admits(self, headers: Mapping[bytes, bytes]) -> bool:
        """Return whether the token of a request that was admitted is still valid."""
        return self._door.bears(headers)

    @functools.cached_property
    def tier_policy(self) -> Tiers:
        """The policy with what it has learned; the default one needs prices, which are looked up then."""
        if self._policy is not None:
            return Tiers(self._policy)
        from tbc.policy import DEFAULT

        try:
            return Tiers(DEFAULT)
        except UnknownPriceError:
            raise Problem(
                503,
                "no_prices",
                "The tier policy that comes with tbc needs prices, and this server has none.",
                'On the server: pip install "tbc[prices]", or start it with --policy FILE.',
            ) from None

    async def judge(self, asked: FlatQuestion) -> Judged:
        """Ask the policy about a step of a run, here or where it is."""
        if self.policy_process is not None:
            return await self.policy_process.judge(self.tier_policy, asked)
        return self.tier_policy.judge(asked)

    def count_choice(self, pool: OpenPool, judged: Judged) -> None:
        """Count what the policy has chosen."""
        try:
            pool.metrics.chosen(judged)
        except Exception:
            _LOG.exception("a choice was not counted")

    def count(self, pool: OpenPool, operation: Operation, seconds: float, answer: Any) -> None:
        """Count a request that was served. What goes wrong with counting is nobody's error but ours."""
        try:
            pool.metrics.answered(operation.name, seconds, answer)
        except Exception:
            _LOG.exception("a request was not counted")

    def count_refusal(
        self,
        pool: OpenPool,
        operation: Operation,
        status: int,
        code: str,
        error: Exception,
        key: str | None,
    ) -> None:
        """Count a request that was not served."""
        try:
            decision = getattr(error, "decision", None)
            contract = None if decision is None else pool.manager.contracts.get(decision.agent_name)
            priority = 0 if contract is None else contract.priority
            pool.metrics.refused(operation.name, status, code, error, priority, key)
        except Exception:
            _LOG.exception("a request was not counted")

    def listeners(self, pool: OpenPool) -> Listeners:
        """Return the readers of a pool's events."""
        found = self._listeners.get(pool.name)
        if found is None:
            found = self._listeners[pool.name] = Listeners(pool, self.limits.streams, self._turn)
        return found

    async def settled(self) -> None:
        """Wait, for a while, until what is in flight has ended: also what was cut off books what it spent."""
        for _ in range(round(_SETTLE_S / _LOOK_S)):
            if not self.at_work:
                return
            await asyncio.sleep(_LOOK_S)

    async def close(self) -> None:
        """Close the books, but wait no longer than a while for a store that says nothing any more."""
        closing = threading.Thread(target=self._close, name="tbc-close", daemon=True)
        closing.start()
        told, quiet_s = self.pools.told(), 0.0
        while quiet_s < _CLOSE_S:
            await asyncio.sleep(_LOOK_S)
            if not closing.is_alive():
                return
            before, told = told, self.pools.told()
            quiet_s = quiet_s + _LOOK_S if told == before else 0.0
        self.stuck = True
        _LOG.error("the store did not answer at the end: what it was not told is as after a crash")

    def _close(self) -> None:
        try:
            self.pools.close()
        except Exception:
            _LOG.exception("the books were not closed well")

    def drain(self) -> None:
        """Begin to end: streams stop, and what is in flight is finished."""
        self.draining = True
        for each in self._listeners.values():
            each.close()


def create_app(service: Service) -> Starlette:
    """Return the application."""

    @contextlib.asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncGenerator[None]:
        try:
            yield
        finally:
            service.drain()
            await service.settled()
            if service.policy_process is not None:
                await service.policy_process.aclose()
            await service.close()

    by_path: dict[str, dict[str, Operation]] = {}
    for operation in service.operations:
        by_path.setdefault(operation.path, {})[operation.method] = operation
    endpoints: dict[str, Any] = {path: _Endpoint(service, methods) for path, methods in by_path.items()}
    endpoints["/openapi.json"] = _Document(service)
    routes = [Route(path, endpoint) for path, endpoint in endpoints.items()]
    if "/v1/report" in by_path:  # what the page shows
        routes += page_routes(service)
    app = _App(
        routes=routes, exception_handlers={404: functools.partial(_not_found, service)}, lifespan=lifespan
    )
    app.router.redirect_slashes = False
    app.straight = {path: endpoint for path, endpoint in endpoints.items() if "{" not in path}
    return app


class _App(Starlette):
    """Starlette, but what is served at a path without values in it is found by one look into a dict.

    Endpoints answer whatever goes wrong themselves, so nothing is lost with the layers that are passed by. A
    middleware that somebody has added is not passed by.
    """

    straight: Mapping[str, Any]

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        endpoint = self.straight.get(scope["path"]) if scope["type"] == "http" else None
        if endpoint is None or self.user_middleware or scope.get("root_path"):
            await super().__call__(scope, receive, send)
        else:
            scope["path_params"] = {}
            await endpoint(scope, receive, send)


class _Document:
    """Serves the OpenAPI document."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._body = _encode(service.document).encode()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        try:
            self._service.check_names(dict(scope["headers"]))
            if scope["method"] != "GET":
                raise _no_method(scope["method"], ["GET"])
        except Problem as problem:
            status, headers, answer = answer_to(problem)
            await _send(send, status, _encode(answer).encode(), headers)
        else:
            await _send(send, 200, self._body, {})


class _Endpoint:
    """Serves the operations at one path."""

    def __init__(self, service: Service, methods: Mapping[str, Operation]) -> None:
        self._service = service
        self._methods = methods

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        service = self._service
        started = False
        operation = self._methods.get(scope["method"])
        pool: Any = None
        call: Call | None = None
        began = service.clock()
        service.at_work += 1
        try:
            if operation is None:
                raise _no_method(scope["method"], self._methods)
            headers = dict(scope["headers"])
            pool = await service.admit(operation, headers)
            call = await self._call(operation, pool, scope, headers, receive)
            if operation is EVENTS:
                stream = follow(
                    pool,
                    service.listeners(pool),
                    _since(call),
                    service.limits,
                    functools.partial(service.still_admits, headers),
                )
                chunks = await _first(stream)
                started = True
                await _stream(chunks, receive, send)
            else:
                answer = await operation.serve(call)
                if pool is not None:
                    service.count(pool, operation, service.clock() - began, answer)
                if type(answer) is Text:
                    await _send(send, 200, answer.body, answer.headers)
                else:
                    await _send(send, 200, _encode(answer).encode(), {})
        except Exception as error:
            status, found, answer = answer_to(error)
            if status == 500 and not isinstance(error, StoreError):  # of a store the log has heard by now
                _LOG.error("a request failed: %s", answer["error"]["code"], exc_info=error)
            if started:  # it ends; who asks again is told why
                await send({"type": "http.response.body", "body": b""})
                return
            if pool is not None and operation is not None:
                key = None if call is None else call.key
                service.count_refusal(pool, operation, status, answer["error"]["code"], error, key)
            await _send(send, status, _encode(answer).encode(), found)
        except asyncio.CancelledError:
            if started or not service.draining:
                raise
            _, found, answer = answer_to(_cut_off())
            await _send(send, 503, _encode(answer).encode(), found)
        finally:
            service.at_work -= 1

    async def _call(
        self, operation: Operation, pool: Any, scope: Any, headers: Mapping[bytes, bytes], receive: Any
    ) -> Call:
        limits = self._service.limits
        path = scope["path_params"]
        if path:
            path = {name: read_value(name, text, operation.params[name]) for name, text in path.items()}
        body: Any = None
        query: Any = None
        key: str | None = None
        if operation.query is not None:
            query = read_query(scope["query_string"], operation.query)
        elif scope["query_string"]:
            raise Problem(
                422, "unknown_query", "Nothing is read from the query string here.", "Leave it out."
            )
        if operation.keyed:
            text = headers.get(b"idempotency-key")
            if text is not None:
                if sum(name == b"idempotency-key" for name, _ in scope["headers"]) > 1:
                    raise InvalidRequestError([("Idempotency-Key", "is sent more than once")])
                key = read_value("Idempotency-Key", text.decode("latin-1"), Key)
        if operation.body is not None:
            kind = headers.get(b"content-type", b"").partition(b";")[0].strip().lower()
            if kind != b"application/json":
                raise Problem(
                    415,
                    "not_json",
                    "The body is not declared as JSON.",
                    "Send Content-Type: application/json.",
                )
            length = headers.get(b"content-length", b"0")
            if not length.isdigit() or int(length[:20]) > limits.body:
                raise too_large(limits.body)
            value = parse(await read_body(receive, limits.body, limits.body_s))
            form = operation.body if operation.form_of is None else operation.form_of(value)
            body = structure(value, form)
        return Call(self._service, pool, path, body, query, key, headers)


async def _health(call: Call) -> HealthAnswer:
    """Say whether requests are served.

    With the store away it is 200 all the same: the server lives, and spends from its leases.
    """
    found: HealthAnswer = {"status": "draining" if call.service.draining else "healthy"}
    if call.service.pools.probe is not None:
        found["store"] = "reached" if await call.service.pools.probe.answers() else "away"
    return found


async def _nothing(call: Call) -> None:
    """Serve nothing: the stream is written as it comes."""


EVENTS: Final = Operation(
    name="streamEvents",
    method="GET",
    path="/v1/events",
    summary="The journal as server-sent events, from the line after Last-Event-ID on.",
    scope="read",
    serve=_nothing,
    answer="text/event-stream",
    query=EventsQuery,
    headers={"Last-Event-ID": Amount},
    refusals=(429,),
)


async def _metrics(call: Call) -> Text:
    """Return the counts of the pool."""
    if wants_json(call.headers.get(b"accept", b"")):
        return Text(_encode(call.pool.metrics.counters()).encode(), {"content-type": "application/json"})
    statement = await call.pool.run(call.pool.manager.statement)
    return Text(call.pool.metrics.text(statement), {"content-type": CONTENT_TYPE})


METRICS: Final = Operation(
    name="metrics",
    method="GET",
    path="/metrics",
    summary="What this server has counted of the pool, and its budgets, for Prometheus.",
    scope="read",
    serve=_metrics,
    answer=("text/plain", MetricsAnswer),
)


def _since(call: Call) -> int | None:
    last = call.headers.get(b"last-event-id")
    if last is None:
        since: int | None = call.query.since
        return since
    number: int = read_value("Last-Event-ID", last.decode("latin-1"), Amount)
    return number


# -- what is sent --------------------------------------------------------------------------------------------


async def _send(send: Any, status: int, body: bytes, headers: Mapping[str, str]) -> None:
    kind = () if "content-type" in headers else _JSON_KIND
    every = [*kind, *_HEADERS, (b"content-length", b"%d" % len(body))]
    if headers:
        every += [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": status, "headers": every})
    await send({"type": "http.response.body", "body": body})


async def _first(chunks: AsyncGenerator[bytes]) -> AsyncGenerator[bytes]:
    """Return the chunks, the first of which is there: what is wrong is said before they begin."""
    first = await anext(chunks)

    async def every() -> AsyncGenerator[bytes]:
        try:
            yield first
            async for chunk in chunks:
                yield chunk
        finally:
            await chunks.aclose()

    return every()


async def _stream(chunks: AsyncGenerator[bytes], receive: Any, send: Any) -> None:
    """Send what comes, until the reader leaves; its connection ends if it takes nothing any more."""
    headers = [
        (b"content-type", b"text/event-stream; charset=utf-8"),
        *_HEADERS,
        (b"x-accel-buffering", b"no"),
    ]

    async def write() -> None:
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        async for chunk in chunks:
            await send({"type": "http.response.body", "body": chunk, "more_body": True})
        await send({"type": "http.response.body", "body": b""})

    async def left() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass

    tasks = [asyncio.create_task(write()), asyncio.create_task(left())]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        done = await asyncio.gather(*tasks, return_exceptions=True)
        await chunks.aclose()
    if isinstance(done[0], Exception):
        raise done[0]


def _cut_off() -> Problem:
    return Problem(
        503,
        "cut_off",
        "The server ended while this was at work: it may have been done.",
        "Send it again under its key, which finds the first answer. Without a key look at the books first.",
        retryable=True,
        headers={"retry-after": "1"},
    )


def _no_method(method: str, allowed: Iterable[str]) -> Problem:
    known = ", ".join(sorted(allowed))
    return Problem(
        405,
        "method_not_allowed",
        f"{method} is not served here.",
        f"Use {known}.",
        headers={"allow": known},
    )


async def _not_found(service: Service, request: Request, error: Exception) -> Response:
    problem = Problem(404, "not_found", "Nothing is served at this path.", "See /openapi.json.")
    try:
        service.check_names(dict(request.scope["headers"]))
    except Problem as found:
        problem = found
    status, _, answer = answer_to(problem)
    response = Response(_encode(answer), status, media_type="application/json")
    response.raw_headers += list(_HEADERS)
    return response
