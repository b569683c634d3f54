"""Deleting what is past its time, a batch at a time, so that nobody waits long for a lock.

A completion that votes speak of keeps its row and the digest of its prompt, without anybody's words; one that no vote
speaks of goes. Ages are told by the database's own clock.
"""

from __future__ import annotations

from sqlalchemy import TextClause, exc, text

from service.postgres.sessions import Sessions
from service.store.pairs import turn

MOST_AT_ONCE = 1000  # completions, or votes

_FORGET = text("""
    WITH old AS (
        SELECT id FROM completions
        WHERE created_at < now() - make_interval(days => :days)
            AND (messages IS NOT NULL OR prompt_token_ids IS NOT NULL OR "user" IS NOT NULL OR metadata <> '{}'
                OR EXISTS (SELECT FROM choices WHERE completion_id = completions.id
                    AND (text IS NOT NULL OR token_ids IS NOT NULL)))
        ORDER BY created_at LIMIT :most
        FOR UPDATE SKIP LOCKED
    ), emptied AS (
        UPDATE choices SET text = NULL, token_ids = NULL FROM old WHERE completion_id = old.id
    ), forgotten AS (
        UPDATE completions
        SET messages = NULL, prompt_token_ids = NULL, "user" = NULL, metadata = '{}', sampling = '{}'
        FROM old WHERE completions.id = old.id
        RETURNING completions.id, app, prompt_digest
    ), stale AS (
        INSERT INTO stale_prompts (app, prompt_digest)
        SELECT DISTINCT app, prompt_digest FROM forgotten WHERE EXISTS (
            SELECT FROM feedback WHERE feedback.app = forgotten.app
                AND feedback.prompt_digest = forgotten.prompt_digest)
    )
    SELECT count(*) FROM forgotten
""")

_DROP_UNVOTED = text("""
    WITH old AS (
        SELECT id FROM completions
        WHERE created_at < now() - make_interval(days => :days)
            AND NOT EXISTS (SELECT FROM feedback WHERE completion_id = completions.id)
            AND NOT EXISTS (SELECT FROM feedback WHERE rival_completion_id = completions.id)
        ORDER BY created_at LIMIT :most
        FOR UPDATE SKIP LOCKED
    ), answers AS (
        DELETE FROM choices USING old WHERE completion_id = old.id
    ), dropped AS (
        DELETE FROM completions USING old WHERE completions.id = old.id RETURNING completions.id
    )
    SELECT count(*) FROM dropped
""")

_DROP_VOTES = text("""
    WITH old AS (
        SELECT seq FROM feedback WHERE created_at < now() - make_interval(days => :days)
        ORDER BY created_at LIMIT :most
        FOR UPDATE SKIP LOCKED
    ), dropped AS (
        DELETE FROM feedback USING old WHERE feedback.seq = old.seq RETURNING app, prompt_digest
    ), stale AS (
        INSERT INTO stale_prompts (app, prompt_digest) SELECT DISTINCT app, prompt_digest FROM dropped
    )
    SELECT count(*) FROM dropped
""")

_OVER = text("""
    SELECT n FROM rounds
    WHERE state IN ('promoted', 'rejected', 'failed', 'cancelled')
        AND updated_at < now() - make_interval(days => :days)
    ORDER BY n
""")


class Retention:
    """Each method goes on until nothing is left that is old enough, and says how much it was."""

    def __init__(self, sessions: Sessions) -> None:
        self._sessions = sessions

    async def drop_unvoted_completions(self, days: int) -> int:
        """Answers that no vote speaks of."""
        return await self._all(_DROP_UNVOTED, days)

    async def forget_completions(self, days: int) -> int:
        """Who asked what, and what was answered; the row stays."""
        return await self._all(_FORGET, days)

    async def drop_votes(self, days: int) -> int:
        """With their comments and corrections. An older vote never comes back by it: that one is older still."""
        return await self._all(_DROP_VOTES, days)

    async def rounds_over(self, days: int) -> list[int]:
        """The rounds that have been over for so long."""
        async with self._sessions.transaction() as connection:
            return list((await connection.execute(_OVER, {"days": days})).scalars())

    async def _all(self, statement: TextClause, days: int) -> int:
        total, named = 0, {"days": days, "most": MOST_AT_ONCE}
        while True:
            try:
                async with self._sessions.transaction() as connection:
                    await turn(connection)  # before any row is locked: matching takes both in this order
                    count = (await connection.execute(statement, named)).scalar_one()
            except exc.IntegrityError:  # a late vote came on an answer that was just to go; the next look sees it
                return total
            total += count
            if count < MOST_AT_ONCE:
                return total
