"""Ready or not, and what is amiss: looks at engine, store and route, all at once, and remembers for a moment.

Not ready is not dead. A store that is away makes the service unready, or a replica merely degraded; it never is a
reason to restart an engine, and so `/healthz` knows nothing of it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from functools import partial
from typing import Protocol

from service.errors import HeliotropeError
from service.store.database import newest_schema
from service.store.store import Store
from serving.contracts import BASE, Probed, ReplicaStatus
from serving.errors import HostError

OK = "ok"
LONGEST_SECONDS = 5.0  # that a look may take; whoever asks has no more patience either
FRESH_SECONDS = 1.0  # for so long what was seen is told again: anybody may ask, and each look costs a write

Look = Callable[[], Awaitable[str | None]]  # why not; None: all is well


class Host(Protocol):
    """All replicas: what is asked of `serving.host.PolicyHost`."""

    async def status(self) -> list[ReplicaStatus]: ...

    async def probe(self) -> list[Probed]: ...


class OneReplica(Protocol):
    """What is asked of `serving.replica.Replica`."""

    def status(self) -> ReplicaStatus: ...

    async def probe(self) -> Probed: ...


@dataclass(frozen=True)
class Health:
    ready: bool
    checks: Mapping[str, str]  # name -> OK, or what is amiss

    @property
    def degraded(self) -> bool:
        """It answers, and something is amiss all the same."""
        return self.ready and any(said != OK for said in self.checks.values())


class Readiness:
    """Looks at several things; `needed` are those without which it is not ready."""

    def __init__(
        self,
        looks: Mapping[str, Look],
        needed: AbstractSet[str],
        *,
        fresh_seconds: float = FRESH_SECONDS,
        longest_seconds: float = LONGEST_SECONDS,
    ) -> None:
        assert needed <= looks.keys()
        self._looks = looks
        self._needed = needed
        self._fresh_seconds = fresh_seconds
        self._longest_seconds = longest_seconds
        self._looking = asyncio.Lock()
        self._last: Health | None = None  # None: nobody has asked yet
        self._looked_at = 0.0  # in `time.monotonic` seconds

    async def look(self) -> Health:
        async with self._looking:  # those who ask meanwhile share the answer
            if self._last is None or time.monotonic() - self._looked_at > self._fresh_seconds:
                said = await asyncio.gather(*(_said(look, self._longest_seconds) for look in self._looks.values()))
                checks = dict(zip(self._looks, said, strict=True))
                self._last = Health(all(checks[name] == OK for name in self._needed), checks)
                self._looked_at = time.monotonic()
            return self._last


def of_service(store: Store, host: Host, *, fresh_seconds: float = FRESH_SECONDS) -> Readiness:
    """Ready: every replica gets tokens from its engine and serves what the route row says, and votes can be kept."""
    looks: dict[str, Look] = {
        "store": partial(_store_fault, store),
        "schema": partial(_schema_fault, store),
        "engine": partial(_engine_fault, host),
        "route": partial(_route_fault, store, host),
    }
    return Readiness(looks, looks.keys(), fresh_seconds=fresh_seconds)


def of_replica(
    replica: OneReplica, store: Store, *, needs_store: bool, fresh_seconds: float = FRESH_SECONDS
) -> Readiness:
    """Ready: it can answer. It does so by the adapter before, too: were each that lags taken out, nobody would answer."""

    async def engine_fault() -> str | None:
        return (await replica.probe()).error

    async def route_fault() -> str | None:
        wanted, status = await store.route.read(), replica.status()
        if status.generation >= wanted.generation:
            return None
        return f"it serves generation {status.generation}, not {wanted.generation}: {status.error or 'not yet'}"

    looks: dict[str, Look] = {"store": partial(_store_fault, store), "engine": engine_fault, "route": route_fault}
    needed = {"engine", "store"} if needs_store else {"engine"}
    return Readiness(looks, needed, fresh_seconds=fresh_seconds)


async def _said(look: Look, longest_seconds: float) -> str:
    try:
        async with asyncio.timeout(longest_seconds):
            return await look() or OK
    except TimeoutError:
        return f"no answer within {longest_seconds:g} s"
    except HeliotropeError as error:
        return error.message
    except HostError as error:
        return str(error)


async def _store_fault(store: Store) -> str | None:
    """A real write, taken back."""
    await store.ping()
    return None


async def _schema_fault(store: Store) -> str | None:
    found, known = await store.schema(), newest_schema()
    return (
        None if found == known else f"the database has the schema {found}, and this version needs {known}: restart it"
    )


async def _engine_fault(host: Host) -> str | None:
    probed = await host.probe()
    silent = [f"replica {one.replica}: {one.error}" for one in probed if one.error]
    return "; ".join(silent) if silent else (None if probed else "no replica is running")


async def _route_fault(store: Store, host: Host) -> str | None:
    route, replicas = await store.route.read(), await host.status()
    if not replicas:
        return "no replica is running"
    lagging = [replica.replica for replica in replicas if replica.generation < route.generation]
    if lagging:
        return f"replicas lag behind the route: {', '.join(lagging)}"
    without = [r.replica for r in replicas if r.stable != BASE and r.stable not in r.loaded]
    return f"replicas do not hold what they serve: {', '.join(without)}" if without else None
