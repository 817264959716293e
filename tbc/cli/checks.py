"""Numbers on the command line that would be noticed too late, or by somebody else."""

from __future__ import annotations

from tbc.errors import InvalidAmountError

__all__ = ["check_port", "check_within"]


def check_port(port: int) -> int:
    """Return a port that can be listened at; 0: any that is free.

    Raises
    ------
    InvalidAmountError
        If it is none.
    """
    if not 0 <= port <= 65_535:
        raise InvalidAmountError("--port", port, "from 0 to 65535")
    return port


def check_within(name: str, value: float, least: float, most: float, unit: str) -> float:
    """Return a number that lies between two others, both included.

    Raises
    ------
    InvalidAmountError
        If it does not; NaN never does.

    Examples
    --------
    >>> check_within("--grace-s", 10, 0, 3_600, "seconds")
    10
    """
    if not least <= value <= most:
        raise InvalidAmountError(name, value, f"{unit} from {least:g} to {most:,g}")
    return value
