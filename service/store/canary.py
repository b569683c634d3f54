"""What is known of a canary's answers: completions, votes and errors, counted by the database.

Only requests that left the choice to the route (`policy`) count: who named an adapter was not drawn. Users, else
conversations, else requests are counted, as `serving/routing.py` draws them. What a vote on an old answer says comes late
and counts all the same, in the step in which the answer was given.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import ARRAY, DateTime, Row, bindparam, text
from sqlalchemy.ext.asyncio import AsyncConnection

from service.canary.deciding import Counts, Evidence
from service.canary.harm import USUAL, Harm, Usual
from service.canary.power import Traffic
from service.canary.sequential import Stratum
from service.canary.state import CanaryState, Step
from service.gate.refusals import OPENING_CHARACTERS, POSTGRES_PATTERN
from service.postgres.sessions import Sessions
from serving.contracts import ROUTED

LEAST_USUAL = 50  # earlier answers, from which it is said what is usual

# As `serving.routing.sticky_key` has it.
_UNIT = """CASE WHEN c."user" <> '' THEN json_build_array('user', c.app, c."user")::text
    WHEN c.metadata->>'conversation_id' <> '' THEN json_build_array('conversation', c.app, c.metadata->>'conversation_id')::text
    ELSE c.id END"""

# A thumb down is the last of its user's thumbs on the answer, was not taken back, and nobody holds it for made up.
_DISLIKED = """EXISTS (
    SELECT FROM feedback AS f
    WHERE f.completion_id = c.id AND f.kind = 'rating' AND f.rating = 'down' AND NOT f.retracted
    AND NOT EXISTS (SELECT FROM feedback AS later WHERE later.target = f.target AND later."user" = f."user"
        AND later.kind = f.kind AND later.seq > f.seq)
    AND NOT EXISTS (SELECT FROM quarantined_votes AS held JOIN quarantine ON quarantine.id = held.quarantine_id
        WHERE held.seq = f.seq AND quarantine.status <> 'released'))"""

_ANSWER = f"""{_UNIT} AS unit, c.id, c.created_at, c.outcome = 'failed' AS failed, {_DISLIKED} AS disliked,
    coalesce(c.first_token_seconds > CAST(:slow AS float8), false) AS slow,
    coalesce(first.tokens > CAST(:long AS float8), false) AS long,
    coalesce(replace(left(first.text, {OPENING_CHARACTERS}), '’', '''') ~* :refusal, false) AS refused"""

_FIRST_CHOICE = "LEFT JOIN choices AS first ON first.completion_id = c.id AND first.choice_index = 0"

# Of a user's answers in one step, or hour: harm that comes seldom counts on any of them, the rest on the first.
_HARM_OF_UNIT = """bool_or(disliked) AS disliked, bool_or(failed) AS failed,
    (array_agg(refused ORDER BY created_at, id))[1] AS refused,
    (array_agg(slow ORDER BY created_at, id))[1] AS slow, (array_agg(long ORDER BY created_at, id))[1] AS long"""

_COUNTED = ", ".join(f"count(*) FILTER (WHERE {harm}) AS {harm}" for harm in Harm)

# Who was with the candidate before stays with it, which nobody draws again. Who was not is drawn from those who were not.
_STRATA = text(f"""
WITH step AS (
    SELECT * FROM unnest(:began, :ended) WITH ORDINALITY AS step (began, ended, number)
), answer AS (
    SELECT step.number AS step, c.adapter = :candidate AS candidate, {_ANSWER}
    FROM step JOIN completions AS c ON c.created_at >= step.began AND c.created_at < coalesce(step.ended, 'infinity')
    {_FIRST_CHOICE}
    WHERE c.adapter IN (:candidate, :stable) AND c.model = '{ROUTED}'
), unit AS (
    SELECT step, unit, bool_or(candidate) AS candidate, bool_or(candidate) <> bool_and(candidate) AS mixed, {_HARM_OF_UNIT}
    FROM answer GROUP BY step, unit
), drawn AS (
    SELECT *, max(step) OVER earlier AS before, coalesce(bool_or(candidate) OVER earlier, false) AS stayed
    FROM unit
    WINDOW earlier AS (PARTITION BY unit ORDER BY step ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING)
)
SELECT step, before, candidate, {_COUNTED} FROM drawn WHERE NOT stayed AND NOT mixed GROUP BY step, before, candidate
""").bindparams(bindparam("began", type_=ARRAY(DateTime(True))), bindparam("ended", type_=ARRAY(DateTime(True))))

_ASKED = text(f"""
SELECT now() AS now,
    count(DISTINCT unit) FILTER (WHERE adapter = :candidate) AS candidate,
    count(DISTINCT unit) FILTER (WHERE adapter = :stable) AS stable,
    count(*) FILTER (WHERE adapter = :candidate AND created_at >= :step_began) AS requests
FROM (
    SELECT {_UNIT} AS unit, c.adapter, c.created_at FROM completions AS c
    WHERE c.adapter IN (:candidate, :stable) AND c.model = '{ROUTED}' AND c.created_at >= :began
) AS asked
""")

_USUAL = text(f"""
SELECT count(first_token_seconds) AS timed, count(first.tokens) AS counted,
    percentile_cont({USUAL}) WITHIN GROUP (ORDER BY first_token_seconds) AS first_token_seconds,
    percentile_cont({USUAL}) WITHIN GROUP (ORDER BY first.tokens) AS tokens
FROM completions AS c {_FIRST_CHOICE}
WHERE c.adapter = :adapter AND c.model = '{ROUTED}' AND c.outcome = 'finished'
    AND c.created_at >= now() - CAST(:within AS interval)
""")

_OF_HOURS = text(f"""
WITH answer AS (
    SELECT date_trunc('hour', c.created_at) AS hour, {_ANSWER}
    FROM completions AS c {_FIRST_CHOICE}
    WHERE c.adapter = :adapter AND c.model = '{ROUTED}' AND c.created_at >= :since AND c.created_at < :until
), unit AS (
    SELECT hour, unit, {_HARM_OF_UNIT} FROM answer GROUP BY hour, unit
)
SELECT count(*) AS users, {_COUNTED} FROM unit
""")

_OF_TIME = text(f"""
WITH answer AS (
    SELECT {_ANSWER} FROM completions AS c {_FIRST_CHOICE}
    WHERE c.adapter = :adapter AND c.model = '{ROUTED}' AND c.created_at >= :since AND c.created_at < :until
), unit AS (
    SELECT unit, {_HARM_OF_UNIT} FROM answer GROUP BY unit
)
SELECT count(*) AS users, {_COUNTED} FROM unit
""")


class Canaries:
    def __init__(self, sessions: Sessions) -> None:
        self._sessions = sessions

    async def now(self) -> datetime:
        """By the clock that all processes share."""
        async with self._sessions.transaction() as connection:
            return (await connection.execute(text("SELECT now()"))).scalar_one()

    async def usual(self, adapter: str, within: timedelta) -> Usual:
        """What is neither slow nor long for this adapter; None where it has answered too little lately."""
        async with self._sessions.transaction() as connection:
            row = (await connection.execute(_USUAL, {"adapter": adapter, "within": within})).one()
        return Usual(
            first_token_seconds=row.first_token_seconds if row.timed >= LEAST_USUAL else None,
            tokens=row.tokens if row.counted >= LEAST_USUAL else None,
        )

    async def evidence(self, state: CanaryState) -> Evidence:
        """Of all steps so far, the one that goes on among them."""
        assert state.now is not None, "a step goes on"
        arms = {"candidate": state.candidate, "stable": state.stable}
        began, step_began = state.steps[0].began, state.now.began
        steps = {"began": [step.began for step in state.steps], "ended": [step.ended for step in state.steps]}
        async with self._sessions.transaction() as connection:
            asked = (await connection.execute(_ASKED, arms | {"began": began, "step_began": step_began})).one()
            rows = (await connection.execute(_STRATA, arms | steps | _bounds(state.usual))).all()
        users = {"candidate": asked.candidate, "stable": asked.stable}
        return Evidence(now=asked.now, strata=_strata(rows, state.steps), users=users, requests=asked.requests)

    async def of_hours(self, adapter: str, since: datetime, until: datetime) -> Counts:
        """Who asked this adapter, each once an hour, and who came to harm."""
        async with self._sessions.transaction() as connection:
            return Counts(*await _counted(connection, _OF_HOURS, adapter, since, until, Usual()))

    async def traffic(self, adapter: str, hours: float, usual: Usual) -> Traffic:
        """Who asked this adapter in the last hours, each once, and who came to harm."""
        until = await self.now()
        since = until - timedelta(hours=hours)
        async with self._sessions.transaction() as connection:
            users, harmed = await _counted(connection, _OF_TIME, adapter, since, until, usual)
        return Traffic(hours=hours, users=users, harmed=harmed)


async def _counted(
    connection: AsyncConnection, statement: Any, adapter: str, since: datetime, until: datetime, usual: Usual
) -> tuple[int, dict[Harm, int]]:
    between = {"adapter": adapter, "since": since, "until": until}
    row = (await connection.execute(statement, between | _bounds(usual))).one()
    return row.users, {harm: getattr(row, harm) for harm in Harm}


def _bounds(usual: Usual) -> dict[str, Any]:
    return {"slow": usual.first_token_seconds, "long": usual.tokens, "refusal": POSTGRES_PATTERN}


def _strata(rows: Sequence[Row[Any]], steps: Sequence[Step]) -> dict[Harm, list[Stratum]]:
    arms: dict[tuple[int, int | None], dict[bool, Row[Any]]] = defaultdict(dict)
    for row in rows:
        arms[row.step, row.before][row.candidate] = row
    return {
        harm: [
            Stratum(_drawn(steps, *key), *(getattr(of[arm], harm) if arm in of else 0 for arm in (True, False)))
            for key, of in sorted(arms.items(), key=lambda item: (item[0][0], item[0][1] or 0))
        ]
        for harm in Harm
    }


def _drawn(steps: Sequence[Step], step: int, before: int | None) -> float:
    """The chance that a user who was seen in `before`, and not drawn then, is drawn in `step`. Numbers from 1; None: new.

    Draws are sticky and shares grow: who was not below the earlier share is below the later one with what is left.
    """
    now = steps[step - 1].drawn
    if before is None:
        return now
    earlier = steps[before - 1].drawn
    return max(now - earlier, 0.0) / (1 - earlier) if earlier < 1 else 0.0
