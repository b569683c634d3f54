"""The loop that starts rounds by itself. It decides nothing: `due.py` does, and `rounds.py` runs what is started."""

from __future__ import annotations

import asyncio
import logging
import time
from typing import Any

from service.collecting import missing
from service.contracts import Round, RoundBody
from service.errors import HeliotropeError
from service.pairs import Funnel
from service.rounds import Rounds
from service.settings import Settings
from service.store.store import Store
from service.triggers.cron import parse
from service.triggers.due import REQUESTED_BY, Occasion, Situation, due
from training.objective import parse as parse_objective

log = logging.getLogger(__name__)

LOOK_SECONDS = 1.0
REST = 4  # times as long as a look took nothing is looked at


class Triggers:
    """One per service, in the Conductor. Two at once would start no round twice."""

    def __init__(self, store: Store, rounds: Rounds, settings: Settings) -> None:
        self._store = store
        self._rounds = rounds
        self._settings = settings

    async def run(self) -> None:
        """For ever; without triggers there is nothing to look at."""
        if not self._any:
            await asyncio.Event().wait()
        while True:
            began = time.monotonic()
            try:
                await self.look()
            except HeliotropeError as error:  # the store is away, or a round was started just now
                log.warning("triggers wait: %s", error)
            except Exception:
                log.exception("triggers could not look")
            await asyncio.sleep(max(LOOK_SECONDS, REST * (time.monotonic() - began)))

    async def look(self) -> Round | None:
        """The round that it starts; None: none is due."""
        found = due(self._settings.rounds, await self._situation())
        if not isinstance(found, Occasion):
            return None
        started, is_new = await self._rounds.start(
            RoundBody(), who=REQUESTED_BY + found.trigger, idempotency_key=found.key
        )
        return started if is_new else None

    async def status(self) -> dict[str, Any]:
        """What starts rounds, when, and what they wait for."""
        situation = await self._situation()
        settings = self._settings.rounds
        found = due(settings, situation)
        cron = None if settings.cron is None else parse(settings.cron).next(situation.now)
        return {
            "pause": situation.pause,
            "triggers": settings.model_dump(include={"new_pairs", "every_hours", "cron"}, exclude_none=True),
            "next_cron": cron,
            "new_pairs": situation.new_pairs,
            "missing": situation.missing,
            "waits_for": found if isinstance(found, str) else None,
        }

    @property
    def _any(self) -> bool:
        settings = self._settings.rounds
        return (settings.new_pairs, settings.every_hours, settings.cron) != (None, None, None)

    async def _situation(self) -> Situation:
        defaults, rounds = self._settings.round_defaults, self._settings.rounds
        objective = str(defaults["objective"])
        funnel = (await self._rounds.overview.read(objective)).funnel
        return Situation(
            now=await self._store.canaries.now(),
            pause=await self._store.pauses.read(),
            last=await self._store.rounds.last(),
            watching=any((round.watch or {}).get("open") for round in await self._store.rounds.unsettled()),
            new_pairs=_usable(funnel, objective),
            missing=missing(
                funnel, objective, int(defaults["min_pairs"]), users=rounds.min_users, apps=rounds.min_apps
            ),
        )


def _usable(funnel: Funnel, objective: str) -> int:
    return funnel.pairs + (0 if parse_objective(objective).paired else funnel.thumbs)
