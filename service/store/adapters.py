"""Published adapters: immutable records (invariant 5). Their weights lie in directories, not here."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import bindparam, func, select, union, update
from sqlalchemy.dialects.postgresql import insert as upsert
from sqlalchemy.ext.asyncio import AsyncConnection

from service.contracts import Adapter, RoundState
from service.errors import Conflict, NotFound
from service.postgres.sessions import Sessions, compiled
from service.store import audit
from service.store.round_rows import fence_holds
from service.store.tables import adapter_leases, adapter_ordinals, adapters, rounds, route

_FINAL = [state.value for state in RoundState if state.final]

_GET = compiled(select(adapters).where(adapters.c.name == bindparam("name")))
_LEASE = """
WITH wanted AS (SELECT adapter FROM unnest(CAST(%(names)s AS text[])) AS adapter),
locked AS (  -- a retention that deletes one of them either sees the lease or has been waited for
    SELECT name FROM adapters WHERE name IN (SELECT adapter FROM wanted) ORDER BY ordinal DESC FOR SHARE
),
ended AS (
    DELETE FROM adapter_leases
    WHERE (replica = %(replica)s OR until < now())  -- the latter of replicas that are no more
      AND NOT (replica = %(replica)s AND adapter IN (SELECT adapter FROM wanted))
)
INSERT INTO adapter_leases (adapter, replica, until)
SELECT adapter, %(replica)s, now() + make_interval(secs => %(seconds)s)
FROM wanted CROSS JOIN (SELECT count(*) FROM locked) AS all_of_them
ON CONFLICT (adapter, replica) DO UPDATE SET until = excluded.until
"""


def gone(name: str, deleted_at: datetime) -> Conflict:
    """The refusal of an adapter whose files retention has deleted."""
    return Conflict(
        f"The files of {name} were deleted on {deleted_at:%Y-%m-%d} (retention.adapters_kept). Bring them again with "
        "'heliotrope adapters add', or choose another adapter.",
        param="name",
        code="adapter_deleted",
    )


class Adapters:
    def __init__(self, sessions: Sessions) -> None:
        self._sessions = sessions
        self._line = sessions.line()  # for leases

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
        found = await self._sessions.read(_GET, {"name": name})
        if not found:
            raise NotFound(f"No adapter '{name}' was published.", param="name", code="adapter_not_found")
        return Adapter.model_validate(found[0])

    async def list(self) -> tuple[Adapter, ...]:
        """Newest first."""
        async with self._sessions.transaction() as connection:
            found = await connection.execute(select(adapters).order_by(adapters.c.ordinal.desc()))
            return tuple(Adapter.model_validate(dict(row)) for row in found.mappings())

    async def parents(self) -> dict[str, str]:
        """What each continues, those whose files are gone too: an adapter, or the base."""
        async with self._sessions.statements() as connection:
            found = await connection.execute(select(adapters.c.name, adapters.c.parent))
            return {row.name: row.parent for row in found}

    async def published(self) -> frozenset[str]:
        """The names of those whose files are kept."""
        async with self._sessions.transaction() as connection:
            kept = await connection.execute(select(adapters.c.name).where(adapters.c.deleted_at.is_(None)))
            return frozenset(kept.scalars())

    async def lease(self, replica: str, names: frozenset[str], seconds: float) -> None:
        """Whose files this replica needs for so long, by the database's clock; all that it no longer needs is let go.

        Each swap does it on the loop on which a replica answers, so it is one statement, on a connection of its own.
        """
        await self._line.execute(_LEASE, {"replica": replica, "names": sorted(names), "seconds": seconds})

    async def delete_unneeded(self, keep: int, *, who: str) -> tuple[str, ...]:
        """Says of all but the newest `keep` adapters that their files are deleted, unless somebody needs them; audited.

        Needed is what the route names, what a replica has leased, what a round that is not over starts from or made,
        and the parents of all that is kept, from which their rounds could be replayed.
        """
        async with self._sessions.transaction() as connection:
            # Locked first and looked at then: whoever leases or promotes one meanwhile waits, and sees it gone.
            found = await connection.execute(
                select(adapters.c.name, adapters.c.parent)
                .where(adapters.c.deleted_at.is_(None))
                .order_by(adapters.c.ordinal.desc())
                .with_for_update()
            )
            parents = {row.name: row.parent for row in found}  # the newest first
            needed = {*list(parents)[:keep], *await _needed(connection)}
            needed |= {parents[name] for name in needed & parents.keys()}
            going = tuple(name for name in parents if name not in needed)
            await connection.execute(update(adapters).where(adapters.c.name.in_(going)).values(deleted_at=func.now()))
            for name in going:
                detail = {"kept": keep, "reason": "retention.adapters_kept"}
                await audit.append(connection, who=who, action="delete_adapter", subject=name, detail=detail)
        return going

    async def close(self) -> None:
        await self._line.close()


async def _needed(connection: AsyncConnection) -> set[str]:
    """By the route, a replica or a round that is not over."""
    places = (route.c.stable, route.c.previous, route.c.candidate, route.c.baseline)
    uses = union(
        *(select(place) for place in places),
        select(adapter_leases.c.adapter).where(adapter_leases.c.until > func.now()),
        *(select(use).where(rounds.c.state.not_in(_FINAL)) for use in (rounds.c.parent, rounds.c.adapter)),
    )
    return {name for name in (await connection.execute(uses)).scalars() if name is not None}
