"""How many answers refused, by adapter: counted in the database, which has the texts."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy import text

from service.gate.refusals import OPENING_CHARACTERS, POSTGRES_PATTERN
from service.postgres.sessions import Sessions

# Answers that are recorded late, and by clocks that are a little behind, are still counted.
SETTLED = timedelta(seconds=5)

_COUNT = text(f"""
    SELECT adapter, count(*), count(*) FILTER (
        WHERE replace(left(choices.text, {OPENING_CHARACTERS}), '’', '''') ~* :refusal)
    FROM completions JOIN choices ON completion_id = id
    WHERE created_at > :since AND created_at <= :until AND choices.text IS NOT NULL AND outcome = 'finished'
    GROUP BY adapter
""")


@dataclass(frozen=True)
class Refused:
    answers: int
    refusals: int


class Answers:
    def __init__(self, sessions: Sessions) -> None:
        self._sessions = sessions

    async def now(self) -> datetime:
        """Up to here all answers are recorded, as good as surely."""
        async with self._sessions.transaction() as connection:
            return (await connection.execute(text("SELECT now()"))).scalar_one() - SETTLED

    async def refused(self, since: datetime, until: datetime) -> dict[str, Refused]:
        """By adapter, of the answers that were recorded with their texts."""
        between = {"since": since, "until": until, "refusal": POSTGRES_PATTERN}
        async with self._sessions.transaction() as connection:
            return {name: Refused(*counts) for name, *counts in await connection.execute(_COUNT, between)}
