"""The route: one row, the only truth about what is served (invariant 8)."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Row, func, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from service.alarms import AlarmKind, ring
from service.errors import NotFound, PreconditionFailed
from service.postgres.sessions import Sessions
from service.store import audit
from service.store.adapters import gone
from service.store.round_rows import Fence, fence_holds
from service.store.tables import adapters, route
from serving.contracts import Route

_COLUMNS = tuple(route.c[name] for name in Route.model_fields)


class RouteRow:
    def __init__(self, sessions: Sessions) -> None:
        self._sessions = sessions

    async def read(self) -> Route:
        async with self._sessions.statements() as connection:
            return _route((await connection.execute(select(*_COLUMNS))).one())

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
        then nothing has changed.
        """
        assert new.generation == expected_generation + 1, "each change of the route makes the next generation"
        async with self._sessions.transaction() as connection:
            if fence is not None:
                await fence_holds(connection, fence.n, fence.attempt, state=fence.state)
            await _require_published(connection, new.wanted())
            changed = await connection.execute(
                update(route)
                .where(route.c.generation == expected_generation)
                .values(**new.model_dump(), updated_at=func.now())
                .returning(*_COLUMNS)
            )
            row = changed.one_or_none()
            if row is None:
                raise PreconditionFailed(
                    f"The route is no longer at generation {expected_generation}: somebody changed it meanwhile. "
                    "Read the status and decide again.",
                    code="route_moved",
                )
            await audit.append(connection, who=who, action=action, subject=subject, detail=detail)
            if action == "rollback" and _by_hand(who):
                message = (
                    f"{who} took {new.previous} back, {new.stable} answers again: {detail.get('reason') or 'no reason'}"
                )
                await ring(connection, AlarmKind.ROLLBACK, new.previous or subject, message, detail)
            return _route(row)


def _by_hand(who: str) -> bool:
    """Keys' names are one word. The loop acts in names of several, such as `watch of round 7`, and rings by itself."""
    return " " not in who


async def _require_published(connection: AsyncConnection, names: frozenset[str]) -> None:
    """Locked, so that no retention deletes the files of one between this look and the change."""
    published = await connection.execute(
        select(adapters.c.name, adapters.c.deleted_at)
        .where(adapters.c.name.in_(names))
        .order_by(adapters.c.ordinal.desc())
        .with_for_update(read=True)
    )
    deleted_at = {row.name: row.deleted_at for row in published}
    for name, at in deleted_at.items():
        if at is not None:
            raise gone(name, at)
    missing = names - deleted_at.keys()
    if missing:
        raise NotFound(f"No adapter '{min(missing)}' was published.", param="name", code="adapter_not_found")


def _route(row: Row[*tuple[Any, ...]]) -> Route:
    return Route.model_validate(dict(row._mapping))
