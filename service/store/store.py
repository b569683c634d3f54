"""The store: one connection pool and the nouns that share it.

store.keys         who may call
store.completions  what was answered
store.feedback     what people said of it
store.preferences  what pairs are made from
store.rounds       what was learned, and how far a round is
store.adapters     what came out
store.route        what is served
store.audit        who changed that
"""

from __future__ import annotations

from sqlalchemy import func, update

from service.store.adapters import Adapters
from service.store.audit import Audit
from service.store.completions import Completions
from service.store.feedback import Feedback
from service.store.keys import Keys
from service.store.preferences import Preferences
from service.store.rounds import Rounds
from service.store.route import RouteRow
from service.store.sessions import Sessions
from service.store.tables import route


class Store:
    """One per process and event loop. `service.store.database.migrate` must have run on the URL."""

    def __init__(self, url: str) -> None:
        self._sessions = Sessions(url)
        self.keys = Keys(self._sessions)
        self.completions = Completions(self._sessions)
        self.feedback = Feedback(self._sessions)
        self.preferences = Preferences(self._sessions)
        self.rounds = Rounds(self._sessions)
        self.adapters = Adapters(self._sessions)
        self.route = RouteRow(self._sessions)
        self.audit = Audit(self._sessions)

    async def ping(self) -> None:
        """A real write, taken back: a database that only answers reads is not ready. Raises `Unavailable`."""
        async with self._sessions.transaction() as connection:
            await connection.execute(update(route).values(updated_at=func.now()))
            await connection.rollback()

    async def close(self) -> None:
        await self._sessions.close()
