"""Erasing a person from the store: what they asked, were answered and said, and all that was made of it.

Their rows are deleted, not emptied. What each round has taken stays on record as ids, which hold nobody's words, so
that it can still be told which adapters have learned from it.

No statement finds a deleted row again. Its bytes stay in PostgreSQL's own files for a while: in a table's free space,
which VACUUM gives back to be written over (VACUUM FULL writes the table anew without it), in the write-ahead log until
its files are used again, and in every backup that was made before.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from service.postgres.sessions import Sessions
from service.preferences import voter
from service.store.pairs import turn
from training.contracts import TRAIN

ERASE_SECONDS = 600.0  # that a statement may take
_TOUCHED = "feedback, choices, completions, preference_pairs, vote_fates, quarantine, quarantined_votes"

_THEIR_COMPLETIONS = text("""
    SELECT id, app, prompt_digest FROM completions
    WHERE "user" = :user AND (CAST(:app AS text) IS NULL OR app = :app)
    ORDER BY id
""")

# Theirs, and everybody's on their completions.
_VOTES = text("""
    SELECT seq, app, prompt_digest, completion_id, rival_completion_id FROM feedback
    WHERE "user" = :user AND (CAST(:app AS text) IS NULL OR app = :app)
    UNION
    SELECT seq, app, prompt_digest, completion_id, rival_completion_id FROM feedback
    WHERE completion_id = ANY(:completions)
    UNION
    SELECT seq, app, prompt_digest, completion_id, rival_completion_id FROM feedback
    WHERE rival_completion_id = ANY(:completions)
""")

_PAIRS = text("""
    SELECT id FROM preference_pairs JOIN (
        SELECT DISTINCT * FROM unnest(CAST(:apps AS text[]), CAST(:prompts AS text[])) AS prompt (app, prompt_digest)
    ) AS prompt USING (app, prompt_digest)
    WHERE chosen_completion_id = ANY(:completions) OR rejected_completion_id = ANY(:completions)
        OR votes && CAST(:votes AS bigint[])
""")

_TAKEN = text("""
    SELECT pair_id, round, split FROM round_pairs
    WHERE (chosen_completion_id = ANY(:answers) OR rejected_completion_id = ANY(:answers)) AND (
        chosen_completion_id = ANY(:completions) OR rejected_completion_id = ANY(:completions)
        OR votes && CAST(:votes AS bigint[]))
""")

# In this order. What is held for several people's sake stays held, without the words that made it suspicious.
_DELETE = {
    "stale prompts": """
        INSERT INTO stale_prompts (app, prompt_digest)
        SELECT DISTINCT * FROM unnest(CAST(:apps AS text[]), CAST(:prompts AS text[]))""",
    "quarantine": """
        DELETE FROM quarantine WHERE "user" = :user AND (CAST(:app AS text) IS NULL OR app = :app)""",
    "evidence": """
        UPDATE quarantine SET evidence = '{"erased": true}', why = 'The person whose words it quoted was erased.'
        WHERE id IN (SELECT quarantine_id FROM quarantined_votes WHERE seq = ANY(:votes))""",
    "pairs": "DELETE FROM preference_pairs WHERE id = ANY(:pairs)",
    "votes": "DELETE FROM feedback WHERE seq = ANY(:votes)",
    "choices": "DELETE FROM choices WHERE completion_id = ANY(:completions)",
    "completions": "DELETE FROM completions WHERE id = ANY(:completions)",
}
COUNTED = ("completions", "votes", "pairs", "quarantine")


@dataclass(frozen=True)
class Traces:
    """How a person's rows are known again in files, and who has learned from them."""

    pair_ids: frozenset[str]  # of the pairs that are made of their answers or of votes that go
    prompt_digests: frozenset[str]  # of their completions
    voters: frozenset[str]
    trained_by: frozenset[int]  # the rounds that took such pairs to train on


class Erasure:
    def __init__(self, sessions: Sessions) -> None:
        self._sessions = sessions

    async def traces(self, user: str, app: str | None) -> Traces:
        """What there is of this person now."""
        async with self._sessions.transaction(statement_seconds=ERASE_SECONDS) as connection:
            return (await _find(connection, user, app))[0]

    @asynccontextmanager
    async def erase(self, user: str, app: str | None) -> AsyncIterator[tuple[AsyncConnection, Traces, dict[str, int]]]:
        """All of this person, in one app or in all (None), is gone when the block ends, and still there if it raises.

        Gives the transaction, what there was, and how many rows: the names in `COUNTED`. Until it ends nobody can
        vote on their completions.
        """
        async with self._sessions.transaction(statement_seconds=ERASE_SECONDS) as connection:
            await turn(connection)  # before any row is locked: matching takes both in this order
            await _lock(connection, user, app)
            traces, named = await _find(connection, user, app)
            named |= {"pairs": sorted(traces.pair_ids)}
            counts = {}
            for what, statement in _DELETE.items():
                used = {name: value for name, value in named.items() if f":{name}" in statement}
                counts[what] = (await connection.execute(text(statement), used)).rowcount
            yield connection, traces, {what: counts[what] for what in COUNTED}

    async def vacuum(self) -> None:
        """Frees the space of deleted rows, to be written over. Raises `Unavailable`; it then happens by itself later."""
        async with self._sessions.statements(statement_seconds=ERASE_SECONDS) as connection:
            await connection.exec_driver_sql(f"VACUUM {_TOUCHED}")


async def with_verdict(connection: AsyncConnection, rounds: Collection[int]) -> list[int]:
    """Those of these rounds that have learned something: they neither failed nor were cancelled. In order."""
    found = await connection.execute(
        text("SELECT n FROM rounds WHERE n = ANY(:n) AND state NOT IN ('failed', 'cancelled') ORDER BY n"),
        {"n": list(rounds)},
    )
    return list(found.scalars())


async def _lock(connection: AsyncConnection, user: str, app: str | None) -> None:
    """A vote on one of their completions waits for the end of the transaction, and then finds nothing to vote on."""
    await connection.execute(
        text("""
            SELECT FROM choices JOIN completions ON completions.id = choices.completion_id
            WHERE "user" = :user AND (CAST(:app AS text) IS NULL OR app = :app) FOR UPDATE OF choices"""),
        {"user": user, "app": app},
    )


async def _find(connection: AsyncConnection, user: str, app: str | None) -> tuple[Traces, dict[str, Any]]:
    """The traces, and the parameters of the statements that delete what left them."""
    named: dict[str, Any] = {"user": user, "app": app}
    asked = (await connection.execute(_THEIR_COMPLETIONS, named)).all()
    named["completions"] = [row.id for row in asked]
    votes = (await connection.execute(_VOTES, named)).all()
    rated = {id for row in votes for id in (row.completion_id, row.rival_completion_id) if id is not None}
    prompts = [(row.app, row.prompt_digest) for row in (*asked, *votes)]
    named |= {
        "votes": [row.seq for row in votes],
        "answers": sorted({*named["completions"], *rated}),
        "apps": [app for app, _ in prompts],
        "prompts": [digest for _, digest in prompts],
    }
    pairs = (await connection.execute(_PAIRS, named)).scalars().all()
    taken = (await connection.execute(_TAKEN, named)).all()
    return Traces(
        pair_ids=frozenset((*pairs, *(row.pair_id for row in taken))),
        prompt_digests=frozenset(row.prompt_digest for row in asked),
        voters=frozenset(voter(name, user) for name in ({name for name, _ in prompts} if app is None else {app})),
        trained_by=frozenset(row.round for row in taken if row.split == TRAIN),
    ), named
