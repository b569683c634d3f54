"""A circuit breaker: once a connection has failed, nobody else waits for one until a probe has come through.

So an outage costs a request microseconds and not the time that a connection takes to fail. Knows no database.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable

from service.errors import Unavailable

FIRST_PAUSE_SECONDS = 0.1  # before the first probe; each further pause is twice as long
LONGEST_PAUSE_SECONDS = 1.0  # so this soon after the outage everything works again


class Breaker:
    """Closed: calls go through. Open: they are refused, while a task probes. Use it in one event loop only."""

    def __init__(self, probe: Callable[[], Awaitable[object]]) -> None:
        self._probe = probe  # raises `Unavailable` as long as the outage lasts
        self._probing: asyncio.Task[None] | None = None
        self._refusal = Unavailable("")

    @property
    def open(self) -> bool:
        return self._probing is not None and not self._probing.done()

    def check(self) -> None:
        """Raises the `Unavailable` that opened it, while it is open."""
        if self.open:
            raise Unavailable(self._refusal.message, code=self._refusal.code)

    def trip(self, refusal: Unavailable) -> None:
        """Opens it until a probe comes through. Nothing changes when it is open already."""
        if not self.open:
            self._refusal = refusal
            self._probing = asyncio.create_task(self._probe_until_it_answers())

    async def close(self) -> None:
        """Ends the probing; nobody asks any more."""
        if self._probing is not None:
            self._probing.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._probing

    async def _probe_until_it_answers(self) -> None:
        pause_seconds = FIRST_PAUSE_SECONDS
        while True:
            await asyncio.sleep(pause_seconds)
            with contextlib.suppress(Unavailable):
                await self._probe()
                return
            pause_seconds = min(2 * pause_seconds, LONGEST_PAUSE_SECONDS)
