"""The route: one row, the only truth about what is served (invariant 8)."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Row, func, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from service.errors import NotFound, PreconditionFailed
from service.postgres.sessions import Sessions
from service.store import audit
from service.store.tables import adapters, route
from serving.contracts import Route

_COLUMNS = tuple(route.c[name] for name in Route.model_fields)


class RouteRow:
    def __init__(self, sessions: Sessions) -> None:
        self._sessions = sessions

    async def read(self) -> Route:
        async with self._sessions.transaction() as connection:
            return _route((await connection.execute(select(*_COLUMNS))).one())

    async def change(
        self, expected_generation: int, new: Route, *, who: str, action: str, subject: str, detail: dict[str, Any]
    ) -> Route:
        """Compare-and-set of the row, audited in the same transaction. `new.generation` is the expected one plus one.

        Raises `PreconditionFailed` (code `route_moved`) when somebody else was quicker, `NotFound` when the route
        would name an adapter that was never published; then nothing has changed.
        """
        assert new.generation == expected_generation + 1, "each change of the route makes the next generation"
        async with self._sessions.transaction() as connection:
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
            return _route(row)


async def _require_published(connection: AsyncConnection, names: frozenset[str]) -> None:
    published = await connection.execute(select(adapters.c.name).where(adapters.c.name.in_(names)))
    missing = names - set(published.scalars())
    if missing:
        raise NotFound(f"No adapter '{min(missing)}' was published.", param="name", code="adapter_not_found")


def _route(row: Row[*tuple[Any, ...]]) -> Route:
    return Route.model_validate(dict(row._mapping))
