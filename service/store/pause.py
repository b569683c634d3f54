"""Whether rounds may start by themselves. A row says that they may not, who said so and why; none says that they may."""

from __future__ import annotations

from sqlalchemy import delete, select
from sqlalchemy.dialects.postgresql import insert as upsert

from service.contracts import Pause
from service.postgres.sessions import Sessions
from service.store import audit
from service.store.tables import pause

_SHOWN = (pause.c.who, pause.c.reason, pause.c.at)


class Pauses:
    def __init__(self, sessions: Sessions) -> None:
        self._sessions = sessions

    async def read(self) -> Pause | None:
        """None: nobody paused."""
        async with self._sessions.transaction() as connection:
            row = (await connection.execute(select(*_SHOWN))).one_or_none()
        return None if row is None else Pause.model_validate(dict(row._mapping))

    async def begin(self, *, who: str, reason: str | None) -> Pause:
        """Pausing twice keeps the first pause. Audited."""
        async with self._sessions.transaction() as connection:
            new = upsert(pause).values(id=1, who=who, reason=reason).on_conflict_do_nothing()
            if (await connection.execute(new.returning(pause.c.id))).first() is not None:
                await audit.append(connection, who=who, action="pause", subject="rounds", detail={"reason": reason})
            row = (await connection.execute(select(*_SHOWN))).one()
        return Pause.model_validate(dict(row._mapping))

    async def end(self, *, who: str, reason: str | None) -> bool:
        """Whether there was a pause to end. Audited."""
        async with self._sessions.transaction() as connection:
            ended = (await connection.execute(delete(pause).returning(pause.c.id))).first() is not None
            if ended:
                await audit.append(connection, who=who, action="resume", subject="rounds", detail={"reason": reason})
        return ended
