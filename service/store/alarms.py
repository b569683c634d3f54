"""The alarms that were rung, as an outbox: webhooks are sent from it, so none is lost with a process."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from sqlalchemy import Row, func, select, text, update
from sqlalchemy import cast as as_type
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.types import Text

from service.alarms.bell import Alarm, AlarmKind, ring
from service.postgres.sessions import Sessions
from service.store.tables import alarms

# Names no user: an alarm goes to other machines, and is not erased with the user's data.
_RING_QUARANTINED = text("""
    INSERT INTO alarms (kind, subject, message, detail, once)
    SELECT :kind, 'quarantine ' || id,
        'votes of one user of the app ' || app || ' are held back (' || quarantine.kind
            || '). See `heliotrope quarantine list`, then release or drop them.',
        jsonb_build_object('id', id, 'kind', quarantine.kind, 'app', app), :kind || ' ' || id
    FROM quarantine
    WHERE status = 'held' AND NOT EXISTS (SELECT FROM alarms WHERE once = :kind || ' ' || id)
    ORDER BY id
    ON CONFLICT (once) DO NOTHING
""")

_SHOWN = tuple(alarms.c[name] for name in Alarm.model_fields)


@dataclass(frozen=True)
class Due:
    """An alarm that is to be delivered now, by whoever claimed it."""

    alarm: Alarm
    delivered_to: frozenset[str]  # digests of the webhooks that have it already


class Alarms:
    def __init__(self, sessions: Sessions) -> None:
        self._sessions = sessions

    async def ring(
        self, kind: AlarmKind, subject: str, message: str, detail: dict[str, Any], once: str | None = None
    ) -> bool:
        """See `service.alarms.ring`."""
        async with self._sessions.transaction() as connection:
            return await ring(connection, kind, subject, message, detail, once)

    async def ring_quarantined(self) -> None:
        """For each item that is held and was not rung for yet."""
        async with self._sessions.transaction() as connection:
            await connection.execute(_RING_QUARANTINED, {"kind": AlarmKind.VOTES_QUARANTINED.value})

    async def list(self, limit: int = 100, after: int | None = None) -> tuple[Alarm, ...]:
        """The newest first; `after` continues behind the alarm with that `seq`."""
        statement = select(*_SHOWN).order_by(alarms.c.seq.desc()).limit(limit)
        if after is not None:
            statement = statement.where(alarms.c.seq < after)
        async with self._sessions.transaction() as connection:
            return tuple(_alarm(row) for row in await connection.execute(statement))

    async def claim(self, most: int, *, within: timedelta, claim: timedelta) -> tuple[Due, ...]:
        """Those not delivered that were rung `within` that time and are due, the oldest first, with one attempt more.

        For the time of the claim nobody else gets them. Who dies meanwhile leaves them to the next.
        """
        due = (
            select(alarms.c.seq)
            .where(alarms.c.delivered_at.is_(None), alarms.c.due_at <= func.now(), alarms.c.at > func.now() - within)
            .order_by(alarms.c.seq)
            .limit(most)
            .with_for_update(skip_locked=True)
        )
        claimed = (
            update(alarms)
            .where(alarms.c.seq.in_(due.scalar_subquery()))
            .values(attempts=alarms.c.attempts + 1, due_at=func.now() + claim)
            .returning(*_SHOWN, alarms.c.delivered_to)
        )
        async with self._sessions.transaction() as connection:
            rows = (await connection.execute(claimed)).all()
        return tuple(Due(_alarm(row), frozenset(row.delivered_to)) for row in sorted(rows, key=lambda row: row.seq))

    async def tried(self, seq: int, *, taken: Sequence[str], trouble: str | None, retry: timedelta) -> None:
        """What came of an attempt: the webhooks that took it, and why the others did not. None: it is delivered."""
        values: dict[str, Any] = {
            "delivered_to": alarms.c.delivered_to + as_type(list(taken), ARRAY(Text)),
            "trouble": trouble,
            "due_at": func.now() + retry,
        }
        if trouble is None:
            values["delivered_at"] = func.now()
        async with self._sessions.transaction() as connection:
            await connection.execute(update(alarms).where(alarms.c.seq == seq).values(values))


def _alarm(row: Row[Any]) -> Alarm:
    return Alarm.model_validate({name: getattr(row, name) for name in Alarm.model_fields})
