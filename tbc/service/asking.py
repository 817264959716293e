"""The tier policy in a process of its own, asked over HTTP.

It fails closed: if that process does not answer in time, or with another policy than this one has, nothing is
chosen and nothing is called. There is no choice of this process in its place, so that the rules which an
operator has put there are never passed by.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Final

import attrs

from tbc.errors import InvalidContractError, InvalidRequestError, TBCError
from tbc.policy import TierChoice
from tbc.run_errors import PolicyAwayError, PolicyDiffersError
from tbc.service.tiers import FlatQuestion, Judged, Tiers

if TYPE_CHECKING:
    import httpx

__all__ = ["PolicyProcess"]

_PATH: Final = "/policy/evaluate"


class PolicyProcess:
    """Where the policy is.

    Parameters
    ----------
    where : str
        Its address, such as ``http://policy:8787``.
    token : str, optional
        The bearer token that it asks for, with the scope ``read``.
    timeout_s : float
        Seconds for an answer.
    transport : httpx.AsyncBaseTransport, optional
        How it is reached. Default: over the network.
    """

    def __init__(
        self,
        where: str,
        token: str | None = None,
        *,
        timeout_s: float = 2.0,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        if not where.startswith(("http://", "https://")):
            raise InvalidContractError("--policy-url must begin with http:// or https://")
        if "@" in where or "?" in where:
            raise InvalidContractError(
                "--policy-url must be an address alone: give the token in TBC_POLICY_TOKEN"
            )
        self._where = where.rstrip("/")
        self._headers = {} if not token else {"Authorization": f"Bearer {token}"}
        self._timeout_s = timeout_s
        self._transport = transport
        self._client: httpx.AsyncClient | None = None

    async def judge(self, tiers: Tiers, asked: FlatQuestion) -> Judged:
        """Return what the policy chooses, beside what the step would have got without limits.

        Raises
        ------
        PolicyAwayError
            It does not answer in time, or not with a choice.
        PolicyDiffersError
            It has another policy than `tiers`: what it chose could not be priced here.
        InvalidRequestError
            It says that the question cannot be meant.
        """
        question = attrs.asdict(attrs.evolve(asked, observed_ms={**tiers.observed(), **asked.observed_ms}))
        try:
            async with asyncio.timeout(self._timeout_s):
                answer = await self._ask(question)
        except TimeoutError:
            raise self._away(f"there was no answer within {self._timeout_s:g} s") from None
        choice = self._read(answer)
        if choice.policy_version != tiers.policy.version:
            raise PolicyDiffersError(choice.policy_version, tiers.policy.version)
        return tiers.beside(asked, choice)

    async def _ask(self, question: dict[str, Any]) -> httpx.Response:
        import httpx

        if self._client is None:
            # Why no environment: a proxy for the way out is none for the process beside.
            self._client = httpx.AsyncClient(
                headers=self._headers, transport=self._transport, trust_env=False, timeout=None
            )
        where = self._where + _PATH
        try:
            try:
                return await self._client.post(where, json=question)
            except (httpx.RemoteProtocolError, httpx.ReadError):  # a connection that had been left open
                return await self._client.post(where, json=question)
        except httpx.HTTPError as error:
            raise self._away(
                f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
            ) from None

    def _read(self, answer: httpx.Response) -> TierChoice:
        try:
            said = answer.json()
            if answer.status_code == 422:
                raise InvalidRequestError([("", said["error"]["message"])])
            if answer.status_code != 200:
                raise self._away(f"it answered {answer.status_code}")
            decision = said["decision"]
            hard_stop, tier = decision["hard_stop"], decision["selected_model_tier"]
            return TierChoice(
                tier=None if hard_stop else tier,
                model=said["model"],
                hard_stop=hard_stop,
                cause=said["cause"],
                reason=said["reason"],
                policy_version=said["policy_version"],
                expected_cost=said["expected_cost"],
                expected_latency_ms=said["expected_latency_ms"],
                rule=None,
                wanted=said["wanted_tier"],
            )
        except TBCError:
            raise
        except (ValueError, KeyError, TypeError, AttributeError):
            raise self._away(f"it answered {answer.status_code}, and no choice") from None

    def _away(self, reason: str) -> PolicyAwayError:
        return PolicyAwayError(self._where, reason)

    async def aclose(self) -> None:
        """Close its connections."""
        client, self._client = self._client, None
        if client is not None:
            await client.aclose()
