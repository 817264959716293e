"""Whether what lies behind the server answers: asked once a second, however often that is looked at."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Final

from tbc.clock import Clock, system_clock
from tbc.errors import StoreError

__all__ = ["Probe"]

_LOG: Final = logging.getLogger("tbc.service")


class Probe:
    """One question that is asked again when its answer is old; nobody waits long for it.

    Parameters
    ----------
    ask : callable
        Asks, in a thread. It raises if there is no answer.
    every_s : float
        For how long an answer is good.
    wait_s : float
        How long to wait for one; if none comes, that is taken for none.
    clock : callable
        Seconds, never going back.
    """

    def __init__(
        self,
        ask: Callable[[], object],
        *,
        every_s: float = 1.0,
        wait_s: float = 1.0,
        clock: Clock = system_clock,
    ) -> None:
        self._ask = ask
        self._every_s, self._wait_s, self._clock = every_s, wait_s, clock
        self._asking: asyncio.Task[None] | None = None
        self._answered = False
        self._good_until = float("-inf")

    async def answers(self) -> bool:
        """Return whether there was an answer lately."""
        if self._asking is None and self._clock() >= self._good_until:
            self._asking = asyncio.create_task(self._look())
        asking = self._asking
        if asking is None:
            return self._answered
        await asyncio.wait([asking], timeout=self._wait_s)
        return self._answered and asking.done()

    async def _look(self) -> None:
        try:
            await asyncio.to_thread(self._ask)
            self._answered = True
        except StoreError:
            self._answered = False
        except Exception:
            self._answered = False
            _LOG.exception("the store could not be asked")
        finally:
            self._good_until = self._clock() + self._every_s
            self._asking = None
