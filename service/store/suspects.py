"""What detectors see of votes, and what they held back: read and written while a batch of prompts is matched.

An item of the quarantine is one suspicion about one user of one app. While it is held, that user's later votes join it.
The functions work in their caller's transaction.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from datetime import datetime

from sqlalchemy import and_, any_, exists, func, insert, select, text
from sqlalchemy.dialects.postgresql import insert as upsert
from sqlalchemy.ext.asyncio import AsyncConnection
from sqlalchemy.sql.elements import ColumnElement
from sqlalchemy.sql.selectable import TableValuedAlias

from service.curation.quarantine import Suspicion, Trace
from service.postgres.arrays import as_table, seqs, texts
from service.store.feedback import NO_USER
from service.store.said import SLOT, as_vote
from service.store.tables import (
    choices,
    completions,
    feedback,
    quarantine,
    quarantined_votes,
    stale_prompts,
    vote_fates,
)
from service.votes import Vote

UserKey = tuple[str, str]  # (app, user)
HELD, RELEASED, DROPPED = "held", "released", "dropped"
_JOINED = ("burst", "user_dominance", "phrase_dominance")  # while held, whatever the user says next is held too
_TEXT_SEEN = 4000  # characters of an answer that detectors see


def trace(vote: Vote, target: str, changes: int, adapter: str, answer: str | None) -> Trace:
    """A vote as detectors see it. `answer`: the text that it is on."""
    seen = answer if vote.correction is None else vote.correction
    return Trace(
        seq=vote.seq,
        app=vote.app,
        user=vote.user,
        kind=vote.kind,
        rating=vote.rating,
        target=target,
        choice=vote.choice,
        adapter=adapter,
        voted_at=vote.voted_at,
        text=None if seen is None else seen[:_TEXT_SEEN],
        changes=changes,
    )


async def recent(connection: AsyncConnection, app: str, since: datetime, most: int) -> list[Trace]:
    """The app's latest effective votes since then, all users', at most so many; by `seq`. Without what an operator has
    looked at and released, which is no evidence any more."""
    later = feedback.alias("later")
    replaced = exists().where(*(later.c[name] == feedback.c[name] for name in SLOT), later.c.seq > feedback.c.seq)
    latest = (
        select(feedback)
        .where(feedback.c.app == app, feedback.c.created_at >= since, feedback.c.user != NO_USER)
        .where(~feedback.c.retracted, ~replaced, ~_in_item(feedback.c.seq, RELEASED))
        .order_by(feedback.c.seq.desc())
        .limit(most)
        .subquery("latest")
    )
    times = select(func.count()).where(*(later.c[name] == latest.c[name] for name in SLOT)).scalar_subquery()
    same = and_(*(choices.c[name] == latest.c[name] for name in ("completion_id", "choice_index")))
    found = await connection.execute(
        select(
            latest,
            (times - 1).label("changes"),
            completions.c.adapter,
            func.left(choices.c.text, _TEXT_SEEN).label("answer"),
        )
        .join(choices, same)
        .join(completions, completions.c.id == latest.c.completion_id)
        .order_by(latest.c.seq)
    )
    return [trace(as_vote(row), row.target, row.changes, row.adapter, row.answer) for row in found]


async def join(connection: AsyncConnection, votes: Iterable[Trace]) -> None:
    """New votes of users who are under suspicion already are held with their earlier ones."""
    of_user: dict[UserKey, list[int]] = {}
    for vote in votes:
        if vote.user is not None:
            of_user.setdefault((vote.app, vote.user), []).append(vote.seq)
    person = _people(of_user)
    found = await connection.execute(
        select(quarantine.c.id, quarantine.c.app, quarantine.c.user)
        .join(person, (person.c.app == quarantine.c.app) & (person.c.user == quarantine.c.user))
        .where(quarantine.c.status == HELD, quarantine.c.kind.in_(_JOINED))
    )
    for id, app, user in found.all():
        await _add(connection, id, of_user[app, user])


async def hold(connection: AsyncConnection, suspicion: Suspicion) -> None:
    """Opens the item, or adds to the one that is open for the same kind and user; what was dropped stays dropped."""
    found = await connection.execute(
        select(feedback.c.seq).where(feedback.c.seq == any_(seqs(suspicion.votes)), ~_in_item(feedback.c.seq, DROPPED))
    )
    votes = list(found.scalars())
    if not votes:
        return
    told = {"why": suspicion.why, "evidence": suspicion.evidence}
    opened = await connection.execute(
        upsert(quarantine)
        .values(kind=suspicion.kind, app=suspicion.app, user=suspicion.user, **told)
        .on_conflict_do_update(
            index_elements=[quarantine.c.kind, quarantine.c.app, quarantine.c.user],
            index_where=text("status = 'held'"),
            set_=told,
        )
        .returning(quarantine.c.id)
    )
    await _add(connection, opened.scalar_one(), votes)


async def held_and_dropped(connection: AsyncConnection, votes: Sequence[int]) -> tuple[set[int], set[int]]:
    """Of these votes, those that are held or dropped, and of them those that are dropped."""
    found = await connection.execute(
        select(quarantined_votes.c.seq, quarantine.c.status)
        .join(quarantine)
        .where(quarantined_votes.c.seq == any_(seqs(votes)))
        .where(quarantine.c.status != RELEASED)
    )
    rows = found.all()
    return {seq for seq, _ in rows}, {seq for seq, status in rows if status == DROPPED}


async def _add(connection: AsyncConnection, id: int, votes: Sequence[int]) -> None:
    rows = [{"quarantine_id": id, "seq": seq} for seq in votes]
    added = await connection.execute(
        upsert(quarantined_votes).on_conflict_do_nothing().returning(quarantined_votes.c.seq), rows
    )
    # A vote that was matched before it was held: what followed from it does so no longer.
    held = any_(seqs(added.scalars()))
    prompts = select(vote_fates.c.app, vote_fates.c.prompt_digest).where(vote_fates.c.seq == held).distinct()
    await connection.execute(insert(stale_prompts).from_select(["app", "prompt_digest"], prompts))


def _in_item(seq: ColumnElement[int], status: str) -> ColumnElement[bool]:
    """The vote is in an item that stands so."""
    return exists().where(
        quarantined_votes.c.seq == seq,
        quarantine.c.id == quarantined_votes.c.quarantine_id,
        quarantine.c.status == status,
    )


def _people(users: Collection[UserKey]) -> TableValuedAlias:
    return as_table("person", app=texts(app for app, _ in users), user=texts(user for _, user in users))
