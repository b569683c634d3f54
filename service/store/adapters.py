"""Published adapters: immutable records (invariant 5). Their weights lie in directories, not here."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Row, delete, func, select
from sqlalchemy.dialects.postgresql import insert as upsert

from service.contracts import Adapter, RoundState
from service.errors import Conflict, NotFound
from service.postgres.sessions import Sessions
from service.store.rounds import fence_holds
from service.store.tables import adapter_leases, adapter_ordinals, adapters


class Adapters:
    def __init__(self, sessions: Sessions) -> None:
        self._sessions = sessions

    async def next_ordinal(self) -> int:
        """A number that no other adapter gets. Numbers may be skipped: a failed round does not give its own back."""
        async with self._sessions.transaction() as connection:
            return (await connection.execute(select(adapter_ordinals.next_value()))).scalar_one()

    async def publish(self, adapter: Adapter, *, fence: tuple[int, int] | None) -> None:
        """Makes the adapter known; again with the same files changes nothing.

        `fence` is (round, attempt) of who publishes: raises `StaleRound` unless that attempt is being judged. None
        for an adapter that comes from outside. Raises `Conflict` when the name or the ordinal belongs to other files.
        """
        async with self._sessions.transaction() as connection:
            if fence is not None:
                await fence_holds(connection, *fence, state=RoundState.JUDGING)
            row = adapter.model_dump(exclude={"verdict"})
            row["verdict"] = adapter.verdict.model_dump(mode="json") if adapter.verdict else None
            await connection.execute(upsert(adapters).values(row).on_conflict_do_nothing())
            found = await connection.execute(select(adapters).where(adapters.c.name == adapter.name))
            kept = found.one_or_none()
        if kept is None or (kept.ordinal, kept.manifest_sha256) != (adapter.ordinal, adapter.manifest_sha256):
            raise Conflict(
                f"Another adapter was published as '{adapter.name}' or with the ordinal {adapter.ordinal}. "
                "Adapters are immutable: publish under a new ordinal.",
                param="name",
                code="adapter_exists",
            )

    async def get(self, name: str) -> Adapter:
        """Raises `NotFound`."""
        async with self._sessions.transaction() as connection:
            row = (await connection.execute(select(adapters).where(adapters.c.name == name))).one_or_none()
        if row is None:
            raise NotFound(f"No adapter '{name}' was published.", param="name", code="adapter_not_found")
        return _adapter(row)

    async def list(self) -> tuple[Adapter, ...]:
        """Newest first."""
        async with self._sessions.transaction() as connection:
            found = await connection.execute(select(adapters).order_by(adapters.c.ordinal.desc()))
            return tuple(_adapter(row) for row in found)

    async def lease(self, replica: str, names: frozenset[str], seconds: float) -> None:
        """Whose files this replica needs for so long, by the database's clock; all that it no longer needs is let go."""
        until = func.now() + func.make_interval(0, 0, 0, 0, 0, 0, seconds)
        async with self._sessions.transaction() as connection:
            await connection.execute(
                delete(adapter_leases).where(
                    adapter_leases.c.replica == replica, adapter_leases.c.adapter.not_in(names)
                )
            )
            if names:
                given = upsert(adapter_leases).values(
                    [{"adapter": name, "replica": replica, "until": until} for name in sorted(names)]
                )
                await connection.execute(
                    given.on_conflict_do_update(index_elements=["adapter", "replica"], set_={"until": until})
                )


def _adapter(row: Row[Any]) -> Adapter:
    return Adapter.model_validate(dict(row._mapping))
