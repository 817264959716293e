"""``tbc serve``: the ledger over HTTP."""

from __future__ import annotations

import ssl
import sys
from collections.abc import Callable
from typing import Annotated, Any, Literal

from cyclopts import Parameter

from tbc import BudgetManager, Lease
from tbc.cli.checks import check_port, check_within
from tbc.clock import EPOCH, system_clock
from tbc.errors import InvalidContractError
from tbc.policy import load_policy
from tbc.service import Limits, Pools, Service
from tbc.service.asking import PolicyProcess
from tbc.service.bearers import Bearers, TokenFile
from tbc.service.door import is_loopback
from tbc.service.executors import resolve
from tbc.service.problems import Problem
from tbc.service.roles import Role
from tbc.service.server import serve as run

__all__ = ["serve"]


def serve(
    *,
    host: str = "127.0.0.1",
    port: int = 8787,
    store: Annotated[str | None, Parameter(env_var="TBC_STORE")] = None,
    pool: str = "default",
    tokens: Annotated[str | None, Parameter(env_var="TBC_TOKENS")] = None,
    certificate: str | None = None,
    private_key: str | None = None,
    behind_proxy: Annotated[bool, Parameter(negative="")] = False,
    max_tokens: int | None = None,
    max_usd: str | None = None,
    max_calls: int | None = None,
    mode: Literal["enforce", "audit"] = "enforce",
    unknown_price: str = "refuse",
    policy: str | None = None,
    executor: str | None = None,
    role: Literal["both", "policy", "executor"] = "both",
    policy_url: Annotated[str | None, Parameter(env_var="TBC_POLICY_URL")] = None,
    policy_token: Annotated[str | None, Parameter(env_var="TBC_POLICY_TOKEN")] = None,
    policy_timeout_s: float = 2.0,
    lease: float | None = None,
    lease_seconds: float = 30.0,
    rate: float | None = 1_000.0,
    open_holds: int = 10_000,
    grace_s: float = 10.0,
    otel: Annotated[bool, Parameter(env_var="TBC_OTEL")] = False,
) -> int:
    """Serve the ledger over HTTP until SIGTERM; docs/service.md shows what is served.

    Parameters
    ----------
    host
        The address to listen at. One that other machines reach needs --tokens, and --certificate or
        --behind-proxy.
    port
        The port; 0 takes any that is free.
    store
        Where the books are kept: sqlite:///FILE or postgresql://... Without one they die with the process. A
        URL with a password in it is better given as TBC_STORE.
    pool
        The pool that is served where no tokens are asked for. It is opened at the start.
    tokens
        The file of the bearer tokens that are asked for, as tbc token makes them. Each says its pool.
    certificate
        The file of the server's certificate and those that vouch for it (PEM): it speaks https.
    private_key
        The file of the certificate's key (PEM, without a password).
    behind_proxy
        Speak plain http where other machines reach it: something before it encrypts.
    max_tokens
        The cap in tokens of a pool that is new. With another than it has in the store the server does not
        start or, with tokens, does not serve it.
    max_usd
        The same in dollars.
    max_calls
        The same in calls.
    mode
        "audit" refuses nothing, and says what would have been.
    unknown_price
        What happens to a call without a known price where dollars are capped: "refuse", "track", dollars per
        million tokens, or the name of a model.
    policy
        A file with the tier policy, as docs/policy.md describes it. Default: the one that comes with tbc.
    executor
        The Python callable that carries the steps of runs out, as package.module:function. Default: they are
        simulated.
    role
        "policy" serves the tier policy alone, "executor" everything but that: its runs ask the policy process
        at --policy-url.
    policy_url
        Where the policy process is.
    policy_token
        The token that it asks for. Better given as TBC_POLICY_TOKEN.
    policy_timeout_s
        Seconds that it has to answer. If it does not, nothing is chosen and nothing is called.
    lease
        Spend from leases, each of this share of what an agent has free, at the speed of memory.
    lease_seconds
        For how long they are.
    rate
        Requests a second that one token may send.
    open_holds
        How many holds of a pool may be open.
    grace_s
        Seconds that calls in flight have to finish at the end.
    otel
        Tell OpenTelemetry of budgets; docs/telemetry.md says how to run it.
    """
    check_port(port)
    check_within("--grace-s", grace_s, 0, 3_600, "seconds")
    check_within("--policy-timeout-s", policy_timeout_s, 0.001, 3_600, "seconds")
    process = _policy_process(role, policy_url, policy_token, policy_timeout_s)
    if role == "policy":
        _check_alone(store=store, lease=lease, executor=executor)
    terms = {
        "max_tokens": max_tokens,
        "max_usd": max_usd,
        "max_calls": max_calls,
        "mode": mode,
        "unknown_price": _price(unknown_price),
    }
    BudgetManager(pool=pool, **terms)  # what is wrong with them is said now, not to clients
    encrypted = _certificate(certificate, private_key)
    if not is_loopback(host):
        _check_closed(host, tokens, encrypted=encrypted is not None or behind_proxy)
    bearers = None if tokens is None else Bearers(TokenFile(tokens), lambda: EPOCH + system_clock())
    pools = _pools(store, terms, lease, lease_seconds, _instrument if _checked(otel) else None)
    limits = Limits(rate=rate, open_holds=open_holds)
    service = Service(
        pools,
        pool=pool,
        limits=limits,
        bearers=bearers,
        here_only=is_loopback(host),
        policy=None if policy is None else load_policy(policy),
        executor=None if executor is None else resolve(executor),
        role=role,
        policy_process=process,
    )
    if role == "policy":
        _check_prices(service)
    if bearers is None:
        pools.open_now(pool)
    what = f"pool {pool!r}" if bearers is None else "the pools of its tokens"
    kept = "in memory" if store is None else "in a store"
    served = "the tier policy" if role == "policy" else f"{what}, {kept},"
    run(
        service,
        host,
        port,
        grace_s=grace_s,
        started=lambda where: print(f"tbc serves {served} at {where}", flush=True),
        goodbye="tbc has stopped",
        certificate=encrypted,
    )
    return 0


def _policy_process(
    role: Role, where: str | None, token: str | None, timeout_s: float
) -> PolicyProcess | None:
    """Return the process that chooses for the steps of runs, if it is another one."""
    if role == "executor":
        if where is None:
            raise InvalidContractError("--role executor needs --policy-url, where the policy process is")
        return PolicyProcess(where, token, timeout_s=timeout_s)
    if where is not None:
        raise InvalidContractError(f"--policy-url is for --role executor, not for --role {role}")
    return None


def _check_prices(service: Service) -> None:
    """Refuse to serve a policy that can choose nothing."""
    try:
        _ = service.tier_policy
    except Problem as problem:
        raise InvalidContractError(f"{problem} {problem.hint}") from None


def _check_alone(**given: object) -> None:
    """Refuse what a policy process has no use for."""
    found = [f"--{name}" for name, value in given.items() if value is not None]
    if found:
        raise InvalidContractError(f"--role policy keeps no books: leave out {', '.join(found)}")


def _check_closed(host: str, tokens: str | None, *, encrypted: bool) -> None:
    """Refuse to serve other machines if anybody may ask, or listen."""
    needs = []
    if tokens is None:
        needs.append("--tokens FILE (see tbc token create)")
    if not encrypted:
        needs.append(
            "--certificate FILE with --private-key FILE, or --behind-proxy if something before it encrypts"
        )
    if needs:
        raise InvalidContractError(
            f"--host {host}: other machines reach it, so it needs {'; and '.join(needs)}"
        )


def _certificate(certificate: str | None, private_key: str | None) -> tuple[str, str] | None:
    """Return the files of the certificate and its key, which can be used."""
    if certificate is None and private_key is None:
        return None
    if certificate is None or private_key is None:
        raise InvalidContractError("--certificate and --private-key need each other")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        context.load_cert_chain(certificate, private_key, password="")  # nobody is asked for one
    except (OSError, ValueError) as error:
        raise InvalidContractError(
            f"--certificate {certificate}, --private-key {private_key}: they cannot be used ({error})"
        ) from None
    return certificate, private_key


def _checked(otel: bool) -> bool:
    """Return whether telemetry is wanted; say so if it would go nowhere."""
    if otel:
        from tbc.telemetry import is_set_up

        if not is_set_up():
            print(
                "--otel: no SDK is set up, so nothing is exported. Run: opentelemetry-instrument tbc serve",
                file=sys.stderr,
            )
    return otel


def _instrument(manager: Any, pool: str) -> None:
    from tbc.telemetry import instrument

    instrument(manager, pool=pool)


def _pools(
    store: str | None,
    terms: dict[str, Any],
    lease: float | None,
    lease_seconds: float,
    opened_one: Callable[[Any, str], None] | None,
) -> Pools:
    """Return the books that the arguments name; `opened_one` is told of each manager and its pool."""
    if lease is not None and store is None:
        raise InvalidContractError("--lease needs a --store to lease from")
    how: dict[str, Any] = dict(terms)
    opened = None
    if store is not None:
        from tbc.stores.opening import open_store

        opened = how["store"] = open_store(store)
    if lease is not None:
        how["lease"] = Lease(share=lease, seconds=lease_seconds)

    def make(name: str) -> Any:
        manager = BudgetManager(pool=name, **how)
        if opened_one is not None:
            opened_one(manager, name)
        return manager

    return Pools(make, opened)


def _price(text: str) -> Any:
    from decimal import Decimal, InvalidOperation

    try:
        return Decimal(text)
    except InvalidOperation:
        return text
