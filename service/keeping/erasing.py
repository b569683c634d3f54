"""Erasing a person: from the store, from the files of rounds, and on record as erased.

A trained model does not forget: the answer lists the adapters that have learned from this person, so that an operator
can roll back behind them.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass

from pydantic import BaseModel, ConfigDict

from service.contracts import RoundState
from service.errors import Unavailable
from service.keeping import snapshots
from service.keeping.snapshots import Cleaned
from service.lineage import descendants
from service.rounds import Rounds
from service.store import audit
from service.store.erasure import Traces, with_verdict
from service.store.store import Store

log = logging.getLogger(__name__)


class Erased(BaseModel):
    """What is gone, and who has learned from it before."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    completions: int
    votes: int  # theirs, and everybody's on their completions
    pairs: int
    quarantine: int
    snapshot_rows: int
    snapshots: tuple[int, ...]  # rounds whose snapshot had such rows
    cancelled_round: int | None  # it was learning from them
    rounds: tuple[int, ...]  # that have learned from them
    adapters: tuple[str, ...]  # that came of those rounds, and all that continue one of them


@dataclass(frozen=True)
class Eraser:
    """One per service, in the Conductor: whoever erases must be able to stop a round."""

    store: Store
    rounds: Rounds
    folder: str  # the address of the rounds' folders

    async def erase(self, user: str, app: str | None, *, who: str) -> Erased:
        """In one app or in all (None). Again finds nothing, and is no error.

        Raises `Conflict` in the moment between the promotion and the end of a round that uses what is to be erased: it
        can no longer be stopped. Nothing is erased then.
        """
        cancelled = await self._cancel(await self.store.erasure.traces(user, app), who)
        async with self.store.erasure.erase(user, app) as (connection, traces, counts):
            # Before the rows are gone for good: they are what the rows in files are known by.
            cleaned = await asyncio.to_thread(self._clean, traces)
            trained_by = traces.trained_by | {found.round for found in cleaned if found.trained_on}
            rounds = await with_verdict(connection, trained_by)
            adapters = await self.store.adapters.list()
            erased = Erased(
                **counts,
                snapshot_rows=sum(found.rows for found in cleaned),
                snapshots=tuple(found.round for found in cleaned),
                cancelled_round=cancelled,
                rounds=tuple(rounds),
                adapters=descendants(rounds, adapters),
            )
            detail = {"app": app, **erased.model_dump(mode="json")}
            await audit.append(
                connection, who=who, action="erase_user", subject=audit.pseudonym(user, app), detail=detail
            )
        await asyncio.to_thread(self._clean, traces)  # a round that was cancelled while it wrote its snapshot
        try:
            await self.store.erasure.vacuum()
        except Unavailable as error:
            log.warning("the space of erased rows is freed later: %s", error)
        return erased

    async def _cancel(self, traces: Traces, who: str) -> int | None:
        running = await self.store.rounds.running()
        if running is None or running.state is RoundState.QUEUED:  # one that has not begun will find nothing of it
            return None
        snapshot = f"{self.folder}/{running.n:04d}/{snapshots.SNAPSHOT}"
        if running.state is not RoundState.COLLECTING and not await asyncio.to_thread(
            snapshots.holds, snapshot, traces
        ):
            return None
        await self.rounds.cancel(running.n, who=who)
        return running.n

    def _clean(self, traces: Traces) -> list[Cleaned]:
        found = [snapshots.clean(n, folder, traces) for n, folder in snapshots.folders(self.folder)]
        return [cleaned for cleaned in found if cleaned is not None]
