"""Preferences from files. A file comes in whole or not at all: its batches share one transaction."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from service.keeping.redaction import KEEP_ALL, Redactor
from service.pairs import ImportedPair
from service.postgres.sessions import Sessions
from service.store import audit

# One statement a batch, however many rows; of those that are new, in the order of their file.
_ADD = text("""
    INSERT INTO imported_pairs (id, messages, chosen, rejected, format)
    SELECT id, CAST(messages AS jsonb), chosen, rejected, format
    FROM unnest(
        CAST(:ids AS text[]), CAST(:messages AS text[]), CAST(:chosen AS text[]), CAST(:rejected AS text[]),
        CAST(:formats AS text[])
    ) AS row (id, messages, chosen, rejected, format)
    ON CONFLICT (id) DO NOTHING
""")


class Imports:
    def __init__(self, sessions: Sessions, redact: Redactor = KEEP_ALL) -> None:
        self._sessions = sessions
        self.redact = redact  # for whoever makes pairs of texts: their ids are those of what is kept

    @asynccontextmanager
    async def begin(self) -> AsyncIterator[Import]:
        """What is added in the block is durable when it ends, and nothing of it when it raises or is undone."""
        async with self._sessions.transaction() as connection:
            yield Import(connection)


class Import:
    """One file on its way in."""

    def __init__(self, connection: AsyncConnection) -> None:
        self._connection = connection

    async def add(self, pairs: Sequence[ImportedPair]) -> int:
        """Keeps these; those already there, or twice among them, are left alone. How many were new."""
        rows = {
            "ids": [pair.id for pair in pairs],
            "messages": [json.dumps(pair.messages, ensure_ascii=False) for pair in pairs],
            "chosen": [pair.chosen for pair in pairs],
            "rejected": [pair.rejected for pair in pairs],
            "formats": [pair.format for pair in pairs],
        }
        return (await self._connection.execute(_ADD, rows)).rowcount

    async def undo(self) -> None:
        """Forgets all that was added."""
        await self._connection.rollback()

    async def audit(self, *, who: str, detail: dict[str, Any]) -> None:
        await audit.append(self._connection, who=who, action="import", subject="preferences", detail=detail)
