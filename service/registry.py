"""Publishes adapters and changes who answers. The only writer of the route row.

Sixth of the seven files of a thumbs-up: `service/gate` let a candidate pass; here it gets its place in the
registry and, in two phases, the traffic; `serving/replica.py` answers with it.

    promote:  every replica loads and tries the adapter; any failure calls it off, nothing has changed
              compare-and-set of the route row, with its audit entry; then every replica flips
    rollback: the same to an adapter that is still loaded, so only the flip; a new event, never a rewind
    split:    the same for a candidate and a baseline that answer shares; new shares alone are only a flip
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Unpack

from service import shares
from service.adapter_folder import AdapterFolder, files_of
from service.contracts import Adapter, Candidate, Round, Verdict
from service.errors import Conflict, HeliotropeError, PreconditionFailed
from service.fleet import Fleet, Host
from service.shares import Split
from service.store.adapters import gone
from service.store.round_rows import Fence, StaleRound
from service.store.store import Store
from serving.contracts import BASE, AdapterFiles, Answer, Ask, Route, Sampled, Scores
from training.contracts import Fingerprints, RoundReport


@dataclass(frozen=True)
class Switch:
    """A change of the route that is done. Seconds are 0 where there was nothing to do."""

    route: Route
    prepare_seconds: float = 0.0  # until every replica held the adapter; serving went on
    flip_seconds: float = 0.0  # from the decision, durable in the route row, to the last replica's answer


class Registry:
    """One per service, in the Conductor."""

    def __init__(self, store: Store, host: Host, folder: str, fingerprints: Fingerprints, max_lora_rank: int) -> None:
        """`folder`: the address of the published adapters."""
        self._store = store
        self._fleet = Fleet(host)
        self._folder = AdapterFolder(folder, fingerprints, max_lora_rank)
        self._changing = asyncio.Lock()  # one change of the route at a time; the row's generation guards the rest

    def fault(self, directory: str, name: str) -> str | None:
        """Why the adapter in `directory` cannot be served; None: it can."""
        return self._folder.fault(directory, name)

    async def score(self, directory: str, name: str, answers: Sequence[Answer]) -> Scores:
        """The log-probs that one replica gives to the answers under the candidate in `directory`, which it then holds.

        Raises `AdapterRejected` when it cannot, and `Unavailable` while no replica runs; the route is unchanged.
        """
        files = await asyncio.to_thread(files_of, directory, name)
        return await self._fleet.score(files, answers)  # without the lock: a rollback must not wait for it

    async def sample(self, name: str, directory: str | None, asks: Sequence[Ask], at_once: int) -> Sampled:
        """What one replica answers under the candidate in `directory`, which it then holds, or (None) what it serves.

        Raises what `score` raises.
        """
        files = None if directory is None else await asyncio.to_thread(files_of, directory, name)
        return await self._fleet.sample(name, files, asks, at_once)

    async def publish(self, round: Round, report: RoundReport, verdict: Verdict) -> Adapter:
        """Give a candidate its immutable name and place. Doing it twice does it once.

        Raises `AdapterRefused` for one that cannot be served; then nothing was published. Raises
        `service.store.rounds.StaleRound` when another attempt has taken the round over (the fence).
        """
        assert round.parent is not None, "a round knows what it is measured against before it is judged"
        settled = await asyncio.to_thread(self._folder.settle, report.adapter_directory, report.adapter_name)
        adapter = Adapter(
            name=report.adapter_name,
            ordinal=int(report.adapter_name.split("-")[1]),
            parent=round.parent if round.candidate is None else await self._parent_of(round.candidate),
            round=round.n,
            added_by=round.requested_by if round.candidate else None,
            weights_sha256=report.adapter_digest,
            manifest_sha256=settled.manifest_sha256,
            directory=settled.directory,
            pair_digest=report.pair_digest,
            verdict=verdict,
            created_at=datetime.now(UTC),
        )
        await self._store.adapters.publish(adapter, fence=(round.n, round.attempt))
        return adapter

    async def promote(
        self,
        name: str,
        *,
        who: str,
        reason: str | None = None,
        expected_current: str | None = None,
        fence: Fence | None = None,
    ) -> Switch:
        """Let `name` answer everybody but the baseline's share; a canary ends. Promoting what answers changes nothing.

        Raises `NotFound`, `Conflict` (its files were deleted), `AdapterRejected`, `Unavailable`, `PreconditionFailed`,
        and `StaleRound` where the round that it is done for, `fence`, has moved; then nothing has changed.
        """
        async with self._changing:
            route = await self._store.route.read()
            _require_stable(route, expected_current)
            if name == route.stable:
                return Switch(route)
            seconds = 0.0 if await self._is_held(name, route) else await self._prepare(name)
            return await self._answer_all(route, name, seconds, who=who, action="promote", reason=reason, fence=fence)

    async def rollback(
        self, *, who: str, to: str | None = None, reason: str | None = None, expected_current: str | None = None
    ) -> Switch:
        """Return to `to`, by default the previous adapter; a canary ends.

        To what every replica holds it returns at once: a promotion that still prepares is overtaken, and finds the route
        moved. The adapter that is left becomes the previous one, so a second rollback would return to it: name
        `expected_current`, and it is refused. Raises what `promote` raises, and `Conflict` when there is none to return to.
        """
        route = await self._store.route.read()
        target = _return_to(route, to, expected_current)
        # A silent replica must not hold up the way back to what the route names, and what each should hold therefore.
        if await self._is_held(target, route) is not False:
            return await self._answer_all(route, target, 0.0, who=who, action="rollback", reason=reason)
        async with self._changing:
            route = await self._store.route.read()
            target = _return_to(route, to, expected_current)
            seconds = await self._prepare(target)
            return await self._answer_all(route, target, seconds, who=who, action="rollback", reason=reason)

    async def _is_held(self, name: str, route: Route) -> bool | None:
        """By every replica, and by each that comes meanwhile: so it is only of what the route names. None: they cannot say."""
        if name == BASE:
            return True
        return name in route.wanted() and await self._fleet.holds(name)

    async def split(
        self,
        *,
        who: str,
        reason: str | None = None,
        expected_generation: int | None = None,
        fence: Fence | None = None,
        **changes: Unpack[Split],
    ) -> Switch:
        """Let a candidate and a baseline answer shares of the traffic. A place that is emptied loses its share.

        New shares alone load nothing; a split that is so already changes nothing. Raises `BadRequest` for shares that
        do not fit together, `Conflict` for a candidate that already answers everybody, and what `promote` raises.
        """
        async with self._changing:
            route = await self._store.route.read()
            if expected_generation not in (None, route.generation):
                raise PreconditionFailed(
                    f"The route is at generation {route.generation}, not {expected_generation}. "
                    "Look at GET /ops/status and decide again.",
                    param="expected_generation", code="route_moved",
                )  # fmt: skip
            new = shares.split(route, changes)
            if new == route:
                return Switch(route)
            named = sorted(new.wanted() - route.wanted())
            seconds = await self._prepare(*named) if named else 0.0
            detail = {"from": shares.of(route), "to": shares.of(new), "reason": reason}
            new = new.model_copy(update={"generation": route.generation + 1})
            subject = new.candidate or new.baseline or new.stable
            return await self._switch(
                route, new, seconds, who=who, action="split", subject=subject, detail=detail, fence=fence
            )

    async def _prepare(self, *names: str) -> float:
        """Seconds it took. None is prepared unless all are sound."""
        began = time.monotonic()
        sound = [await self._sound(name) for name in names]
        await self._fleet.prepare(*sound)
        return time.monotonic() - began

    async def _sound(self, name: str) -> AdapterFiles:
        """Its files, which are all there and as they were published. Raises what `promote` raises."""
        adapter = await self._store.adapters.get(name)
        if adapter.deleted_at is not None:
            raise gone(name, adapter.deleted_at)
        async with self._fleet.trying():
            await asyncio.to_thread(
                self._folder.verify, adapter.directory, name, manifest_sha256=adapter.manifest_sha256
            )
        return adapter.files

    async def _parent_of(self, candidate: Candidate) -> str:
        """The adapter that an outsider says to continue, if it was published here; else it stands on the base."""
        known = {adapter.name for adapter in await self._store.adapters.list()}
        return candidate.parent if candidate.parent in known else BASE

    async def _answer_all(
        self, route: Route, name: str, prepare_seconds: float, *, who: str, action: str, reason: str | None,
        fence: Fence | None = None,
    ) -> Switch:  # fmt: skip
        """All but the baseline's share, which stays as it is: what has drifted over many rounds is measured there."""
        new = Route(
            generation=route.generation + 1,
            stable=name,
            previous=route.stable,
            baseline=route.baseline,
            baseline_share=route.baseline_share,
        )
        detail = {"from": route.stable, "to": name, "reason": reason}
        return await self._switch(
            route, new, prepare_seconds, who=who, action=action, subject=name, detail=detail, fence=fence
        )

    async def _switch(
        self, old: Route, new: Route, prepare_seconds: float, *, who: str, action: str, subject: str,
        detail: dict[str, Any], fence: Fence | None = None,
    ) -> Switch:  # fmt: skip
        began = time.monotonic()
        try:
            changed = await self._store.route.change(
                old.generation, new, who=who, action=action, subject=subject, detail=detail, fence=fence
            )
        except (HeliotropeError, StaleRound):
            await self._fleet.abandon(*sorted(new.wanted() - old.wanted()))
            raise
        assert changed == new, "the row is not what was decided"
        await self._fleet.flip(changed)
        return Switch(changed, prepare_seconds, time.monotonic() - began)

    async def abandon(self, name: str) -> None:
        """The promotion was called off: replicas free what they loaded for it."""
        await self._fleet.abandon(name)


def _return_to(route: Route, to: str | None, expected_current: str | None) -> str:
    _require_stable(route, expected_current)
    target = to or route.previous
    if target is None:
        raise Conflict("There is no previous adapter to return to.", code="nothing_to_roll_back")
    if target == route.stable:
        raise Conflict(f"{target} already answers.", param="to", code="already_current")
    return target


def _require_stable(route: Route, expected: str | None) -> None:
    if expected is not None and route.stable != expected:
        raise PreconditionFailed(
            f"{route.stable} answers, not {expected}. Look at GET /ops/status and decide again.",
            param="expected_current", code="route_moved",
        )  # fmt: skip
