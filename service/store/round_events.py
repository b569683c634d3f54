"""What happened in a round, line by line: read by whoever watches it.

Whoever appends holds the lock on the round's row, so that the events of a round commit in the order of their `seq`
and a reader who continues behind the last one never skips any.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import Row, insert, select
from sqlalchemy.ext.asyncio import AsyncConnection

from service.contracts import RoundEvent
from service.store.tables import round_events

STATE = "state"  # the kind of an event that tells of a new state or attempt


async def append(connection: AsyncConnection, n: int, kind: str, data: dict[str, Any]) -> None:
    await connection.execute(insert(round_events).values(round=n, kind=kind, data=data))


async def append_state(connection: AsyncConnection, round: Row[Any]) -> None:
    """Where the round is by now; `round` is its row."""
    data = {"state": round.state, "attempt": round.attempt, "reason": round.reason}
    await append(connection, round.n, STATE, data)


async def since(connection: AsyncConnection, n: int, after_seq: int) -> tuple[RoundEvent, ...]:
    """In order; `after_seq` is the last one that is already known."""
    statement = (
        select(round_events.c.seq, round_events.c.at, round_events.c.kind, round_events.c.data)
        .where(round_events.c.round == n, round_events.c.seq > after_seq)
        .order_by(round_events.c.seq)
    )
    found = await connection.execute(statement)
    return tuple(RoundEvent.model_validate(dict(row._mapping)) for row in found)
