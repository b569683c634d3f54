"""Looks at the data before anything learns from it: what a round would collect now, as a data report.

Reads the store and measures by the pure `report/measuring.py`; writes nothing but what matching writes.
"""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta

from service import preferences
from service.collecting import Collector, Found
from service.report.evidence import DAYS_SHOWN, Evidence
from service.report.measuring import measure
from service.report.records import DataReport
from service.settings import Settings
from service.store.store import Store


class Inspector:
    """One per service, in the Conductor."""

    def __init__(self, collector: Collector, store: Store, settings: Settings) -> None:
        self._collector = collector
        self._store = store
        self._settings = settings

    async def report(self, objective: str | None = None, min_pairs: int | None = None) -> DataReport:
        """Of a round of this objective; what is None is as the settings say."""
        objective = objective or self._settings.training.objective
        found = await self._collector.look(objective)
        return await asyncio.to_thread(measure, await self._evidence(found, objective, min_pairs))

    async def _evidence(self, found: Found, objective: str, min_pairs: int | None) -> Evidence:
        training, gate = self._settings.training, self._settings.gate
        now = datetime.now(UTC)
        held_out = preferences.hold_out(found.pairs, training.held_out_share)
        prompts = {(pair.app, pair.prompt_digest) for pair in found.pairs if pair.app and pair.id in held_out}
        return Evidence(
            now=now,
            objective=objective,
            funnel=found.funnel,
            kept=found.pairs,
            left_out=found.left_out,
            held_out=held_out,
            learned_prompts=await self._store.insight.learned_prompts(prompts),
            votes=await self._store.insight.votes(since=now - timedelta(days=DAYS_SHOWN)),
            min_pairs=min_pairs or training.min_pairs,
            min_held_out_pairs=gate.min_held_out_pairs,
        )
