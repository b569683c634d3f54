"""Rounds: every step is a compare-and-set of a row, so two Conductors cannot both take it (invariant 7).

Knows what belongs together in a transaction; a single row is `round_rows.py`'s, and which step comes next is
`service/rounds.py`'s to say.
"""

from __future__ import annotations

from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import Any, Unpack

from pydantic import BaseModel
from sqlalchemy import Row, func, insert, or_, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from service.contracts import Candidate, Round, RoundEvent, RoundState
from service.errors import Conflict
from service.pairs import Pair
from service.postgres.sessions import Sessions
from service.store import audit, round_events, round_pairs, round_rows
from service.store.round_rows import RoundFields
from service.store.tables import CREATE_ROUND_LOCK, rounds, route

_FINAL = [state.value for state in RoundState if state.final]
_ON_ITS_WAY = (RoundState.JUDGING, RoundState.AWAITING_APPROVAL, RoundState.CANARY)  # its adapter may answer soon
_STOPPED = {RoundState.CANCELLED: "cancel_round", RoundState.REJECTED: "reject_round"}  # in the audit
_OPEN = or_(rounds.c.canary["open"].as_boolean(), rounds.c.watch["open"].as_boolean())


@dataclass(frozen=True)
class RoundWork:
    """A round with what only the loop needs to go on with it."""

    round: Round
    snapshot: str | None  # the Parquet file of its pairs; None: not collected yet
    adapter_ordinal: int | None  # the ordinal its adapter will have; None: not collected yet


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
            return round_rows.as_round(row), True

    async def get(self, n: int) -> Round:
        """Raises `NotFound`."""
        return (await self.work(n)).round

    async def work(self, n: int) -> RoundWork:
        """Raises `NotFound`."""
        async with self._sessions.transaction() as connection:
            row = await round_rows.find(connection, n)
        return RoundWork(round_rows.as_round(row), row.snapshot, row.adapter_ordinal)

    async def list(self, limit: int = 100) -> tuple[Round, ...]:
        """Newest first."""
        async with self._sessions.transaction() as connection:
            found = await connection.execute(select(rounds).order_by(rounds.c.n.desc()).limit(limit))
            return tuple(round_rows.as_round(row) for row in found)

    async def running(self) -> Round | None:
        """The one round that is not final, if there is one."""
        async with self._sessions.transaction() as connection:
            row = await _running(connection)
        return None if row is None else round_rows.as_round(row)

    async def last(self) -> Round | None:
        """The newest, running or over; None: there was none."""
        async with self._sessions.transaction() as connection:
            row = (await connection.execute(select(rounds).order_by(rounds.c.n.desc()).limit(1))).one_or_none()
        return None if row is None else round_rows.as_round(row)

    async def unsettled(self) -> tuple[Round, ...]:
        """Those that are over and of which something is still to be done: a canary taken off, a promotion watched."""
        statement = select(rounds).where(rounds.c.state.in_(_FINAL), _OPEN).order_by(rounds.c.n)
        async with self._sessions.transaction() as connection:
            return tuple(round_rows.as_round(row) for row in await connection.execute(statement))

    async def keep(self, n: int, **fields: Unpack[RoundFields]) -> Round:
        """What is learned of a round after its end. Its state stays."""
        async with self._sessions.transaction() as connection:
            statement = (
                update(rounds).where(rounds.c.n == n, rounds.c.state.in_(_FINAL)).values(round_rows.columns(fields))
            )
            row = (await connection.execute(statement.returning(*rounds.c))).one_or_none()
            return round_rows.as_round(row or await round_rows.stale(connection, n))

    async def approve(
        self, n: int, *, expect: RoundState, who: str, reason: str | None, canary: BaseModel | None = None
    ) -> Round:
        """An operator agrees to what the round waits for: with `canary`, its next step. Audited. Raises `StaleRound`."""
        new = {} if canary is None else {"canary": canary}
        async with self._sessions.transaction() as connection:
            approved = await round_rows.move(connection, n, expect, expect, None, {"approved_by": who} | new)
            detail = {"state": expect.value, "adapter": approved.adapter, "reason": reason}
            await audit.append(connection, who=who, action="approve", subject=f"round {n}", detail=detail)
            return approved

    async def stop(self, n: int, *, expect: RoundState, to: RoundState, who: str, reason: str) -> Round:
        """Ends a round at an operator's word, unless its adapter answers everybody already. Audited.

        Whoever changes the route for a round holds this row meanwhile (`fence_holds`), so one of the two comes first.
        Raises `StaleRound`, and `Conflict` (code `round_promoted`).
        """
        async with self._sessions.transaction() as connection:
            row = await round_rows.find(connection, n, lock=True)
            name = row.adapter or (row.report or {}).get("adapter_name")
            stable = (await connection.execute(select(route.c.stable))).scalar_one()
            if RoundState(row.state) in _ON_ITS_WAY and name == stable:
                raise Conflict(
                    f"The adapter of round {n} answers already. To take it back, roll back.", code="round_promoted"
                )
            stopped = await round_rows.move(connection, n, expect, to, None, {"reason": reason})
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
            moved = await round_rows.move(connection, n, expect, to, attempt, dict(fields))
            await round_rows.ring_of_end(connection, expect, moved)
            return moved

    async def freeze(
        self,
        n: int,
        *,
        attempt: int,
        pairs: Sequence[Pair],  # those the round uses up; none when it only measures a candidate
        settled: Sequence[Pair] = (),  # by `pairs`; used up, free and retired with those
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
            moved = await round_rows.move(connection, n, RoundState.COLLECTING, RoundState.TRAINING, attempt, frozen)
            await round_pairs.append(connection, n, pairs, held_out, settled)
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
            row = changed.one_or_none() or await round_rows.stale(connection, n)
            await round_events.append_state(connection, row)
            return round_rows.as_round(row)

    async def add_event(self, n: int, kind: str, data: dict[str, Any]) -> None:
        async with self._sessions.transaction() as connection:
            # The lock lets the round's events commit in the order of their `seq`, so that no reader skips one.
            await round_rows.find(connection, n, lock=True)
            await round_events.append(connection, n, kind, data)

    async def events(self, n: int, after_seq: int = 0) -> tuple[RoundEvent, ...]:
        """In order; `after_seq` is the last one already seen."""
        async with self._sessions.transaction() as connection:
            return await round_events.since(connection, n, after_seq)


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
    return None if row is None else round_rows.as_round(row)
