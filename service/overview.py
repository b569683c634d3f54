"""How votes and pairs stand, for operators: at once, however many there are.

Behind the reads two loops keep up: one matches what people said, one lets the guards look at the pairs. A read does
both itself where that is quick; where it is not, it shows what is known and says that there is more to come.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from service import preferences
from service.collecting import Collector
from service.digest import content_digest
from service.errors import HeliotropeError
from service.pairs import Funnel
from service.settings import Settings
from service.store.fates import Standing
from service.store.store import Store
from training.objective import parse

log = logging.getLogger(__name__)

QUICK_VOTES = 100  # that a read may match
QUICK_PAIRS = 1000  # that a read may let the guards look at
IDLE_SECONDS = 1.0  # between looks at the queue
# Times as long as the work took nothing is done: votes come all the time, on a prompt with very many votes too.
MATCHING_REST, GUARDING_REST = 1, 4


@dataclass(frozen=True)
class View:
    funnel: Funnel
    up_to_date: bool  # False: votes that are durable already may not be in it yet


class Overview:
    """One per service, in the Conductor."""

    def __init__(self, collector: Collector, store: Store, settings: Settings) -> None:
        self._collector = collector
        self._store = store
        self._settings = settings
        self._guarding = asyncio.Lock()  # guards look once at a time

    def learns_from_thumbs(self, objective: str | None) -> bool:
        """Do rounds of this objective, by default the settings' own?"""
        return bool(parse(objective or self._settings.training.objective).unpaired)

    async def read(self, objective: str | None = None) -> View:
        """From votes to new pairs, for a round of this objective."""
        matched = await self._match_if_quick()
        standing = await self._store.fates.standing()
        if standing.guarded != self._state(standing):
            quick = await self._store.fates.open_pairs(QUICK_PAIRS + 1) <= QUICK_PAIRS
            if quick or standing.funnels is None:
                standing = await self.refresh()
        assert standing.funnels is not None, "guards have looked, just now or earlier"
        up_to_date = matched and standing.guarded == self._state(standing)
        return View(standing.funnels[self.learns_from_thumbs(objective)], up_to_date)

    async def bring_up_to_date(self) -> None:
        """Every vote that is durable already has its fate, and the guards have looked at all pairs."""
        await self._collector.matcher.catch_up()
        await self.refresh()

    async def refresh(self) -> Standing:
        """Lets the guards look at all open pairs, unless they have: nothing that they go by has changed since."""
        async with self._guarding:
            standing = await self._store.fates.standing()
            if standing.guarded == self._state(standing):
                return standing
            standing, open = await self._store.fates.read()
            selection = await self._collector.guard(open, standing.now)
            funnels = {
                thumbs: preferences.funnel(open.left_out, open.pairs, selection, thumbs=thumbs)
                for thumbs in (False, True)
            }
            await self._store.fates.keep(self._state(standing), selection.left_out, funnels)
            return await self._store.fates.standing()

    async def run(self) -> None:
        """For ever."""
        async with asyncio.TaskGroup() as loops:
            loops.create_task(_for_ever(self._collector.matcher.catch_up, MATCHING_REST))
            loops.create_task(_for_ever(self.refresh, GUARDING_REST))

    async def _match_if_quick(self) -> bool:
        """Whether all is matched that was said before."""
        waiting = await self._store.prompts.waiting(QUICK_VOTES + 1)
        if 0 < waiting <= QUICK_VOTES:
            await self._collector.matcher.catch_up()
        return waiting <= QUICK_VOTES

    def _state(self, standing: Standing) -> str:
        """All that guards go by, in short. Where it matters, a swap makes a state, and a minute: pairs grow old by themselves."""
        settings = self._settings.preferences
        swap = standing.route_generation if settings.go_by_the_route else None
        minute = int(standing.now.timestamp() // 60) if settings.max_age_days is not None else None
        return content_digest([standing.generation, swap, settings.model_dump(), minute])


async def _for_ever(work: Callable[[], Awaitable[object]], rest: int) -> None:
    """Again and again, with a rest in between: at least IDLE_SECONDS, and `rest` times as long as the work took."""
    while True:
        began = time.monotonic()
        try:
            await work()
        except HeliotropeError as error:  # the store is away; nothing is lost
            log.warning("pairs wait: %s", error)
        except Exception:
            log.exception("pairs could not be brought up to date")
        await asyncio.sleep(max(IDLE_SECONDS, rest * (time.monotonic() - began)))
