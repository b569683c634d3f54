"""What operators read of votes: how they stand, vote by vote and in sum. Fast, whatever there is.

What a guard says of a pair is kept beside the pair, and the sums beside the generation of pairs that they tell of, so
that looking costs neither matching nor guarding. `service/overview.py` keeps both up to date.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

from sqlalchemy import ColumnElement, Row, Select, and_, func, select, text, true, union_all, update
from sqlalchemy.dialects.postgresql import insert as upsert
from sqlalchemy.ext.asyncio import AsyncConnection

from service.pairs import Funnel, LeftOut, Source
from service.postgres.arrays import as_table, texts
from service.postgres.sessions import Sessions
from service.store.pairs import turn
from service.store.preferences import READ_SECONDS, Open, one_state, read_open
from service.store.tables import (
    completions,
    feedback,
    preference_pairs,
    preference_state,
    route,
    vote_fates,
)

Status = Literal["paired", "thumb", "left_out"]

_TOLD = (
    *("seq", "feedback_id", "app", "user", "kind", "completion_id", "choice_index", "rating", "rival_completion_id"),
    *("rival_choice_index", "tie", "tags", "created_at"),
)  # columns of a vote that are shown as they are


@dataclass(frozen=True)
class Standing:
    """How far pairs and guards are."""

    now: datetime
    generation: int  # of pairs
    route_generation: int
    guarded: str | None  # the state that the guards last looked at
    funnels: Mapping[bool, Funnel] | None  # of that state: are single thumbs learned from? -> the sums


@dataclass(frozen=True)
class Wanted:
    """Which votes to list; None: any."""

    status: Status | None = None
    reason: LeftOut | None = None
    app: str | None = None
    user: str | None = None
    tag: str | None = None
    source: Source | None = None


class Fates:
    def __init__(self, sessions: Sessions) -> None:
        self._sessions = sessions

    async def standing(self) -> Standing:
        async with self._sessions.transaction() as connection:
            return await _standing(connection)

    async def open_pairs(self, most: int) -> int:
        """How many pairs there are, before the guards. Counted up to `most`."""
        some = select(preference_pairs.c.id).limit(most).subquery()
        async with self._sessions.transaction() as connection:
            return (await connection.execute(select(func.count()).select_from(some))).scalar_one()

    async def read(self) -> tuple[Standing, Open]:
        """What the guards said last and what they would look at now; of one state."""
        async with self._sessions.transaction(statement_seconds=READ_SECONDS) as connection:
            await one_state(connection)
            return await _standing(connection), await read_open(connection)

    async def keep(self, state: str, left_out: Mapping[str, LeftOut], funnels: Mapping[bool, Funnel]) -> None:
        """What the guards say in this state: pair id -> why it is left out, and the sums that follow.

        Pairs that were made since are kept as they are: the state has passed then, and the guards are asked again.
        """
        sums = {str(thumbs).lower(): funnel.model_dump(mode="json") for thumbs, funnel in funnels.items()}
        known = upsert(preference_state).values(id=1, generation=0, guarded=state, funnels=sums)
        said = {"guarded": known.excluded.guarded, "funnels": known.excluded.funnels}
        async with self._sessions.transaction(statement_seconds=READ_SECONDS) as connection:
            await turn(connection)
            await _mark(connection, left_out)
            await connection.execute(known.on_conflict_do_update(index_elements=[preference_state.c.id], set_=said))

    async def page(self, wanted: Wanted, *, thumbs: bool, limit: int, after: int | None = None) -> list[dict[str, Any]]:
        """The newest matched votes first; `after` continues behind the vote with that `seq`.

        `thumbs`: are single thumbs learned from? If not, their votes are in no pair.
        """
        alternatives = [_found(wanted, one, limit, after) for one in _alternatives(wanted, thumbs)]
        if not alternatives:
            return []
        some = union_all(*(each.subquery().select() for each in alternatives)).subquery()
        seqs = select(some.c.seq).order_by(some.c.seq.desc()).limit(limit).subquery("wanted")
        statement = _votes().join(seqs, seqs.c.seq == vote_fates.c.seq).order_by(vote_fates.c.seq.desc())
        async with self._sessions.transaction() as connection:
            return [_told(row, thumbs) for row in await connection.execute(statement)]


async def _mark(connection: AsyncConnection, left_out: Mapping[str, LeftOut]) -> None:
    """Writes the pairs of which something else was said before."""
    said = as_table("said", id=texts(left_out), reason=texts(reason.value for reason in left_out.values()))
    pair = preference_pairs.alias("pair")
    changed = (
        select(pair.c.id, said.c.reason)
        .select_from(pair.outerjoin(said, said.c.id == pair.c.id))
        .where(pair.c.left_out.is_distinct_from(said.c.reason))
        .subquery("changed")
    )
    await connection.execute(
        update(preference_pairs).where(preference_pairs.c.id == changed.c.id).values(left_out=changed.c.reason)
    )


async def _standing(connection: AsyncConnection) -> Standing:
    known = route.outerjoin(preference_state, true())
    columns = (preference_state.c.generation, preference_state.c.guarded, preference_state.c.funnels)
    found = await connection.execute(select(func.now(), route.c.generation, *columns).select_from(known))
    now, route_generation, generation, guarded, sums = found.one()
    funnels = None if sums is None else {key == "true": Funnel.model_validate(sum) for key, sum in sums.items()}
    return Standing(now, generation or 0, route_generation, guarded, funnels)


# --- votes --------------------------------------------------------------------------------------------


def _alternatives(wanted: Wanted, thumbs: bool) -> list[ColumnElement[bool]]:
    """What is wanted as conditions that exclude each other, each of which an index serves."""
    in_none, held_up = vote_fates.c.pair_id.is_(None), preference_pairs.c.left_out.is_not(None)
    alone, counts = preference_pairs.c.alone.is_not(None), preference_pairs.c.left_out.is_(None)
    if wanted.reason is not None:
        reason = wanted.reason.value
        because = [vote_fates.c.reason == reason, preference_pairs.c.left_out == reason]
        if not thumbs:
            because = [because[0], and_(because[1], ~alone), preference_pairs.c.alone == reason]
        return because if wanted.status in (None, "left_out") else []
    match wanted.status:
        case None:
            return [true()]
        case "paired":
            return [and_(vote_fates.c.pair_id.is_not(None), ~alone, counts)]
        case "thumb":
            return [and_(alone, counts)] if thumbs else []
        case "left_out":
            return [in_none, held_up] if thumbs else [in_none, and_(held_up, ~alone), alone]


def _found(wanted: Wanted, alternative: ColumnElement[bool], limit: int, after: int | None) -> Select[Any]:
    statement = (
        select(vote_fates.c.seq)
        .join(feedback, feedback.c.seq == vote_fates.c.seq)
        .outerjoin(preference_pairs, preference_pairs.c.id == vote_fates.c.pair_id)
        .where(alternative)
        .order_by(vote_fates.c.seq.desc())
        .limit(limit)
    )
    if after is not None:
        statement = statement.where(vote_fates.c.seq < after)
    if wanted.app is not None:
        statement = statement.where(vote_fates.c.app == wanted.app)
    if wanted.user is not None:
        statement = statement.where(feedback.c.user == wanted.user)
    if wanted.tag is not None:  # the second condition lets the index of votes with tags serve
        statement = statement.where(feedback.c.tags.op("@>")(texts([wanted.tag])), text("feedback.tags <> '{}'"))
    if wanted.source is not None:
        statement = statement.where(preference_pairs.c.source == wanted.source.value)
    return statement


def _votes() -> Select[Any]:
    return (
        select(
            *(feedback.c[name] for name in _TOLD),
            *(vote_fates.c.pair_id, vote_fates.c.reason, completions.c.adapter),
            *(preference_pairs.c.source, preference_pairs.c.alone, preference_pairs.c.left_out),
        )
        .select_from(vote_fates)
        .join(feedback, feedback.c.seq == vote_fates.c.seq)
        .join(completions, completions.c.id == feedback.c.completion_id)
        .outerjoin(preference_pairs, preference_pairs.c.id == vote_fates.c.pair_id)
    )


def _told(row: Row[Any], thumbs: bool) -> dict[str, Any]:
    """A vote, and what became of it."""
    reason = row.reason or (row.alone if row.alone is not None and not thumbs else row.left_out)
    status: Status = "left_out" if reason is not None else "thumb" if row.alone is not None else "paired"
    vote = {name: getattr(row, name) for name in _TOLD}
    return vote | {
        "adapter": row.adapter,
        "status": status,
        "reason": reason,
        "pair_id": row.pair_id,
        "source": row.source,
    }
