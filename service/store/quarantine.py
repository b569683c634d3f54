"""Votes that are held back until an operator decides, and those decisions.

What looks suspicious is `service/curation/quarantine.py`'s to say, and `suspects.py` writes it down.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from sqlalchemy import Row, func, insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from service.curation.held import Held, Status
from service.errors import Conflict, NotFound
from service.postgres.sessions import Sessions
from service.store import audit
from service.store.tables import feedback, quarantine, quarantined_votes, stale_prompts


class Quarantine:
    def __init__(self, sessions: Sessions) -> None:
        self._sessions = sessions

    async def list(self, status: Status | None = None, limit: int = 100, after: int | None = None) -> tuple[Held, ...]:
        """The newest items first; `after` continues behind the item with that id."""
        statement = select(quarantine).order_by(quarantine.c.id.desc()).limit(limit)
        if status is not None:
            statement = statement.where(quarantine.c.status == status)
        if after is not None:
            statement = statement.where(quarantine.c.id < after)
        async with self._sessions.transaction() as connection:
            rows = (await connection.execute(statement)).all()
            return await _items(connection, rows)

    async def decide(self, id: int, status: Literal["released", "dropped"], *, who: str, reason: str | None) -> Held:
        """Its votes count again, or never will. Audited; another decision may follow and reverse it.

        Raises `NotFound`, and `Conflict` when it was decided so already.
        """
        async with self._sessions.transaction() as connection:
            found = await connection.execute(select(quarantine).where(quarantine.c.id == id).with_for_update())
            item = found.one_or_none()
            if item is None:
                raise NotFound(f"There is no item {id} in quarantine.", param="id", code="quarantine_not_found")
            if item.status == status:
                raise Conflict(f"Item {id} is {status} already.", param="id", code="already_decided")
            changed = await connection.execute(
                update(quarantine)
                .where(quarantine.c.id == id)
                .values(status=status, decided_at=func.now(), decided_by=who)
                .returning(*quarantine.c)
            )
            await _match_anew(connection, id)
            whose = audit.pseudonym(item.user, item.app) if item.user else None
            detail = {"kind": item.kind, "app": item.app, "person": whose, "was": item.status, "reason": reason}
            await audit.append(connection, who=who, action=f"quarantine_{status}", subject=str(id), detail=detail)
            (decided,) = await _items(connection, changed.all())
            return decided


async def _match_anew(connection: AsyncConnection, id: int) -> None:
    """What follows from the votes of this item is no longer what it was."""
    prompts = (
        select(feedback.c.app, feedback.c.prompt_digest)
        .join(quarantined_votes, quarantined_votes.c.seq == feedback.c.seq)
        .where(quarantined_votes.c.quarantine_id == id)
        .distinct()
    )
    await connection.execute(insert(stale_prompts).from_select(["app", "prompt_digest"], prompts))


async def _items(connection: AsyncConnection, rows: Sequence[Row[Any]]) -> tuple[Held, ...]:
    counts = await connection.execute(
        select(quarantined_votes.c.quarantine_id, func.count().label("votes"))
        .where(quarantined_votes.c.quarantine_id.in_([row.id for row in rows]))
        .group_by(quarantined_votes.c.quarantine_id)
    )
    votes = {row.quarantine_id: row.votes for row in counts}
    return tuple(Held.model_validate({**row._mapping, "votes": votes.get(row.id, 0)}) for row in rows)
