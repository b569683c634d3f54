"""The route: one row, the only truth about what is served (invariant 8)."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from sqlalchemy import select

from service.alarms import AlarmKind, ring
from service.errors import NotFound, PreconditionFailed
from service.postgres.sessions import Pipeline, Sessions, compiled, piped
from service.store import audit
from service.store.adapters import gone
from service.store.round_rows import Fence, fence_holds
from service.store.tables import route
from serving.contracts import Route

_READ = compiled(select(*(route.c[name] for name in Route.model_fields)))

# Locked, so that no retention deletes the files of one between this look and the change.
_LOCK_NAMED = """
SELECT name, deleted_at FROM adapters WHERE name = ANY(%(names)s) ORDER BY ordinal DESC FOR SHARE
"""
_CHANGE = """
UPDATE route
SET generation = %(generation)s, stable = %(stable)s, previous = %(previous)s, updated_at = now(),
    candidate = %(candidate)s, candidate_share = %(candidate_share)s,
    baseline = %(baseline)s, baseline_share = %(baseline_share)s
WHERE generation = %(expected)s
RETURNING generation, stable, previous, candidate, candidate_share, baseline, baseline_share
"""


class RouteRow:
    def __init__(self, sessions: Sessions) -> None:
        self._sessions = sessions

    async def read(self) -> Route:
        (row,) = await self._sessions.read(_READ)
        return Route.model_validate(row)

    async def change(
        self,
        expected_generation: int,
        new: Route,
        *,
        who: str,
        action: str,
        subject: str,
        detail: dict[str, Any],
        fence: Fence | None = None,
    ) -> Route:
        """Compare-and-set of the row, audited in the same transaction. `new.generation` is the expected one plus one.

        `fence`: the round that it is done for; raises `StaleRound` unless that is where it was.
        Raises `PreconditionFailed` (code `route_moved`) when somebody else was quicker, `NotFound` when the route
        would name an adapter that was never published, `Conflict` (code `adapter_deleted`) when its files are gone;
        then nothing has changed. Piped, for a rollback waits for it, and chat for the processor that it takes.
        """
        assert new.generation == expected_generation + 1, "each change of the route makes the next generation"
        async with self._sessions.transaction() as connection:
            if fence is not None:
                await fence_holds(connection, fence.n, fence.attempt, state=fence.state)
            async with piped(connection) as pipeline:
                changed = await _change(pipeline, expected_generation, new)
                await audit.enter(pipeline, who=who, action=action, subject=subject, detail=detail)
            if action == "rollback" and _by_hand(who):
                message = (
                    f"{who} took {new.previous} back, {new.stable} answers again: {detail.get('reason') or 'no reason'}"
                )
                await ring(connection, AlarmKind.ROLLBACK, new.previous or subject, message, detail)
            return changed


def _by_hand(who: str) -> bool:
    """Keys' names are one word. The loop acts in names of several, such as `watch of round 7`, and rings by itself."""
    return " " not in who


async def _change(pipeline: Pipeline, expected_generation: int, new: Route) -> Route:
    """Both statements in one round trip; raises what `RouteRow.change` says."""
    named = await pipeline.execute(_LOCK_NAMED, {"names": sorted(new.wanted())})
    changed = await pipeline.execute(_CHANGE, new.model_dump() | {"expected": expected_generation})
    _require_published(new.wanted(), {name: deleted_at async for name, deleted_at in named})
    row = await changed.fetchone()
    if row is None:
        raise PreconditionFailed(
            f"The route is no longer at generation {expected_generation}: somebody changed it meanwhile. "
            "Read the status and decide again.",
            code="route_moved",
        )
    assert changed.description is not None, "it returns a row"
    return Route.model_validate({column.name: value for column, value in zip(changed.description, row, strict=True)})


def _require_published(names: frozenset[str], deleted_at: Mapping[str, datetime | None]) -> None:
    for name, at in deleted_at.items():
        if at is not None:
            raise gone(name, at)
    missing = names - deleted_at.keys()
    if missing:
        raise NotFound(f"No adapter '{min(missing)}' was published.", param="name", code="adapter_not_found")
