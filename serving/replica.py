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
    Ask,
    Caller,
    ChatAnswer,
    Exposed,
    Prepared,
    Probed,
    ReplicaStatus,
    Route,
    Sampled,
    Scores,
)
from serving.desk import Desk
from serving.meter import Meter
from serving.ports import Engine, Journal
from serving.probe import Probe
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
        self._shelf = Shelf(engine, journal, cache, self.meter, settings)
        self._desk = Desk(engine, journal, self._shelf, self.meter, settings)
        self._trial = Trial(name, engine, self._shelf)
        self._probe = Probe(engine, self._shelf, self.meter)
        self._error: str | None = None  # why it lags behind the route

    async def start(self) -> None:
        """Load what the route names. A replica is ready only after this (DESIGN, section 2).

        Raises where it cannot serve the stable adapter; what else is refused is said in its status.
        """
        await self._shelf.follow(await self._journal.route())
        await self._shelf.tend()

    async def chat(self, body: Any, caller: Caller) -> ChatAnswer:
        """See `Desk.chat`."""
        return await self._desk.chat(body, caller)

    async def close(self) -> None:
        """See `Desk.close`."""
        await self._desk.close()

    def models(self) -> list[str]:
        """What `model` may be: the aliases with an adapter behind them, then full names."""
        return [a for a in ALIASES if self._shelf.route.alias(a) is not None] + sorted(self._shelf.loaded)

    async def prepare(self, files: AdapterFiles) -> Prepared:
        """Phase one of a promotion: verify, load, generate one token. Serving goes on; the route stays."""
        began, error = time.monotonic(), None
        try:
            (await self._shelf.try_out(files)).release()
        except Exception as problem:  # any failure is an answer: the promotion is called off and nothing changed
            log.warning("prepare %s failed: %s", files.name, problem)
            error = f"{type(problem).__name__}: {problem}"
        seconds = time.monotonic() - began
        self.meter.swapped("prepare", seconds, ok=error is None)
        return Prepared(replica=self.name, adapter=files.name, seconds=seconds, error=error)

    async def score(self, files: AdapterFiles, answers: Sequence[Answer]) -> Scores:
        """See `Trial.score`."""
        return await self._trial.score(files, answers)

    async def sample(self, name: str, files: AdapterFiles | None, asks: Sequence[Ask], at_once: int) -> Sampled:
        """See `Trial.sample`."""
        return await self._trial.sample(name, files, asks, at_once)

    async def abandon(self, name: str) -> None:
        """The promotion was called off: free what `prepare` loaded."""
        await self._shelf.abandon(name)

    async def flip(self, route: Route) -> ReplicaStatus:
        """Phase two: from now on new requests follow this route. An older route than ours changes nothing."""
        began, ok = time.monotonic(), False
        try:
            await self._shelf.follow(route)
            ok, self._error = True, None
        finally:
            self.meter.swapped("flip", time.monotonic() - began, ok=ok)
        return self.status()

    async def reconcile(self) -> None:
        """Read the route row and catch up; also frees adapters whose last request has ended."""
        try:
            await self._shelf.follow(await self._journal.route())
            await self._shelf.tend()
            self._error = None
        except Exception as problem:  # keep serving what we have, and say why we lag
            self._error = f"{type(problem).__name__}: {problem}"
            log.warning("replica %s lags behind the route: %s", self.name, self._error)

    def status(self) -> ReplicaStatus:
        route = self._shelf.route
        return ReplicaStatus(
            replica=self.name,
            generation=route.generation,
            stable=route.stable,
            wanted=tuple(sorted(self._shelf.wanted)),
            loaded=tuple(sorted(self._shelf.loaded)),
            in_flight=self._shelf.in_flight,
            error=self._error or self._shelf.trouble,
            waiting=self._desk.waiting,
            unlogged=self._desk.unlogged,
        )

    def metrics(self) -> Exposed:
        """See `Meter.expose`."""
        return Exposed(replica=self.name, text=self.meter.expose(self.status()))

    async def probe(self) -> Probed:
        """See `Probe.look`."""
        return await self._probe.look()

    async def check_health(self) -> None:
        """Raises when the engine is dead."""
        await self._engine.check_health()
