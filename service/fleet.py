"""All replicas of the policy, as the service speaks with them: the port, and what their refusals mean to an operator."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Protocol

from service.errors import AdapterRejected, Unavailable
from serving.contracts import AdapterFiles, Answer, Ask, Prepared, ReplicaStatus, Route, Sampled, Scores
from serving.errors import AdapterRefused, HostAbsent, HostError

log = logging.getLogger(__name__)

REPLICA_LOST = "replica_lost"  # code of `Unavailable`: a replica that was asked died or is silent
PATIENCE_SECONDS = 2.0  # with replicas that are asked what they hold; a rollback does not wait for a silent one


class Host(Protocol):
    """All replicas of the policy; `serving.host.PolicyHost` in a cluster."""

    async def prepare(self, files: AdapterFiles) -> list[Prepared]:
        """Every running replica holds the adapter when this returns. Raises `HostError` when one does not."""
        ...

    async def score(self, files: AdapterFiles, answers: Sequence[Answer]) -> Scores:
        """What one replica says of the answers under an adapter that need not be published.

        Raises `AdapterRefused` for what is wrong with the adapter, `HostAbsent` where none can be asked now, and
        `HostError` where the one that was asked died or is silent.
        """
        ...

    async def sample(self, name: str, files: AdapterFiles | None, asks: Sequence[Ask], at_once: int) -> Sampled:
        """What one replica answers under a candidate, whose files are given, or what it serves. Raises as `score`."""
        ...

    async def abandon(self, name: str) -> None: ...

    async def flip(self, route: Route) -> list[ReplicaStatus]: ...

    async def reached(self) -> list[ReplicaStatus]:
        """What those say whom a broadcast reaches; a replica that comes later holds what the route names then."""
        ...


class Fleet:
    """One per service, in the Conductor."""

    def __init__(self, host: Host) -> None:
        self._host = host

    async def holds(self, name: str) -> bool | None:
        """Whether every replica holds the adapter, which the route names; None: they cannot say."""
        try:
            replicas = await asyncio.wait_for(self._host.reached(), PATIENCE_SECONDS)
        except (HostError, TimeoutError):
            return None
        return bool(replicas) and all(name in replica.loaded for replica in replicas)

    async def prepare(self, *adapters: AdapterFiles) -> None:
        """Every replica holds them when this returns; none holds one for it when it raises.

        Raises `AdapterRejected`, and `Unavailable` while no replica runs.
        """
        async with self.trying(*(files.name for files in adapters)):
            for files in adapters:
                await self._host.prepare(files)

    async def score(self, files: AdapterFiles, answers: Sequence[Answer]) -> Scores:
        """Raises `AdapterRejected` where a replica refuses the adapter, and `Unavailable` where nobody could say."""
        async with self._asking(files.name):
            return await self._host.score(files, answers)

    async def sample(self, name: str, files: AdapterFiles | None, asks: Sequence[Ask], at_once: int) -> Sampled:
        """Raises what `score` raises."""
        async with self._asking(*() if files is None else (name,)):
            return await self._host.sample(name, files, asks, at_once)

    async def flip(self, route: Route) -> None:
        """The row is the truth and every replica reads it; this only makes it quick."""
        try:
            await self._host.flip(route)
        except Exception as error:
            log.warning("the flip to generation %d did not reach every replica, they will poll: %s",
                        route.generation, error)  # fmt: skip

    async def abandon(self, *names: str) -> None:
        """A replica that does not hear of it frees the adapter after a while, or when it needs the place."""
        for name in names:
            try:
                await self._host.abandon(name)
            except Exception as error:  # the caller has a better reason to tell of
                log.warning("not every replica heard that %s is abandoned: %s", name, error)

    @asynccontextmanager
    async def trying(self, *names: str) -> AsyncIterator[None]:
        """Whatever goes wrong while adapters are verified and loaded: called off, and the route is unchanged."""
        try:
            yield
        except AdapterRefused as refusal:
            raise AdapterRejected(f"{refusal}. The route is unchanged.", code="adapter_rejected") from refusal
        except HostAbsent as absent:
            raise _absent(absent) from absent
        except HostError as failure:
            await self.abandon(*names)
            what = f"{' and '.join(names)} could not be prepared: " if names else ""
            raise AdapterRejected(f"{what}{failure}. The route is unchanged.", code="prepare_failed") from failure

    @asynccontextmanager
    async def _asking(self, *candidate: str) -> AsyncIterator[None]:
        """One replica is asked. That it refuses the adapter is a verdict; that it dies or is silent says nothing of it."""
        try:
            yield
        except AdapterRefused as refusal:
            await self.abandon(*candidate)
            raise AdapterRejected(f"{refusal}. The route is unchanged.", code="adapter_rejected") from refusal
        except HostAbsent as absent:
            raise _absent(absent) from absent
        except HostError as failure:
            await self.abandon(*candidate)
            raise Unavailable(
                f"A replica was asked and did not answer: {failure}. Try again; the route is unchanged.",
                code=REPLICA_LOST,
            ) from failure


def _absent(absent: HostAbsent) -> Unavailable:
    return Unavailable(f"{absent}. Try again later; the route is unchanged.", code="no_replica")
