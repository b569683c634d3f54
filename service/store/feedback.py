"""Votes as they came in. Every vote is a new row and none is ever changed, but for the mark that it was retracted.

The effective vote of a user on a target is the one with the highest `seq`; which pairs follow from the effective
votes is `service/preferences.py`'s to say. Every write says in its own transaction which prompt is to be matched anew.

Votes that arrive together are committed together: a commit waits for the disk, and the statements cost the same for
one vote as for a hundred.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from typing import Any

from sqlalchemy import text

from service.errors import NotFound
from service.keeping.redaction import KEEP_ALL, Redactor
from service.postgres.group_commit import GroupCommit
from service.postgres.sessions import Pipeline, Sessions
from service.store.vote_rows import NO_USER, Answered, IncomingVote, Kept, Recorded, decide, incoming
from service.tokens import Grant
from service.votes import ChoiceKey, FeedbackBody, FeedbackReceipt

__all__ = ["NO_USER", "Feedback"]

MOST_VOTES = 128  # in one transaction: each takes two locks, and PostgreSQL has some 6,000 for all processes

# Votes on one target are written one after the other, so that the order of `seq` is the order of the commits; so are
# votes with one feedback_id. Everybody takes the locks in the same order, so nobody waits in a circle.
_LOCK = "SELECT count(pg_advisory_xact_lock(number)) FROM unnest(CAST(%(numbers)s AS bigint[])) AS number"

# Locked against deletion, so that the votes below find what they refer to. What an erasure holds is passed over: no
# other vote is to wait for it.
_CHOICES = """
    SELECT choices.completion_id, choices.choice_index, completions.app, completions.adapter, completions.prompt_digest
    FROM unnest(CAST(%(completion_ids)s AS text[]), CAST(%(choice_indices)s AS integer[]))
        AS wanted (completion_id, choice_index)
    JOIN choices USING (completion_id, choice_index)
    JOIN completions ON completions.id = choices.completion_id
    FOR KEY SHARE OF choices SKIP LOCKED
"""

_EXISTING = """
    SELECT completion_id, choice_index
    FROM unnest(CAST(%(completion_ids)s AS text[]), CAST(%(choice_indices)s AS integer[]))
        AS wanted (completion_id, choice_index)
    JOIN choices USING (completion_id, choice_index)
"""

_KEPT = """
    SELECT kept.app, kept.feedback_id, kept.body_sha256, NOT kept.retracted AND NOT EXISTS (
        SELECT FROM feedback AS later
        WHERE later.target = kept.target AND later."user" = kept."user" AND later.kind = kept.kind
            AND later.app = kept.app AND later.seq > kept.seq
    ) AS effective
    FROM unnest(CAST(%(apps)s AS text[]), CAST(%(feedback_ids)s AS text[])) AS wanted (app, feedback_id)
    JOIN feedback AS kept USING (app, feedback_id)
"""

# `seq` counts in the order of the array.
_WRITE = """
    WITH written AS (
        INSERT INTO feedback (feedback_id, app, completion_id, choice_index, "user", kind, target, rating,
            rival_completion_id, rival_choice_index, tie, correction, comment, tags, prompt_digest, body_sha256)
        SELECT * FROM json_to_recordset(CAST(%(votes)s AS json)) AS vote (feedback_id text, app text, completion_id text,
            choice_index integer, "user" text, kind text, target text, rating text, rival_completion_id text,
            rival_choice_index integer, tie boolean, correction text, comment text, tags text[], prompt_digest text,
            body_sha256 text)
        RETURNING app, prompt_digest
    )
    INSERT INTO stale_prompts (app, prompt_digest) SELECT DISTINCT app, prompt_digest FROM written
"""

_RETRACT = text("""
    WITH found AS (
        SELECT seq FROM feedback
        WHERE app = :app AND feedback_id = :feedback_id
            AND (CAST(:completion_id AS text) IS NULL OR (completion_id = :completion_id AND "user" = :user))
    ), retracted AS (
        UPDATE feedback SET retracted = true FROM found WHERE feedback.seq = found.seq AND NOT retracted
        RETURNING app, prompt_digest
    ), stale AS (
        INSERT INTO stale_prompts (app, prompt_digest) SELECT app, prompt_digest FROM retracted
    )
    SELECT count(*) FROM found
""")


class Feedback:
    def __init__(self, sessions: Sessions, redact: Redactor = KEEP_ALL) -> None:
        self._sessions = sessions
        self._redact = redact
        self._votes: GroupCommit[IncomingVote, Recorded] = GroupCommit(self._write, most=MOST_VOTES)

    async def put(self, app: str, body: FeedbackBody) -> tuple[FeedbackReceipt, bool]:
        """Records a vote: its receipt, and whether it is new. Durable when it returns (invariant 4).

        A repeated `feedback_id` with the same body answers with the first receipt and False; with another body it
        raises `Conflict`. Raises `NotFound` for a choice that this app was never given, `BadRequest` (code
        `different_prompts`) for a comparison of answers to different prompts. After `Unavailable` the vote may be
        recorded or not; sending it again is right in both cases.
        """
        if self._redact is KEEP_ALL:
            vote = incoming(app, body, self._redact)
        else:  # a hook may take its time, and other requests are due
            vote = await asyncio.to_thread(incoming, app, body, self._redact)
        return await self._votes.submit(vote)

    async def retract(self, app: str, feedback_id: str, grant: Grant | None = None) -> None:
        """Takes a vote back; again changes nothing. An older vote of the same user does not come back.

        Raises `NotFound` for a vote that this app never sent, or that the grant, if there is one, does not cover.
        """
        named = {"app": app, "feedback_id": feedback_id, "completion_id": None, "user": None}
        if grant is not None:
            named |= {"completion_id": grant.completion_id, "user": grant.user or NO_USER}
        async with self._sessions.transaction() as connection:
            if (await connection.execute(_RETRACT, named)).scalar_one() == 0:
                raise NotFound(
                    f"This app has sent no feedback '{feedback_id}'.", param="feedback_id", code="feedback_not_found"
                )

    async def close(self) -> None:
        """Returns when every vote has its answer."""
        await self._votes.close()

    async def _write(self, votes: Sequence[IncomingVote]) -> Sequence[Recorded | Exception]:
        """One transaction for all of them. What cannot be recorded is answered with its error and stops no other.

        Two round trips: the statements up to the first answer, then the write with its commit.
        """
        async with self._sessions.pipeline() as connection:
            await connection.execute(_LOCK, {"numbers": sorted({number for vote in votes for number in vote.locks()})})
            wanted = {choice for vote in votes for choice in vote.choices}
            found = await connection.execute(_CHOICES, _columns(wanted, "completion_ids", "choice_indices"))
            chosen_by_clients = {vote.key for vote in votes if vote.body.feedback_id is not None}
            recorded = await connection.execute(_KEPT, _columns(chosen_by_clients, "apps", "feedback_ids"))
            choices = {(id, index): Answered(*rest) async for id, index, *rest in found}
            kept = {(app, id): Kept(*rest) async for app, id, *rest in recorded}
            held = await _held(connection, wanted - choices.keys())
            answers, rows = decide(votes, choices, held, kept)
            if rows:
                await connection.execute(_WRITE, {"votes": json.dumps(rows)})
        return answers


async def _held(connection: Pipeline, missing: set[ChoiceKey]) -> set[ChoiceKey]:
    """Those that are there, but are being erased."""
    if not missing:
        return set()
    found = await connection.execute(_EXISTING, _columns(missing, "completion_ids", "choice_indices"))
    return {(id, index) async for id, index in found}


def _columns(pairs: set[tuple[str, Any]], first: str, second: str) -> dict[str, list[Any]]:
    """As PostgreSQL's `unnest` takes rows: an array for each column."""
    return {first: [pair[0] for pair in pairs], second: [pair[1] for pair in pairs]}
