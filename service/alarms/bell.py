"""Ringing: an alarm is a row, written in the transaction of what it tells of, so that neither exists without the other.

Knows nothing of webhooks: whoever rings waits for no other machine.
"""

from __future__ import annotations

import enum
from datetime import datetime
from typing import Any, Protocol

from pydantic import BaseModel, ConfigDict
from sqlalchemy import select
from sqlalchemy.dialects.postgresql import insert as upsert
from sqlalchemy.ext.asyncio import AsyncConnection

from service.store.tables import alarms


class AlarmKind(enum.StrEnum):
    """What can be wrong. The value is what webhooks, metrics and the command line call it."""

    ROUND_FAILED = "round_failed"  # something broke; the old adapter stays
    GATE_REJECTED = "gate_rejected"  # a candidate was judged and turned down
    CANARY_STOPPED = "canary_stopped"  # it did harm to its share of the traffic, which was taken from it
    ROLLBACK = "rollback"  # the adapter before answers again
    VOTES_QUARANTINED = "votes_quarantined"  # votes came in a way that people do not vote in
    DRIFT_BUDGET_NEAR = "drift_budget_near"  # the policy has nearly gone as far from the base as it may
    NO_ROUND_IN_TIME = "no_round_in_time"  # nothing was promoted for longer than the settings allow
    REPLICA_LAGGING = "replica_lagging"  # it does not serve what the route says
    UNLOGGED = "unlogged"  # answers went out without a record, and nobody can vote on them
    STORE_LOW_SPACE = "store_low_space"  # the disk under the state folder fills up


class Alarm(BaseModel):
    """An alarm as it was rung, and how far its delivery is."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    seq: int  # also what a receiver tells a second delivery by
    at: datetime
    kind: str
    subject: str  # what it is about, such as an adapter, a round or a replica
    message: str  # one line for people
    detail: dict[str, Any]
    attempts: int = 0  # to deliver it
    delivered_at: datetime | None = None  # to the last of the webhooks; None: not yet, or there is none
    trouble: str | None = None  # why the last attempt failed


class Bells(Protocol):
    """`service.store.alarms.Alarms`, which opens a transaction of its own."""

    async def ring(
        self, kind: AlarmKind, subject: str, message: str, detail: dict[str, Any], once: str | None = None
    ) -> bool: ...


class Ringable(Protocol):
    """`service.store.store.Store`."""

    @property
    def alarms(self) -> Bells: ...


async def ring(
    where: AsyncConnection | Ringable,
    kind: AlarmKind,
    subject: str,
    message: str,
    detail: dict[str, Any],
    once: str | None = None,
) -> bool:
    """Tell operators. Within a transaction of the caller's where `where` is its connection, else in one of its own.

    `once`: rung only the first time with this text, such as "round 7 failed"; then True is answered, later False.
    """
    if not isinstance(where, AsyncConnection):
        return await where.alarms.ring(kind, subject, message, detail, once)
    if once is not None and (await where.execute(select(alarms.c.seq).where(alarms.c.once == once))).first():
        return False  # without a number: those who look again and again would use them up
    row = {"kind": kind, "subject": subject, "message": message, "detail": detail, "once": once}
    statement = upsert(alarms).values(row).on_conflict_do_nothing(index_elements=[alarms.c.once])
    return (await where.execute(statement.returning(alarms.c.seq))).first() is not None
