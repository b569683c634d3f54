"""Can this replica still answer? Whoever got a token a moment ago proves it; else one is generated for the purpose.

Asked as often as anybody likes, it disturbs the engine no more than once every few seconds, and a busy engine never:
there a token for nobody would wait behind those that people wait for.
"""

from __future__ import annotations

import asyncio
import time

from serving.contracts import Probed
from serving.meter import Meter
from serving.ports import Engine
from serving.shelf import Shelf

SECONDS_BETWEEN = 5.0
PATIENCE_SECONDS = 10.0  # for one token of an idle engine
STICKY = "probe"  # names an adapter outright, so no draw depends on it


class Probe:
    """One per replica."""

    def __init__(
        self, engine: Engine, shelf: Shelf, meter: Meter, *, patience_seconds: float = PATIENCE_SECONDS
    ) -> None:
        self._engine = engine
        self._shelf = shelf
        self._meter = meter
        self._patience_seconds = patience_seconds
        self._looking = asyncio.Lock()
        self._last: Probed | None = None  # None: nobody has asked yet
        self._looked_at = 0.0  # in `time.monotonic` seconds

    async def look(self) -> Probed:
        """Never older than `SECONDS_BETWEEN`. An engine that fails is an answer, not an error."""
        async with self._looking:
            now = time.monotonic()
            if now - self._meter.last_token_at <= SECONDS_BETWEEN:
                return Probed(replica=self._meter.replica, seconds=0.0)
            if self._last is None or now - self._looked_at > SECONDS_BETWEEN:
                self._last = await self._generate()
                self._looked_at = time.monotonic()
            return self._last

    async def _generate(self) -> Probed:
        began, error = time.monotonic(), None
        try:
            pin = await self._shelf.pin("policy@stable", STICKY)
            try:
                async with asyncio.timeout(self._patience_seconds):
                    await self._engine.warm_up(pin.adapter)
            finally:
                pin.release()
        except TimeoutError:
            error = f"no token came within {self._patience_seconds:g} s"
        except Exception as problem:  # whatever it is, this replica cannot answer
            error = f"{type(problem).__name__}: {problem}"
        return Probed(replica=self._meter.replica, seconds=time.monotonic() - began, error=error)
