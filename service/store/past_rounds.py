"""What the last rounds took: tokens, seconds and memory, for an estimate of the next one. Reads only."""

from __future__ import annotations

from sqlalchemy import text

from service.estimates import Past
from service.postgres.sessions import Sessions

LOOKED_AT = 10  # rounds

# A round that went on from a checkpoint has not measured its whole training, and one of a candidate trained nothing.
_PAST = text("""
    WITH past AS (
        SELECT n, report, settings FROM rounds
        WHERE report IS NOT NULL AND candidate IS NULL AND report ->> 'resumed_from' IS NULL
            AND jsonb_array_length(report -> 'steps') > 0
        ORDER BY n DESC LIMIT :limit
    ), state AS (
        SELECT round, data ->> 'state' AS state, lead(at) OVER (PARTITION BY round ORDER BY seq) - at AS time
        FROM round_events JOIN past ON past.n = round WHERE kind = 'state'
    ), spent AS (
        SELECT round, state, extract(epoch FROM sum(time))::float AS seconds
        FROM state WHERE time IS NOT NULL GROUP BY round, state
    )
    SELECT (report -> 'steps' -> -1 ->> 'num_tokens')::bigint AS tokens,
        ((report ->> 'pairs_trained')::bigint + (report ->> 'thumbs_trained')::bigint)
            * coalesce((settings ->> 'epochs')::bigint, 1) AS examples,
        report -> 'seconds' AS phases,
        (report ->> 'peak_bytes')::bigint AS memory_bytes,
        (SELECT coalesce(jsonb_object_agg(state, seconds), '{}') FROM spent WHERE round = n) AS states
    FROM past
""")


class PastRounds:
    def __init__(self, sessions: Sessions) -> None:
        self._sessions = sessions

    async def last(self, limit: int = LOOKED_AT) -> list[Past]:
        """The newest first; those that trained an adapter from their first step to their last."""
        async with self._sessions.transaction() as connection:
            return [Past(**row._mapping) for row in await connection.execute(_PAST, {"limit": limit})]
