"""What can be wrong with a request before the books are asked; rendered like every other error."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tbc.error_codes import code_of, error_object
from tbc.service.answers import ErrorAnswer

__all__ = ["Problem", "answer_to"]


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


def answer_to(error: BaseException) -> tuple[int, dict[str, str], ErrorAnswer]:
    """Return status, headers and body of the answer to an error."""
    if isinstance(error, Problem):
        return error.status, error.headers, {"error": error.as_object()}  # type: ignore[typeddict-item]
    found = error_object(error)
    status = code_of(error).status
    headers = {"retry-after": "1"} if found["retryable"] and status == 503 else {}
    return status, headers, {"error": found}  # type: ignore[typeddict-item]
