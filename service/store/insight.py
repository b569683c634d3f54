"""Votes as counts, for the data report: every query groups, so that what comes back is small however many there are.

An effective vote is one that has a fate (`vote_fates`), so that report and funnel speak of the same votes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from datetime import datetime

from sqlalchemy import TextClause, text
from sqlalchemy.ext.asyncio import AsyncConnection

from service.contracts import RoundState
from service.postgres.sessions import Sessions
from service.report.evidence import DayVotes, SliceKind, SliceVotes, VoteFacts
from service.report.formulas import Unit
from training.contracts import TRAIN

MOST_TAGS = 1000  # whoever votes may invent tags; the rarer ones do not come back

_THUMBS = "count(*) FILTER (WHERE rating = 'up') AS up, count(*) FILTER (WHERE rating = 'down') AS down"

_ROOM = text("SET LOCAL work_mem = '64MB'")  # so that what is sorted and hashed below stays in memory

_DAYS = text(f"""
    SELECT (created_at AT TIME ZONE 'UTC')::date AS day, {_THUMBS},
        count(*) FILTER (WHERE kind = 'comparison') AS comparisons,
        count(*) FILTER (WHERE kind = 'correction') AS corrections
    FROM feedback JOIN vote_fates USING (seq)
    WHERE created_at >= :since
    GROUP BY day ORDER BY day
""")

_PEOPLE = text("""
    SELECT amount, "user" = '' AS unnamed, count(*) AS people
    FROM (
        SELECT "user", count(*) AS amount FROM feedback JOIN vote_fates USING (seq) GROUP BY feedback.app, "user"
    ) AS person
    GROUP BY amount, unnamed
""")

_APPS_AND_ADAPTERS = text(f"""
    SELECT feedback.app, adapter, count(*) AS votes, {_THUMBS}
    FROM feedback JOIN vote_fates USING (seq) JOIN completions ON completions.id = completion_id
    GROUP BY feedback.app, adapter
""")

_TAGS = text(f"""
    SELECT tag, count(*) AS votes, {_THUMBS}
    FROM feedback JOIN vote_fates USING (seq), LATERAL (SELECT DISTINCT unnest(tags) AS tag) AS tagged
    GROUP BY tag ORDER BY votes DESC, tag LIMIT {MOST_TAGS}
""")

# Samples with the very same text are one answer. Of a person the last word on it counts; the unnamed may be many.
_RATED = text("""
    WITH word AS (
        SELECT feedback.app, feedback.prompt_digest, "user", rating, seq, coalesce(md5(text), target) AS answer,
            CASE "user" WHEN '' THEN target END AS sample
        FROM feedback JOIN vote_fates USING (seq) JOIN choices USING (completion_id, choice_index)
        WHERE kind = 'rating'
    ), last_word AS (
        SELECT DISTINCT ON (app, prompt_digest, answer, "user", sample) app, prompt_digest, answer, rating
        FROM word ORDER BY app, prompt_digest, answer, "user", sample, seq DESC
    ), unit AS (
        SELECT count(*) FILTER (WHERE rating = 'up') AS up, count(*) FILTER (WHERE rating = 'down') AS down
        FROM last_word GROUP BY app, prompt_digest, answer HAVING count(*) > 1
    )
    SELECT up, down, count(*) AS units FROM unit GROUP BY up, down
""")

_COMPARED = text("""
    WITH unit AS (
        SELECT
            count(*) FILTER (
                WHERE NOT tie AND (completion_id, choice_index) < (rival_completion_id, rival_choice_index)
            ) AS first,
            count(*) FILTER (
                WHERE NOT tie AND (completion_id, choice_index) > (rival_completion_id, rival_choice_index)
            ) AS other,
            count(*) FILTER (WHERE tie) AS neither
        FROM feedback JOIN vote_fates USING (seq) WHERE kind = 'comparison'
        GROUP BY feedback.app, target HAVING count(*) > 1
    )
    SELECT first, other, neither, count(*) AS units FROM unit GROUP BY first, other, neither
""")

# Over the whole history: what one person said of one thing, one time after the other. A corrected text that is
# corrected again is no change of mind.
_CONSTANCY = text("""
    WITH word AS (
        SELECT target, "user", kind, seq,
            CASE WHEN kind = 'rating' THEN rating WHEN tie THEN 'tie' ELSE completion_id || '/' || choice_index END
                AS says
        FROM feedback WHERE "user" <> '' AND kind <> 'correction'
    ), spoken AS (
        SELECT says, lag(says) OVER (PARTITION BY target, "user", kind ORDER BY seq) AS before FROM word
    )
    SELECT count(before) AS repeats, count(*) FILTER (WHERE says <> before) AS changes FROM spoken
""")

_HISTORY = text("SELECT count(*) AS written, count(*) FILTER (WHERE retracted) AS retracted FROM feedback")

_LEARNED = text("""
    WITH prompt AS (
        SELECT id, completions.prompt_digest
        FROM unnest(CAST(:apps AS text[]), CAST(:digests AS text[])) AS wanted (app, prompt_digest)
        JOIN completions USING (app, prompt_digest)
    ), learned AS (
        SELECT chosen_completion_id, rejected_completion_id
        FROM round_pairs JOIN rounds ON rounds.n = round_pairs.round
        WHERE state = :promoted AND split = :train
    )
    SELECT prompt_digest FROM prompt JOIN learned ON chosen_completion_id = id
    UNION SELECT prompt_digest FROM prompt JOIN learned ON rejected_completion_id = id
""")


class Insight:
    """Reads only."""

    def __init__(self, sessions: Sessions) -> None:
        self._sessions = sessions

    async def votes(self, since: datetime) -> VoteFacts:
        """All effective votes; day by day those `since` then."""
        async with self._sessions.transaction() as connection:
            await connection.execute(_ROOM)
            days = await connection.execute(_DAYS, {"since": since})
            people = (await connection.execute(_PEOPLE)).all()
            constancy = (await connection.execute(_CONSTANCY)).one()
            history = (await connection.execute(_HISTORY)).one()
            return VoteFacts(
                days=[DayVotes(**row._mapping) for row in days],
                slices=await _slices(connection),
                people_of={row.amount: row.people for row in people if not row.unnamed},
                unnamed=sum(row.amount * row.people for row in people if row.unnamed),
                rated=await _units(connection, _RATED),
                compared=await _units(connection, _COMPARED),
                repeats=constancy.repeats,
                changes=constancy.changes,
                written=history.written,
                retracted=history.retracted,
            )

    async def learned_prompts(self, prompts: Iterable[tuple[str, str]]) -> set[str]:
        """Those of these prompts, each an app and a digest, on which a promoted round has trained: their digests."""
        wanted = sorted(set(prompts))
        values = {
            "apps": [app for app, _ in wanted],
            "digests": [digest for _, digest in wanted],
            "promoted": RoundState.PROMOTED.value,
            "train": TRAIN,
        }
        async with self._sessions.transaction() as connection:
            return set((await connection.execute(_LEARNED, values)).scalars())


async def _slices(connection: AsyncConnection) -> list[SliceVotes]:
    """By app, by adapter and by tag. An answer has one app and one adapter, so those two come from one query."""
    sums: dict[tuple[SliceKind, str], Counter[str]] = {}
    for row in await connection.execute(_APPS_AND_ADAPTERS):
        keys: tuple[tuple[SliceKind, str], ...] = (("app", row.app), ("adapter", row.adapter))
        for key in keys:
            sums.setdefault(key, Counter()).update(votes=row.votes, up=row.up, down=row.down)
    parts = [SliceVotes(kind, name, of["votes"], of["up"], of["down"]) for (kind, name), of in sums.items()]
    tags = await connection.execute(_TAGS)
    return parts + [SliceVotes("tag", row.tag, row.votes, row.up, row.down) for row in tags]


async def _units(connection: AsyncConnection, query: TextClause) -> dict[Unit, int]:
    """What was judged twice or more: its votes by category, and how many have just those."""
    return {tuple(row)[:-1]: row.units for row in await connection.execute(query)}
