"""What can be wrong with a request before the books are asked; rendered like every other error."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any, Final

from tbc import errors
from tbc.clock import system_clock
from tbc.error_codes import code_of, error_object
from tbc.run_errors import PolicyAwayError
from tbc.service.answers import ErrorAnswer

__all__ = ["Problem", "answer_to", "pool_differs", "said_of"]

_LOG: Final = logging.getLogger("tbc.service")
#: What is said of what lies behind the server: where that is and who asks it is nobody's business but the
#: operator's, whom the log tells.
_BEHIND: Final[dict[type[BaseException], str]] = {
    errors.StoreError: "The store cannot be used, or not like this.",
    errors.StoreAwayError: "The store cannot be reached.",
    errors.StoreBusyError: "Others kept the store locked for too long.",
    errors.StoreFullError: "The store has no room.",
    errors.StoreUnknownError: "The connection to the store broke while it was written to.",
}
#: Seconds until the same is logged again.
_QUIET_S: Final = 10.0


class Problem(Exception):
    """A request that is not served.

    Parameters
    ----------
    status : int
        Of HTTP.
    code : str
        Its name; never changed once released.
    message, hint : str
        What is wrong, and what would make it pass.
    retryable : bool
        Whether the very same request may be sent again, and can pass then.
    headers : mapping of str to str
        What the answer says besides.
    """

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        hint: str,
        *,
        retryable: bool = False,
        headers: Mapping[str, str] | None = None,
        details: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.hint = hint
        self.retryable = retryable
        self.headers = dict(headers or {})
        self.details = dict(details or {})

    def as_object(self) -> dict[str, Any]:
        """Return it as one plain JSON object, as `tbc.error_codes.error_object` does."""
        return {
            "code": self.code,
            "message": str(self),
            "hint": self.hint,
            "retryable": self.retryable,
            "details": self.details,
        }


class _Last:
    """What was logged last: what lies behind the server fails for every request alike."""

    text = ""
    until = 0.0


def said_of(error: BaseException) -> str:
    """Return what clients are told of an error of `tbc`; the log has the rest."""
    if isinstance(error, PolicyAwayError):
        found = f"The policy process did not answer: {error.reason}. Nothing was done."
    elif isinstance(error, errors.StoreError):
        found = next(_BEHIND[kind] for kind in type(error).__mro__ if kind in _BEHIND)
    else:
        return str(error)
    _log(code_of(error).code, str(error))
    return found


def _log(code: str, text: str) -> None:
    now = system_clock()
    if text != _Last.text or now >= _Last.until:
        _Last.text, _Last.until = text, now + _QUIET_S
        _LOG.error("%s: %s", code, text)


def pool_differs(error: errors.InvalidContractError) -> Problem:
    """Return what is answered for a pool that has other terms than the server; the log has them."""
    _log("pool_differs", str(error))
    return Problem(
        503,
        "pool_differs",
        "The pool has other terms than this server was started with: it is not served.",
        "An operator has to start it with the terms of the pool, or with none; its log says which differ.",
    )


def answer_to(error: BaseException) -> tuple[int, dict[str, str], ErrorAnswer]:
    """Return status, headers and body of the answer to an error."""
    if isinstance(error, Problem):
        return error.status, error.headers, {"error": error.as_object()}  # type: ignore[typeddict-item]
    found = error_object(error)
    if isinstance(error, errors.StoreError | PolicyAwayError):
        found |= {"message": said_of(error), "details": {}}
    status = code_of(error).status
    headers = {"retry-after": "1"} if found["retryable"] else {}
    return status, headers, {"error": found}  # type: ignore[typeddict-item]
