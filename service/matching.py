"""Keeps pairs up to date with what people said: prompt by prompt, so that the cost grows with new votes alone.

The store says which prompts are waiting and what was said of them; the pure `curation/quarantine.py` says whose new
votes are suspicious, the pure `preferences.py` which pairs follow. It does not know which pairs a round takes: that is
`collecting.py`'s.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from datetime import timedelta

from service.curation.quarantine import Suspicion, inspect
from service.curation.settings import PreferenceSettings, QuarantineSettings
from service.preferences import from_import, match
from service.store.prompts import Batch
from service.store.store import Store

PROMPTS_AT_ONCE = 1000  # in one transaction: fewer cost more queries, more are longer on the way
VOTES_AT_ONCE = 5000
RECENT = timedelta(days=1)  # how far back detectors look


@dataclass(frozen=True)
class Step:
    matched: int = 0  # prompts and imported pairs
    held: bool = False  # votes were held back


class Matcher:
    """One per process that reads pairs. Several may run: they take turns, batch by batch."""

    def __init__(self, store: Store, preferences: PreferenceSettings, quarantine: QuarantineSettings) -> None:
        self._store = store
        self._preferences = preferences
        self._quarantine = quarantine
        self._turn = asyncio.Lock()  # callers in this process wait here, not on connections

    async def catch_up(self) -> int:
        """Every vote that was durable when this began has its fate when it returns, however many come meanwhile.

        How much was matched, of older and of newer votes.
        """
        matched, mark = 0, await self._store.prompts.mark()
        while await self._store.prompts.wait_before(mark):
            done = await self.step()
            matched += done.matched
            if done.held:  # older votes that are held back now have put their prompts on the queue again
                mark = await self._store.prompts.mark()
        return matched

    async def step(self) -> Step:
        """The next batch, if there is one."""
        async with (
            self._turn,
            self._store.prompts.batch(prompts=PROMPTS_AT_ONCE, votes=VOTES_AT_ONCE) as batch,
        ):
            if batch.empty:
                return Step()
            suspicions = await self._suspicions(batch) if batch.keys else []
            await batch.hold(suspicions)
            prompts = await batch.prompts()
            learned = await batch.learned_imports()
            imports = [pair for pair in batch.imports if pair.id not in learned]
            # In a thread, so that a prompt with very many votes holds up nothing else that this process does.
            matched, imported = await asyncio.to_thread(
                lambda: (
                    [match(prompt, self._preferences) for prompt in prompts],
                    [from_import(pair) for pair in imports],
                )
            )
            await batch.replace(matched, imported)
            return Step(len(batch.keys) + len(batch.imports), held=bool(suspicions))

    async def _suspicions(self, batch: Batch) -> list[Suspicion]:
        """Whose votes in this batch came in a way that people do not vote in. Apps are looked at one by one."""
        new = batch.new_votes()
        suspicions: list[Suspicion] = []
        for app in sorted({trace.app for trace in new if trace.user is not None}):
            of_app = [trace for trace in new if trace.app == app]
            since = min(trace.voted_at for trace in of_app) - RECENT
            recent = await batch.recent_votes(app, since, self._quarantine.recent_votes)
            suspicions += await asyncio.to_thread(inspect, of_app, recent, self._quarantine)
        return suspicions
