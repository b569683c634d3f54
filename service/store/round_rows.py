"""One round's row: found, and changed only from where it is believed to be (invariant 7).

Knows what every change brings with it: its event, the alarm of an end that nobody asked for, pairs that are free again.
Which changes belong together in a transaction is `rounds.py`'s to say.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple, NoReturn, TypedDict

from pydantic import BaseModel
from sqlalchemy import Row, func, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from service.alarms import AlarmKind, ring
from service.contracts import Round, RoundState, Verdict
from service.errors import NotFound
from service.parity import Parity
from service.store import round_events, round_pairs
from service.store.tables import rounds


class Fence(NamedTuple):
    """What is done for a round is done only while the round is there."""

    n: int
    attempt: int
    state: RoundState


class StaleRound(Exception):
    """The round is not where its caller believes: another attempt, process or operator was quicker. Let go of it."""


class RoundFields(TypedDict, total=False):
    """What a step may write beside the state; fields that are not named keep their value."""

    reason: str | None
    adapter: str
    funnel: dict[str, Any]
    report: dict[str, Any]
    verdict: Verdict
    parity: Parity | None
    behaviour: dict[str, Any] | None
    canary: BaseModel | None  # `service.canary.state.CanaryState`
    watch: BaseModel | None  # `service.canary.state.WatchState`
    environment: dict[str, Any]
    approved_by: str


async def fence_holds(connection: AsyncConnection, n: int, attempt: int, *, state: RoundState) -> None:
    """Keeps the round where it is until the transaction ends; raises `StaleRound` when it has already moved."""
    row = await find(connection, n, lock=True)
    if (row.state, row.attempt) != (state.value, attempt):
        raise _stale_error(row)


async def find(connection: AsyncConnection, n: int, *, lock: bool = False) -> Row[Any]:
    """Raises `NotFound`."""
    statement = select(rounds).where(rounds.c.n == n)
    row = (await connection.execute(statement.with_for_update() if lock else statement)).one_or_none()
    if row is None:
        raise NotFound(f"There is no round {n}.", param="n", code="round_not_found")
    return row


async def move(
    connection: AsyncConnection,
    n: int,
    expect: RoundState,
    to: RoundState,
    attempt: int | None,
    changes: Mapping[str, Any],
) -> Round:
    """Compare-and-set; `attempt` None: whichever it is in. Raises `StaleRound`."""
    assert not expect.final, "a final state is never left"
    statement = update(rounds).where(rounds.c.n == n, rounds.c.state == expect.value)
    if attempt is not None:
        statement = statement.where(rounds.c.attempt == attempt)
    changed = await connection.execute(
        statement.values(state=to.value, updated_at=func.now(), **columns(changes)).returning(*rounds.c)
    )
    row = changed.one_or_none() or await stale(connection, n)
    if to is not expect:
        await round_events.append_state(connection, row)
    if to in (RoundState.FAILED, RoundState.CANCELLED):
        await round_pairs.stale(connection, n)  # what it took is free again
    return as_round(row)


async def ring_of_end(connection: AsyncConnection, was: RoundState, round: Round) -> None:
    """Operators are told of an end that nobody asked for."""
    ends = {
        (RoundState.FAILED, None): AlarmKind.ROUND_FAILED,
        (RoundState.REJECTED, RoundState.JUDGING): AlarmKind.GATE_REJECTED,
        (RoundState.REJECTED, RoundState.CANARY): AlarmKind.CANARY_STOPPED,
    }
    kind = ends.get((round.state, None)) or ends.get((round.state, was))
    if kind is not None:
        subject, detail = f"round {round.n}", {"round": round.n, "was": was.value, "adapter": round.adapter}
        message = f"{subject} {'failed' if kind is AlarmKind.ROUND_FAILED else 'was turned down'}: {round.reason}"
        await ring(connection, kind, subject, message, detail, once=f"{subject} {round.state}")


def columns(fields: Mapping[str, Any]) -> dict[str, Any]:
    """As they are written."""
    return {name: v.model_dump(mode="json") if isinstance(v, BaseModel) else v for name, v in fields.items()}


async def stale(connection: AsyncConnection, n: int) -> NoReturn:
    """The row was not where it was believed to be."""
    raise _stale_error(await find(connection, n))


def _stale_error(row: Row[Any]) -> StaleRound:
    return StaleRound(f"Round {row.n} is {row.state} in attempt {row.attempt} by now.")


def as_round(row: Row[Any]) -> Round:
    return Round.model_validate({name: getattr(row, name) for name in Round.model_fields})
