"""Who changed what is served, when and why. Entries are only ever added."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from sqlalchemy import func, insert, select
from sqlalchemy.ext.asyncio import AsyncConnection

from service.contracts import AuditEntry
from service.postgres.sessions import Sessions
from service.store.audit_chain import GENESIS, entry_digest
from service.store.tables import AUDIT_LOCK, audit


class Audit:
    def __init__(self, sessions: Sessions) -> None:
        self._sessions = sessions

    async def write(self, *, who: str, action: str, subject: str, detail: dict[str, Any]) -> None:
        async with self._sessions.transaction() as connection:
            await append(connection, who=who, action=action, subject=subject, detail=detail)

    async def list(self, limit: int = 100, after: int | None = None) -> tuple[AuditEntry, ...]:
        """The newest entries first; `after` continues behind the entry with that `seq`."""
        statement = select(audit).order_by(audit.c.seq.desc()).limit(limit)
        if after is not None:
            statement = statement.where(audit.c.seq < after)
        async with self._sessions.transaction() as connection:
            return tuple(AuditEntry.model_validate(dict(row._mapping)) for row in await connection.execute(statement))


async def append(connection: AsyncConnection, *, who: str, action: str, subject: str, detail: dict[str, Any]) -> None:
    """An entry in the transaction of the change it tells of: neither exists without the other.

    Held until the transaction ends, the lock makes the order of `seq` that of the chain.
    """
    await connection.execute(select(func.pg_advisory_xact_lock(AUDIT_LOCK)))
    last = select(audit.c.digest).order_by(audit.c.seq.desc()).limit(1)
    before = (await connection.execute(last)).scalar_one_or_none() or GENESIS
    at = datetime.now(UTC)
    digest = entry_digest(before, at=at, who=who, action=action, subject=subject, detail=detail)
    await connection.execute(
        insert(audit).values(at=at, who=who, action=action, subject=subject, detail=detail, digest=digest)
    )
