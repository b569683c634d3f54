"""The lookout: rings what no single event tells. Looks now and then; what it has rung already it does not ring again.

votes_quarantined  a new item is held
drift_budget_near  the adapter that answers has used up most of the way from the base that the gate allows
no_round_in_time   nothing was promoted for too long
replica_lagging    a replica serves an older route than the row's, and has for a while
unlogged           answers go out without a record
store_low_space    the disk under the state folder fills up
"""

from __future__ import annotations

import asyncio
import logging
import shutil
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Protocol

from service.alarm_settings import AlarmSettings
from service.alarms.bell import AlarmKind
from service.errors import Unavailable
from service.store.measures import Measures
from service.store.store import Store
from serving.contracts import ReplicaStatus
from serving.errors import HostError

log = logging.getLogger(__name__)

DRIFT_CHECK = "kl_base"  # of the gate: its value is the distance to the base, its bound how far is allowed


class Replicas(Protocol):
    """What is asked of `service.registry.Host`."""

    async def status(self) -> list[ReplicaStatus]: ...


class Lookout:
    """One per service, in the Conductor. That it rings once is the store's to see to, so a restart repeats nothing."""

    def __init__(
        self,
        store: Store,
        replicas: Replicas,
        settings: AlarmSettings,
        state: Path,
        free_bytes: Callable[[Path], int] = lambda folder: shutil.disk_usage(folder).free,
    ) -> None:
        self._store = store
        self._replicas = replicas
        self._settings = settings
        self._state = state
        self._free_bytes = free_bytes
        self._unlogged: dict[str, int] | None = None  # replica -> answers without a record; None: not looked yet

    async def run(self) -> None:
        """For ever: look, and rest."""
        while True:
            try:
                await self.look()
            except Unavailable as error:  # without the store nothing can be rung; whoever scrapes sees that it is away
                log.warning("the lookout waits: %s", error)
            except Exception:  # one thing that cannot be looked at must not hide the others for ever
                log.exception("the lookout could not look")
            await asyncio.sleep(self._settings.watch_seconds)

    async def look(self) -> None:
        measures = await self._store.measures.read()
        await self._store.alarms.ring_quarantined()
        await self._look_at_rounds(measures)
        await self._look_at_space(measures)
        try:
            replicas = await self._replicas.status()
        except HostError as error:  # none runs, or one is silent: readiness tells of that
            log.info("replicas are not looked at: %s", error)
            return
        await self._look_at_lag(measures, replicas)
        await self._look_at_records(measures, replicas)

    async def _look_at_rounds(self, measures: Measures) -> None:
        name, drift = measures.route.stable, measures.drift
        if drift is not None and drift.bound and drift.value >= self._settings.drift_near * drift.bound:
            await self._store.alarms.ring(
                AlarmKind.DRIFT_BUDGET_NEAR,
                name,
                f"it is {drift.value:.3g} nats a token from the base, and {drift.bound:.3g} are allowed: the next round "
                "may be turned down for that. Start from an earlier adapter, or allow more.",
                {"value": drift.value, "bound": drift.bound},
                once=f"drift_budget_near {name}",
            )
        days, since = self._settings.no_round_days, measures.last_success or measures.first_answer
        if days is not None and since is not None and measures.now - since >= timedelta(days=days):
            await self._store.alarms.ring(
                AlarmKind.NO_ROUND_IN_TIME,
                name,
                f"no round was promoted since {since:%Y-%m-%d %H:%M} UTC; {days:g} days are allowed",
                {"since": since.isoformat(), "days": days},
                once=f"no_round_in_time {_period(since, measures.now, days)}",
            )

    async def _look_at_lag(self, measures: Measures, replicas: Sequence[ReplicaStatus]) -> None:
        wanted, changed_at = measures.route.generation, measures.route_changed_at
        if measures.now - changed_at < timedelta(seconds=self._settings.lag_seconds):
            return
        for replica in replicas:
            if replica.generation < wanted:
                seconds = (measures.now - changed_at).total_seconds()
                await self._store.alarms.ring(
                    AlarmKind.REPLICA_LAGGING,
                    replica.replica,
                    f"it serves generation {replica.generation} of the route, {seconds:.0f} s after {wanted}: "
                    + (replica.error or "it does not say why"),
                    {"generation": replica.generation, "wanted": wanted, "error": replica.error},
                    once=f"replica_lagging {replica.replica} {wanted}",
                )

    async def _look_at_records(self, measures: Measures, replicas: Sequence[ReplicaStatus]) -> None:
        """Once an hour for as long as it lasts. What was lost before the first look is no news."""
        before = self._unlogged
        self._unlogged = {replica.replica: replica.unlogged for replica in replicas}
        if before is None:
            return
        added = {name: count - before.get(name, 0) for name, count in self._unlogged.items()}
        losing = {name: count for name, count in added.items() if count > 0}
        if losing:
            await self._store.alarms.ring(
                AlarmKind.UNLOGGED,
                "completions",
                f"{sum(losing.values())} answers went out without a record, and nobody can vote on them. "
                "Look at the database.",
                {"replicas": losing},
                once=f"unlogged {measures.now:%Y-%m-%dT%H}",
            )

    async def _look_at_space(self, measures: Measures) -> None:
        """Once a day."""
        free, limit = await asyncio.to_thread(self._free_bytes, self._state), self._settings.free_bytes
        if free < limit:
            await self._store.alarms.ring(
                AlarmKind.STORE_LOW_SPACE,
                str(self._state),
                f"{free / 1e9:.2f} GB are free; below {limit / 1e9:.2f} GB rounds and votes are at risk. "
                "Make room, or set [retention].",
                {"free_bytes": free, "limit_bytes": limit},
                once=f"store_low_space {measures.now:%Y-%m-%d}",
            )


def _period(since: datetime, now: datetime, days: float) -> str:
    """Rung once in each period of so many days, for as long as nothing is promoted."""
    return f"{since.isoformat()} {int((now - since) / timedelta(days=days))}"
