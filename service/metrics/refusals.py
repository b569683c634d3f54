"""Counts how often answers refuse, by adapter, from what is recorded: a loop that looks at what is new since it last did.

Counts since this process began, as counters do. Adapters that have not answered for a while are forgotten.
"""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from datetime import datetime

from prometheus_client import Metric
from prometheus_client.core import CounterMetricFamily

from service.errors import Unavailable
from service.store.answers import Answers, Refused

log = logging.getLogger(__name__)

SECONDS_BETWEEN = 15.0
MOST_ADAPTERS = 16  # those that answered last


class RefusalCount:
    """One per service, in the Conductor."""

    def __init__(self, answers: Answers) -> None:
        self._answers = answers
        self._until: datetime | None = None  # all before it is counted; None: not looked yet
        self._counted: OrderedDict[str, Refused] = OrderedDict()

    async def run(self) -> None:
        """For ever: look, and rest."""
        while True:
            try:
                await self.look()
            except Unavailable as error:  # what is recorded is counted when the store is back
                log.warning("refusals are not counted: %s", error)
            await asyncio.sleep(SECONDS_BETWEEN)

    async def look(self) -> None:
        now = await self._answers.now()
        if self._until is not None:
            for adapter, new in (await self._answers.refused(self._until, now)).items():
                old = self._counted.pop(adapter, Refused(0, 0))
                self._counted[adapter] = Refused(old.answers + new.answers, old.refusals + new.refusals)
        while len(self._counted) > MOST_ADAPTERS:
            self._counted.popitem(last=False)
        self._until = now

    def families(self) -> list[Metric]:
        refusals = CounterMetricFamily("heliotrope_chat_refusals", "Answers that refuse.", labels=["adapter"])
        looked_at = CounterMetricFamily(
            "heliotrope_chat_refusals_checked", "Answers that were looked at.", labels=["adapter"]
        )
        for adapter, counted in self._counted.items():
            refusals.add_metric([adapter], counted.refusals)
            looked_at.add_metric([adapter], counted.answers)
        return [refusals, looked_at]
