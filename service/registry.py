"""Publishes adapters and changes who answers. The only writer of the route row.

Sixth of the seven files of a thumbs-up: `service/gate.py` let a candidate pass; here it gets its place in the
registry and, in two phases, the traffic; `serving/replica.py` answers with it.

    promote:  every replica loads and tries the adapter; any failure calls it off, nothing has changed
              compare-and-set of the route row, with its audit entry; then every replica flips
    rollback: the same to an adapter that is still loaded, so only the flip; a new event, never a rewind
"""

from __future__ import annotations

import asyncio
import logging
import os
import shutil
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Protocol

from service.contracts import Adapter, Candidate, Round, Verdict
from service.errors import AdapterRejected, Conflict, PreconditionFailed, Unavailable
from service.store.store import Store
from serving.adapters import MANIFEST, sha256_of, verify
from serving.contracts import BASE, AdapterFiles, Answer, Prepared, ReplicaStatus, Route, Scores
from serving.errors import AdapterRefused, HostAbsent, HostError
from training.contracts import Fingerprints, RoundReport

log = logging.getLogger(__name__)


class Host(Protocol):
    """All replicas of the policy; `serving.deployment.PolicyHost` in a cluster."""

    async def prepare(self, name: str) -> list[Prepared]:
        """Every running replica holds the adapter when this returns. Raises `HostError` when one does not."""
        ...

    async def score(self, files: AdapterFiles, answers: Sequence[Answer]) -> Scores:
        """What one replica says of the answers under an adapter that need not be published. Raises `HostError`."""
        ...

    async def abandon(self, name: str) -> None: ...

    async def flip(self, route: Route) -> list[ReplicaStatus]: ...

    async def status(self) -> list[ReplicaStatus]: ...


@dataclass(frozen=True)
class Switch:
    """A change of the route that is done. Seconds are 0 where there was nothing to do."""

    route: Route
    prepare_seconds: float = 0.0  # until every replica held the adapter; serving went on
    flip_seconds: float = 0.0  # from the decision, durable in the route row, to the last replica's answer


class Registry:
    """One per service, in the Conductor."""

    def __init__(self, store: Store, host: Host, folder: Path, fingerprints: Fingerprints, max_lora_rank: int) -> None:
        self._store = store
        self._host = host
        self._folder = folder
        self._fingerprints = fingerprints
        self._max_lora_rank = max_lora_rank
        self._changing = asyncio.Lock()  # one change of the route at a time; the row's generation guards the rest

    def fault(self, directory: Path, name: str) -> str | None:
        """Why the adapter in `directory` cannot be served; None: it can."""
        try:
            self._verify(directory, name, manifest_sha256=None)
        except AdapterRefused as refusal:
            return str(refusal)
        return None

    async def score(self, directory: Path, name: str, answers: Sequence[Answer]) -> Scores:
        """The log-probs that one replica gives to the answers under the candidate in `directory`, which it then holds.

        Raises `AdapterRejected` when it cannot, and `Unavailable` while no replica runs; the route is unchanged.
        """
        manifest_sha256 = await asyncio.to_thread(sha256_of, directory / MANIFEST)
        files = AdapterFiles(name=name, directory=str(directory), manifest_sha256=manifest_sha256)
        async with self._trying(name):  # without the lock: a rollback must not wait for it
            return await self._host.score(files, answers)

    async def publish(self, round: Round, report: RoundReport, verdict: Verdict) -> Adapter:
        """Give a candidate its immutable name and place. Doing it twice does it once.

        Raises `AdapterRefused` for one that cannot be served; then nothing was published. Raises
        `service.store.rounds.StaleRound` when another attempt has taken the round over (the fence).
        """
        assert round.parent is not None, "a round knows what it is measured against before it is judged"
        target = await asyncio.to_thread(self._settle, Path(report.adapter_directory), report.adapter_name)
        adapter = Adapter(
            name=report.adapter_name,
            ordinal=int(report.adapter_name.split("-")[1]),
            parent=round.parent if round.candidate is None else await self._parent_of(round.candidate),
            round=round.n,
            added_by=round.requested_by if round.candidate else None,
            weights_sha256=report.adapter_digest,
            manifest_sha256=sha256_of(target / MANIFEST),
            directory=str(target),
            pair_digest=report.pair_digest,
            verdict=verdict,
            created_at=datetime.now(UTC),
        )
        await self._store.adapters.publish(adapter, fence=(round.n, round.attempt))
        return adapter

    async def promote(
        self, name: str, *, who: str, reason: str | None = None, expected_current: str | None = None
    ) -> Switch:
        """Let `name` answer. Promoting what already answers changes nothing. Raises `NotFound`, `AdapterRejected`
        (nothing has changed) and `PreconditionFailed`."""
        async with self._changing:
            route = await self._store.route.read()
            if expected_current is not None and route.stable != expected_current:
                raise PreconditionFailed(
                    f"{route.stable} answers, not {expected_current}. Look at GET /ops/status and decide again.",
                    param="expected_current", code="route_moved",
                )  # fmt: skip
            if name == route.stable:
                return Switch(route)
            seconds = await self._prepare(name)
            return await self._switch(route, name, seconds, who=who, action="promote", reason=reason)

    async def rollback(self, *, who: str, to: str | None = None, reason: str | None = None) -> Switch:
        """Return to `to`, by default the previous adapter. Raises `Conflict` when there is none."""
        async with self._changing:
            route = await self._store.route.read()
            target = to or route.previous
            if target is None:
                raise Conflict("There is no previous adapter to return to.", code="nothing_to_roll_back")
            if target == route.stable:
                raise Conflict(f"{target} already answers.", param="to", code="already_current")
            seconds = 0.0 if target == route.previous else await self._prepare(target)
            return await self._switch(route, target, seconds, who=who, action="rollback", reason=reason)

    async def _prepare(self, name: str) -> float:
        """Seconds it took."""
        if name == BASE:
            return 0.0
        began = time.monotonic()
        adapter = await self._store.adapters.get(name)
        async with self._trying(name):
            await asyncio.to_thread(
                self._verify, Path(adapter.directory), name, manifest_sha256=adapter.manifest_sha256
            )
            await self._host.prepare(name)
        return time.monotonic() - began

    @asynccontextmanager
    async def _trying(self, name: str) -> AsyncIterator[None]:
        """Whatever goes wrong while replicas load the adapter: called off, and the route is unchanged."""
        try:
            yield
        except AdapterRefused as refusal:
            raise AdapterRejected(f"{refusal}. The route is unchanged.", code="adapter_rejected") from refusal
        except HostAbsent as absent:
            raise Unavailable(f"{absent}. Try again when they are there; the route is unchanged.") from absent
        except HostError as failure:
            await self.abandon(name)
            raise AdapterRejected(
                f"{name} could not be prepared: {failure}. The route is unchanged.", code="prepare_failed"
            ) from failure

    async def _parent_of(self, candidate: Candidate) -> str:
        """The adapter that an outsider says to continue, if it was published here; else it stands on the base."""
        known = {adapter.name for adapter in await self._store.adapters.list()}
        return candidate.parent if candidate.parent in known else BASE

    async def _switch(
        self, route: Route, name: str, prepare_seconds: float, *, who: str, action: str, reason: str | None
    ) -> Switch:
        began = time.monotonic()
        try:
            changed = await self._store.route.change(
                route.generation,
                Route(generation=route.generation + 1, stable=name, previous=route.stable),
                who=who,
                action=action,
                subject=name,
                detail={"from": route.stable, "to": name, "reason": reason},
            )
        except PreconditionFailed:
            await self.abandon(name)
            raise
        assert changed.generation == route.generation + 1 and changed.stable == name
        try:
            await self._host.flip(changed)
        except Exception as error:  # the row is the truth and every replica reads it; the flip only made it quick
            log.warning("the flip to %s did not reach every replica, they will poll: %s", name, error)
        return Switch(changed, prepare_seconds, time.monotonic() - began)

    async def abandon(self, name: str) -> None:
        """A replica that does not hear of it frees the adapter when the next one is prepared."""
        try:
            await self._host.abandon(name)
        except Exception as error:  # the caller has a better reason to tell of
            log.warning("not every replica heard that %s is abandoned: %s", name, error)

    def _verify(self, directory: Path, name: str, *, manifest_sha256: str | None) -> None:
        verify(
            directory,
            name=name,
            base=self._fingerprints.base_model,
            tokenizer=self._fingerprints.tokenizer,
            max_rank=self._max_lora_rank,
            manifest_sha256=manifest_sha256,
        )

    def _settle(self, source: Path, name: str) -> Path:
        """Copy to the published place: complete or not at all, and never over what is there."""
        target = self._folder / name
        if target.is_dir():
            self._verify(target, name, manifest_sha256=None)
            return target
        self._folder.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=f".{name}.", dir=self._folder))
        try:
            for file in sorted(source.iterdir()):
                copied = scratch / file.name
                shutil.copyfile(file, copied)
                _fsync(copied)
            _fsync(scratch)
            self._verify(scratch, name, manifest_sha256=None)
            os.rename(scratch, target)
            _fsync(self._folder)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
        return target


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
