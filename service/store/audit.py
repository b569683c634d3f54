"""Who changed what is served, when and why. Entries are only ever added, and each is chained to the one before.

No entry names a person who uses an app: an entry can never be changed, so it could not be erased either.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Any

from psycopg.types.json import Jsonb
from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncConnection

from service.contracts import AuditEntry
from service.digest import content_digest
from service.postgres.sessions import Pipeline, Sessions, piped
from service.store.audit_chain import GENESIS, Chain, entry_digest
from service.store.tables import AUDIT_LOCK, audit

PAGE = 1000  # entries that are read at once
_PSEUDONYM_DIGITS = 16

# Held until the transaction ends, it makes the order of `seq` that of the chain.
_LOCK = "SELECT pg_advisory_xact_lock(%(lock)s)"
# What is chained is what will be read again: the database writes some numbers in another way than they came.
_BEFORE = "SELECT (SELECT digest FROM audit ORDER BY seq DESC LIMIT 1), %(detail)s::jsonb"
_INSERT = """
INSERT INTO audit (at, who, action, subject, detail, digest)
VALUES (%(at)s, %(who)s, %(action)s, %(subject)s, %(detail)s, %(digest)s)
"""


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

    async def about(self, *subjects: str) -> tuple[AuditEntry, ...]:
        """All entries about these subjects, the oldest first."""
        statement = select(audit).where(audit.c.subject.in_(subjects)).order_by(audit.c.seq)
        async with self._sessions.transaction() as connection:
            return tuple(AuditEntry.model_validate(dict(row._mapping)) for row in await connection.execute(statement))

    async def pages(self) -> AsyncIterator[tuple[AuditEntry, ...]]:
        """The whole log, the oldest entries first, some at a time."""
        seq = 0
        while True:
            statement = select(audit).where(audit.c.seq > seq).order_by(audit.c.seq).limit(PAGE)
            async with self._sessions.transaction() as connection:
                found = (await connection.execute(statement)).all()
            if not found:
                return
            yield tuple(AuditEntry.model_validate(dict(row._mapping)) for row in found)
            seq = found[-1].seq

    async def verify(self, kept: str | None = None) -> Chain:
        """Whether every entry is as it was written. `kept`: a digest that was noted elsewhere and must be among them."""
        chain = Chain(kept)
        async for page in self.pages():
            chain = chain.follow(page)
        return chain.ended()


async def append(connection: AsyncConnection, *, who: str, action: str, subject: str, detail: dict[str, Any]) -> None:
    """An entry in the transaction of the change it tells of: neither exists without the other."""
    async with piped(connection) as pipeline:
        await enter(pipeline, who=who, action=action, subject=subject, detail=detail)


async def enter(pipeline: Pipeline, *, who: str, action: str, subject: str, detail: dict[str, Any]) -> None:
    """As `append` does, where statements are piped already; the entry goes out with what comes behind it."""
    await pipeline.execute(_LOCK, {"lock": AUDIT_LOCK})
    found = await (await pipeline.execute(_BEFORE, {"detail": Jsonb(detail)})).fetchone()
    assert found is not None, "it is one row, whatever there is"
    before, kept = found
    entry = {"at": datetime.now(UTC), "who": who, "action": action, "subject": subject}
    digest = entry_digest(before or GENESIS, detail=kept, **entry)
    await pipeline.execute(_INSERT, entry | {"detail": Jsonb(kept), "digest": digest})


def pseudonym(user: str, app: str | None) -> str:
    """What the audit calls somebody: the same for the same person, and of little use to who does not know them."""
    return f"person-{content_digest({'user': user, 'app': app})[:_PSEUDONYM_DIGITS]}"
