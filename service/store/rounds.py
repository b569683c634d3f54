"""Rounds as rows: every step is a compare-and-set, so two Conductors cannot both take it (invariant 7).

Knows which steps belong together in a transaction; which step comes next is `service/rounds.py`'s to say.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import Any, NamedTuple, NoReturn, TypedDict, Unpack

from pydantic import BaseModel
from sqlalchemy import Row, func, insert, or_, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from service.alarms import AlarmKind, ring
from service.contracts import Candidate, Round, RoundEvent, RoundState, Verdict
from service.errors import Conflict, NotFound
from service.pairs import Pair
from service.parity import Parity
from service.postgres.sessions import Sessions
from service.store import audit, round_events, round_pairs
from service.store.tables import CREATE_ROUND_LOCK, rounds, route

_FINAL = [state.value for state in RoundState if state.final]
_ON_ITS_WAY = (RoundState.JUDGING, RoundState.AWAITING_APPROVAL, RoundState.CANARY)  # its adapter may answer soon
_STOPPED = {RoundState.CANCELLED: "cancel_round", RoundState.REJECTED: "reject_round"}  # in the audit
_OPEN = or_(rounds.c.canary["open"].as_boolean(), rounds.c.watch["open"].as_boolean())


class Fence(NamedTuple):
    """What is done for a round is done only while the round is there."""

    n: int
    attempt: int
    state: RoundState


class StaleRound(Exception):
    """The round is not where its caller believes: another attempt, process or operator was quicker. Let go of it."""


@dataclass(frozen=True)
class RoundWork:
    """A round with what only the loop needs to go on with it."""

    round: Round
    snapshot: str | None  # the Parquet file of its pairs; None: not collected yet
    adapter_ordinal: int | None  # the ordinal its adapter will have; None: not collected yet


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


class Rounds:
    def __init__(self, sessions: Sessions) -> None:
        self._sessions = sessions

    async def create(
        self,
        *,
        settings: dict[str, Any],
        requested_by: str,
        note: str | None,
        idempotency_key: str | None,
        body_sha256: str,
        candidate: Candidate | None = None,
    ) -> tuple[Round, bool]:
        """A queued round, and whether it is new: a repeated key with the same body answers with the first round.

        Raises `Conflict`: `idempotency_conflict` for a used key with another body, `round_running` while another
        round is not final.
        """
        new = {
            "state": RoundState.QUEUED.value, "requested_by": requested_by, "note": note, "settings": settings,
            "idempotency_key": idempotency_key, "body_sha256": body_sha256,
            "candidate": candidate.model_dump() if candidate else None,
        }  # fmt: skip
        async with self._sessions.transaction() as connection:
            # One creator at a time: the second sees the first one's round, and no number is skipped.
            await connection.execute(select(func.pg_advisory_xact_lock(CREATE_ROUND_LOCK)))
            earlier = await _asked_before(connection, idempotency_key, body_sha256)
            if earlier is not None:
                return earlier, False
            await _refuse_while_one_runs(connection)
            row = (await connection.execute(insert(rounds).values(new).returning(*rounds.c))).one()
            await round_events.append_state(connection, row)
            return _round(row), True

    async def get(self, n: int) -> Round:
        """Raises `NotFound`."""
        return (await self.work(n)).round

    async def work(self, n: int) -> RoundWork:
        """Raises `NotFound`."""
        async with self._sessions.transaction() as connection:
            row = await _find(connection, n)
        return RoundWork(_round(row), row.snapshot, row.adapter_ordinal)

    async def list(self, limit: int = 100) -> tuple[Round, ...]:
        """Newest first."""
        async with self._sessions.transaction() as connection:
            found = await connection.execute(select(rounds).order_by(rounds.c.n.desc()).limit(limit))
            return tuple(_round(row) for row in found)

    async def running(self) -> Round | None:
        """The one round that is not final, if there is one."""
        async with self._sessions.transaction() as connection:
            row = await _running(connection)
        return None if row is None else _round(row)

    async def last(self) -> Round | None:
        """The newest, running or over; None: there was none."""
        async with self._sessions.transaction() as connection:
            row = (await connection.execute(select(rounds).order_by(rounds.c.n.desc()).limit(1))).one_or_none()
        return None if row is None else _round(row)

    async def unsettled(self) -> tuple[Round, ...]:
        """Those that are over and of which something is still to be done: a canary taken off, a promotion watched."""
        statement = select(rounds).where(rounds.c.state.in_(_FINAL), _OPEN).order_by(rounds.c.n)
        async with self._sessions.transaction() as connection:
            return tuple(_round(row) for row in await connection.execute(statement))

    async def keep(self, n: int, **fields: Unpack[RoundFields]) -> Round:
        """What is learned of a round after its end. Its state stays."""
        async with self._sessions.transaction() as connection:
            statement = update(rounds).where(rounds.c.n == n, rounds.c.state.in_(_FINAL)).values(_columns(fields))
            row = (await connection.execute(statement.returning(*rounds.c))).one_or_none()
            return _round(row or await _stale(connection, n))

    async def approve(
        self, n: int, *, expect: RoundState, who: str, reason: str | None, canary: BaseModel | None = None
    ) -> Round:
        """An operator agrees to what the round waits for: with `canary`, its next step. Audited. Raises `StaleRound`."""
        new = {} if canary is None else {"canary": canary}
        async with self._sessions.transaction() as connection:
            approved = await _move(connection, n, expect, expect, None, {"approved_by": who} | new)
            detail = {"state": expect.value, "adapter": approved.adapter, "reason": reason}
            await audit.append(connection, who=who, action="approve", subject=f"round {n}", detail=detail)
            return approved

    async def stop(self, n: int, *, expect: RoundState, to: RoundState, who: str, reason: str) -> Round:
        """Ends a round at an operator's word, unless its adapter answers everybody already. Audited.

        Whoever changes the route for a round holds this row meanwhile (`fence_holds`), so one of the two comes first.
        Raises `StaleRound`, and `Conflict` (code `round_promoted`).
        """
        async with self._sessions.transaction() as connection:
            row = await _find(connection, n, lock=True)
            name = row.adapter or (row.report or {}).get("adapter_name")
            stable = (await connection.execute(select(route.c.stable))).scalar_one()
            if RoundState(row.state) in _ON_ITS_WAY and name == stable:
                raise Conflict(
                    f"The adapter of round {n} answers already. To take it back, roll back.", code="round_promoted"
                )
            stopped = await _move(connection, n, expect, to, None, {"reason": reason})
            detail = {"state": expect.value, "adapter": stopped.adapter, "reason": reason}
            await audit.append(connection, who=who, action=_STOPPED[to], subject=f"round {n}", detail=detail)
            return stopped

    async def move(
        self,
        n: int,
        *,
        expect: RoundState,
        to: RoundState,
        attempt: int | None = None,
        **fields: Unpack[RoundFields],
    ) -> Round:
        """Compare-and-set of the state, with its event in the same transaction. `to` may be `expect`: fields only.

        Raises `StaleRound` when the round is not in `expect`, or `attempt` is given and not the current one.
        """
        async with self._sessions.transaction() as connection:
            moved = await _move(connection, n, expect, to, attempt, dict(fields))
            await _ring(connection, expect, moved)
            return moved

    async def freeze(
        self,
        n: int,
        *,
        attempt: int,
        pairs: Sequence[Pair],  # those the round uses up; none when it only measures a candidate
        held_out: AbstractSet[str],  # ids of the pairs that are kept for the evaluation
        rows: int,  # of the snapshot
        parent: str,
        snapshot: str,
        pair_digest: str,
        adapter_ordinal: int,
        funnel: dict[str, Any],
        environment: dict[str, Any] | None = None,  # of the process that froze it; None: not recorded
    ) -> Round:
        """From collecting to training, with all that the round will ever learn from; no other round will use it.

        Raises `StaleRound`.
        """
        frozen = {
            "pairs": rows,
            "parent": parent,
            "snapshot": snapshot,
            "pair_digest": pair_digest,
            "adapter_ordinal": adapter_ordinal,
            "funnel": funnel,
            "environment": environment,
        }
        async with self._sessions.transaction() as connection:
            moved = await _move(connection, n, RoundState.COLLECTING, RoundState.TRAINING, attempt, frozen)
            await round_pairs.append(connection, n, pairs, held_out)
            return moved

    async def next_attempt(self, n: int, expect_attempt: int) -> Round:
        """Fences off the attempt so far: whatever it still sends is stale. Raises `StaleRound`."""
        async with self._sessions.transaction() as connection:
            changed = await connection.execute(
                update(rounds)
                .where(rounds.c.n == n, rounds.c.attempt == expect_attempt, rounds.c.state.not_in(_FINAL))
                .values(attempt=expect_attempt + 1, updated_at=func.now())
                .returning(*rounds.c)
            )
            row = changed.one_or_none() or await _stale(connection, n)
            await round_events.append_state(connection, row)
            return _round(row)

    async def add_event(self, n: int, kind: str, data: dict[str, Any]) -> None:
        async with self._sessions.transaction() as connection:
            # The lock lets the round's events commit in the order of their `seq`, so that no reader skips one.
            await _find(connection, n, lock=True)
            await round_events.append(connection, n, kind, data)

    async def events(self, n: int, after_seq: int = 0) -> tuple[RoundEvent, ...]:
        """In order; `after_seq` is the last one already seen."""
        async with self._sessions.transaction() as connection:
            return await round_events.since(connection, n, after_seq)


async def fence_holds(connection: AsyncConnection, n: int, attempt: int, *, state: RoundState) -> None:
    """Keeps the round where it is until the transaction ends; raises `StaleRound` when it has already moved."""
    row = await _find(connection, n, lock=True)
    if (row.state, row.attempt) != (state.value, attempt):
        raise _stale_error(row)


async def _find(connection: AsyncConnection, n: int, *, lock: bool = False) -> Row[Any]:
    statement = select(rounds).where(rounds.c.n == n)
    row = (await connection.execute(statement.with_for_update() if lock else statement)).one_or_none()
    if row is None:
        raise NotFound(f"There is no round {n}.", param="n", code="round_not_found")
    return row


async def _running(connection: AsyncConnection) -> Row[Any] | None:
    return (await connection.execute(select(rounds).where(rounds.c.state.not_in(_FINAL)))).one_or_none()


async def _refuse_while_one_runs(connection: AsyncConnection) -> None:
    row = await _running(connection)
    if row is not None:
        raise Conflict(
            f"Round {row.n} is {row.state}, and rounds run one at a time. Wait for it or cancel it.",
            code="round_running",
        )


async def _asked_before(connection: AsyncConnection, key: str | None, body_sha256: str) -> Round | None:
    if key is None:
        return None
    row = (await connection.execute(select(rounds).where(rounds.c.idempotency_key == key))).one_or_none()
    if row is not None and row.body_sha256 != body_sha256:
        raise Conflict(
            f"The Idempotency-Key '{key}' already started round {row.n} with another body. Use a new key.",
            param="Idempotency-Key",
            code="idempotency_conflict",
        )
    return None if row is None else _round(row)


async def _move(
    connection: AsyncConnection,
    n: int,
    expect: RoundState,
    to: RoundState,
    attempt: int | None,
    columns: dict[str, Any],
) -> Round:
    assert not expect.final, "a final state is never left"
    statement = update(rounds).where(rounds.c.n == n, rounds.c.state == expect.value)
    if attempt is not None:
        statement = statement.where(rounds.c.attempt == attempt)
    changed = await connection.execute(
        statement.values(state=to.value, updated_at=func.now(), **_columns(columns)).returning(*rounds.c)
    )
    row = changed.one_or_none() or await _stale(connection, n)
    if to is not expect:
        await round_events.append_state(connection, row)
    if to in (RoundState.FAILED, RoundState.CANCELLED):
        await round_pairs.stale(connection, n)  # what it took is free again
    return _round(row)


async def _ring(connection: AsyncConnection, was: RoundState, round: Round) -> None:
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


def _columns(fields: Mapping[str, Any]) -> dict[str, Any]:
    return {name: v.model_dump(mode="json") if isinstance(v, BaseModel) else v for name, v in fields.items()}


async def _stale(connection: AsyncConnection, n: int) -> NoReturn:
    raise _stale_error(await _find(connection, n))


def _stale_error(row: Row[Any]) -> StaleRound:
    return StaleRound(f"Round {row.n} is {row.state} in attempt {row.attempt} by now.")


def _round(row: Row[Any]) -> Round:
    return Round.model_validate({name: getattr(row, name) for name in Round.model_fields})
