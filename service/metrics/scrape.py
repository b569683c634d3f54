"""One answer to `GET /metrics`: asks the store and all replicas at once, and goes on without whoever is silent."""

from __future__ import annotations

import asyncio
import logging
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

from prometheus_client import CollectorRegistry, generate_latest

from service.errors import Unavailable
from service.metrics import families
from service.metrics.merging import exposition, merged
from service.metrics.refusals import RefusalCount
from service.store.measures import Measures
from service.store.store import Store
from serving.contracts import Exposed, ReplicaStatus
from serving.errors import HostError
from serving.http_meter import HttpMeter

log = logging.getLogger(__name__)

CONDUCTOR = "conductor"  # what the label of the replicas says for this process


class Replicas(Protocol):
    """What is asked of `serving.host.PolicyHost`."""

    async def status(self) -> list[ReplicaStatus]: ...

    async def metrics(self) -> list[Exposed]: ...


class Scrape:
    """One per service, in the Conductor. `http` counts the requests of its own application."""

    def __init__(
        self,
        store: Store,
        replicas: Replicas,
        state: Path,
        free_bytes: Callable[[Path], int] = lambda folder: shutil.disk_usage(folder).free,
    ) -> None:
        self._store = store
        self._replicas = replicas
        self._state = state
        self._free_bytes = free_bytes
        self._registry = CollectorRegistry()
        self.http = HttpMeter(self._registry)
        self.refusals = RefusalCount(store.answers)

    async def text(self) -> str:
        """In Prometheus' text format. Raises nothing for a store or a replica that is away: that is a metric too."""
        ping, measures, statuses, exposed, free = await asyncio.gather(
            self._ping(),
            self._measures(),
            self._statuses(),
            self._exposed(),
            asyncio.to_thread(self._free_bytes, self._state),
        )
        of_service = [
            *families.of_build(),
            *families.of_store(ping, free),
            *(families.of_measures(measures) if measures is not None else ()),
            *families.of_replicas(statuses, measures),
            *self.refusals.families(),
        ]
        texts = {one.replica: one.text for one in exposed} | {CONDUCTOR: generate_latest(self._registry).decode()}
        # Many replicas have thousands of lines, and the loop behind this application has other things to do.
        return await asyncio.to_thread(lambda: exposition([*of_service, *merged(texts)]))

    async def _ping(self) -> float | None:
        """Seconds of a write; None: the store is away."""
        began = time.monotonic()
        try:
            await self._store.ping()
        except Unavailable:
            return None
        return time.monotonic() - began

    async def _measures(self) -> Measures | None:
        try:
            return await self._store.measures.read()
        except Unavailable as error:
            log.warning("metrics without those of the store: %s", error)
            return None

    async def _statuses(self) -> Sequence[ReplicaStatus] | None:
        try:
            return await self._replicas.status()
        except HostError:
            return None

    async def _exposed(self) -> list[Exposed]:
        try:
            return await self._replicas.metrics()
        except HostError as error:
            log.warning("metrics without those of the replicas: %s", error)
            return []
