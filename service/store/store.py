"""The store: one connection pool and the nouns that share it.

store.keys         who may call
store.completions  what was answered
store.feedback     what people said of it
store.prompts      what is to be matched anew
store.quarantine   what is held back
store.fates        what became of every vote
store.preferences  what pairs are made from
store.insight      votes as counts, for the data report
store.imports      preferences on their way in, from files
store.exports      preferences on their way out
store.rounds       what was learned, and how far a round is
store.round_pairs  what becomes of the pairs that a round took
store.lineage      what came of what
store.past_rounds  what rounds took
store.canaries     what became of a candidate's answers
store.pauses       whether rounds may start by themselves
store.adapters     what came out
store.route        what is served
store.audit        who changed that
store.erasure      everything of one person, to be erased
store.retention    what is past its time
store.alarms       what operators are told
store.measures     how it all stands, as numbers
store.answers      how often answers refuse
store.base_model   which one all of it belongs to
store.secrets      what signs the tokens of web pages
"""

from __future__ import annotations

from sqlalchemy import func, text, update

from service.keeping.redaction import KEEP_ALL, Redactor
from service.postgres.sessions import Sessions
from service.store.adapters import Adapters
from service.store.alarms import Alarms
from service.store.answers import Answers
from service.store.audit import Audit
from service.store.base_model import BaseModel
from service.store.canary import Canaries
from service.store.completions import Completions
from service.store.erasure import Erasure
from service.store.exports import Exports
from service.store.fates import Fates
from service.store.feedback import Feedback
from service.store.imports import Imports
from service.store.insight import Insight
from service.store.keys import Keys
from service.store.lineage import Lineage
from service.store.measures import StoredMeasures
from service.store.past_rounds import PastRounds
from service.store.pause import Pauses
from service.store.preferences import Preferences
from service.store.prompts import Prompts
from service.store.quarantine import Quarantine
from service.store.retention import Retention
from service.store.round_pairs import RoundPairs
from service.store.rounds import Rounds
from service.store.route import RouteRow
from service.store.secrets import Secrets
from service.store.tables import route


class Store:
    """One per process and event loop. `service.store.database.migrate` must have run on the URL."""

    def __init__(self, url: str, redact: Redactor = KEEP_ALL) -> None:
        self._sessions = Sessions(url)
        self.keys = Keys(self._sessions)
        self.completions = Completions(self._sessions, redact)
        self.feedback = Feedback(self._sessions, redact)
        self.prompts = Prompts(self._sessions)
        self.quarantine = Quarantine(self._sessions)
        self.fates = Fates(self._sessions)
        self.preferences = Preferences(self._sessions)
        self.insight = Insight(self._sessions)
        self.imports = Imports(self._sessions, redact)
        self.exports = Exports(self._sessions)
        self.rounds = Rounds(self._sessions)
        self.round_pairs = RoundPairs(self._sessions)
        self.lineage = Lineage(self._sessions)
        self.past_rounds = PastRounds(self._sessions)
        self.canaries = Canaries(self._sessions)
        self.pauses = Pauses(self._sessions)
        self.adapters = Adapters(self._sessions)
        self.route = RouteRow(self._sessions)
        self.erasure = Erasure(self._sessions)
        self.retention = Retention(self._sessions)
        self.audit = Audit(self._sessions)
        self.alarms = Alarms(self._sessions)
        self.measures = StoredMeasures(self._sessions)
        self.answers = Answers(self._sessions)
        self.base_model = BaseModel(self._sessions)
        self.secrets = Secrets(self._sessions)

    async def reach(self) -> None:
        """Raises `Unavailable` unless the database answers; in microseconds while it is known to be away."""
        await self._sessions.reach()

    async def ping(self) -> None:
        """A real write, taken back: a database that only answers reads is not ready. Raises `Unavailable`."""
        async with self._sessions.transaction() as connection:
            await connection.execute(update(route).values(updated_at=func.now()))
            await connection.rollback()

    async def schema(self) -> str:
        """The one that the database has."""
        async with self._sessions.transaction() as connection:
            return (await connection.execute(text("SELECT max(version_num) FROM alembic_version"))).scalar_one()

    async def close(self) -> None:
        await self.feedback.close()
        await self.completions.close()
        await self.adapters.close()
        await self.keys.close()
        await self._sessions.close()
