"""One replica of the policy: answers chats, and follows the route row from swap to swap. No Ray, no vLLM.

Last of the seven files of a thumbs-up: `service/registry.py` published an adapter and changed the route; here the
next request is answered by it. The requests that began before finish on the adapter they began with.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from serving.contracts import (
    BASE,
    AdapterFiles,
    Answer,
    Caller,
    ChatAnswer,
    Engine,
    Journal,
    Prepared,
    ReplicaStatus,
    Route,
    Scores,
)
from serving.desk import Desk
from serving.meter import Meter
from serving.settings import ServingSettings
from serving.shelf import Shelf
from serving.trial import Trial

log = logging.getLogger(__name__)

ALIASES = ("policy", "policy@stable", "policy@previous", "policy@candidate", BASE)


class Replica:
    """What `deployment.py` puts around an engine: a desk for requests, a shelf of adapters, a meter for both."""

    def __init__(self, name: str, engine: Engine, journal: Journal, cache: Path, settings: ServingSettings) -> None:
        self.name = name
        self.meter = Meter(name)
        self._engine = engine
        self._journal = journal
        self._shelf = Shelf(engine, journal, cache, self.meter, max_lora_rank=settings.max_lora_rank)
        self._desk = Desk(engine, journal, self._shelf, self.meter, settings)
        self._trial = Trial(name, engine, self._shelf)
        self._error: str | None = None  # why it lags behind the route

    async def start(self) -> None:
        """Load what the route names. A replica is ready only after this (DESIGN, section 2)."""
        await self._shelf.follow(await self._journal.route())

    async def chat(self, body: Any, caller: Caller) -> ChatAnswer:
        """See `Desk.chat`."""
        return await self._desk.chat(body, caller)

    def models(self) -> list[str]:
        """What `model` may be: the aliases with an adapter behind them, then full names."""
        return [a for a in ALIASES if self._shelf.route.alias(a) is not None] + sorted(self._shelf.loaded)

    async def prepare(self, name: str) -> Prepared:
        """Phase one of a promotion: verify, load, generate one token. Serving goes on; the route stays."""
        began, error = time.monotonic(), None
        try:
            (await self._shelf.try_out(name)).release()
        except Exception as problem:  # any failure is an answer: the promotion is called off and nothing changed
            log.warning("prepare %s failed: %s", name, problem)
            error = f"{type(problem).__name__}: {problem}"
        seconds = time.monotonic() - began
        self.meter.swapped("prepare", seconds, ok=error is None)
        return Prepared(replica=self.name, adapter=name, seconds=seconds, error=error)

    async def score(self, files: AdapterFiles, answers: Sequence[Answer]) -> Scores:
        """See `Trial.score`."""
        return await self._trial.score(files, answers)

    async def abandon(self, name: str) -> None:
        """The promotion was called off: free what `prepare` loaded."""
        await self._shelf.abandon(name)

    async def flip(self, route: Route) -> ReplicaStatus:
        """Phase two: from now on new requests follow this route. An older route than ours changes nothing."""
        began = time.monotonic()
        await self._follow(route)
        self.meter.swapped("flip", time.monotonic() - began, ok=True)
        return self.status()

    async def reconcile(self) -> None:
        """Read the route row and catch up; also frees adapters whose last request has ended."""
        try:
            await self._follow(await self._journal.route())
        except Exception as problem:  # keep serving what we have, and say why we lag
            self._error = f"{type(problem).__name__}: {problem}"
            log.warning("replica %s lags behind the route: %s", self.name, self._error)

    async def _follow(self, route: Route) -> None:
        await self._shelf.follow(route)
        self._error = None

    def status(self) -> ReplicaStatus:
        route = self._shelf.route
        return ReplicaStatus(
            replica=self.name,
            generation=route.generation,
            stable=route.stable,
            wanted=tuple(sorted(route.wanted())),
            loaded=tuple(sorted(self._shelf.loaded)),
            in_flight=self._shelf.in_flight,
            error=self._error,
            unlogged=self._desk.unlogged,
        )

    async def check_health(self) -> None:
        """Raises when the engine is dead."""
        await self._engine.check_health()
