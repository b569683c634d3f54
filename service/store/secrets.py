"""Random secrets that all processes share: each is made once, by whoever needs it first, and never changes."""

from __future__ import annotations

import secrets as random

from sqlalchemy import select
from sqlalchemy.dialects.postgresql import insert as upsert

from service.postgres.sessions import Sessions
from service.store.tables import secrets

_BYTES = 32  # as long as the digest of HS256, which is what it asks for


class Secrets:
    def __init__(self, sessions: Sessions) -> None:
        self._sessions = sessions
        self._known: dict[str, str] = {}

    async def get(self, name: str) -> str:
        """The secret of this name; of several processes that make it at once all get the same."""
        if name not in self._known:
            async with self._sessions.transaction() as connection:
                await connection.execute(
                    upsert(secrets).values(name=name, value=random.token_hex(_BYTES)).on_conflict_do_nothing()
                )
                kept = await connection.execute(select(secrets.c.value).where(secrets.c.name == name))
                self._known[name] = kept.scalar_one()
        return self._known[name]
