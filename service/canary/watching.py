"""The time after a promotion: everybody is answered by the new adapter, and harm takes it back by itself.

Nobody is left to compare with, so what is seen is compared with the weeks before, with more patience than in a canary. The
adapter before stays loaded meanwhile, as the route names it: going back is one flip.
"""

from __future__ import annotations

from datetime import datetime, timedelta

from service.alarms import AlarmKind, ring
from service.canary import deciding
from service.canary.settings import CanarySettings, WatchSettings
from service.canary.state import WatchState
from service.contracts import Round
from service.registry import Registry
from service.store.store import Store


class Watch:
    """One per service, in the Conductor. Looking again does no harm."""

    def __init__(self, store: Store, registry: Registry, settings: WatchSettings, canary: CanarySettings) -> None:
        self._store = store
        self._registry = registry
        self._settings = settings
        self._tolerated = canary.tolerated

    async def look(self, round: Round) -> None:
        """At a promoted round whose watch is open."""
        state = WatchState.model_validate(round.watch)
        stable = (await self._store.route.read()).stable
        if stable != state.adapter:
            ended = state.ended or "overtaken"
            await self._end(round, state.model_copy(update={"ended": ended, "why": state.why or f"{stable} answers"}))
        elif state.ended == "rolled_back":  # decided, and not done yet
            await self._roll_back(round, state)
        else:
            await self._judge(round, state, await self._store.canaries.now())

    async def _judge(self, round: Round, state: WatchState, now: datetime) -> None:
        since = state.began - timedelta(hours=self._settings.reference_hours)
        before = await self._store.canaries.of_hours(state.before, since, state.began)
        counts = await self._store.canaries.of_hours(state.adapter, state.began, now)
        seen, harm = deciding.watch(counts, before, self._settings, self._tolerated)
        known, state = state, state.model_copy(update={"users": counts.users, "seen": seen})
        if harm is not None:
            state = state.model_copy(update={"ended": "rolled_back", "why": harm})
            await self._store.rounds.keep(
                round.n, watch=state
            )  # first: a Conductor that dies now is followed by one that does it
            await self._roll_back(round, state)
        elif now >= state.until:
            why = "no harm was seen" if counts.users else "nobody asked"
            await self._end(round, state.model_copy(update={"ended": "kept", "why": why}))
        elif state != known:
            await self._store.rounds.keep(round.n, watch=state)

    async def _roll_back(self, round: Round, state: WatchState) -> None:
        who = f"watch of round {round.n}"
        await self._registry.rollback(who=who, to=state.before, reason=state.why, expected_current=state.adapter)
        await ring(
            self._store,
            AlarmKind.ROLLBACK,
            state.adapter,
            f"round {round.n} was taken back, {state.before} answers again: {state.why}",
            {"round": round.n, "from": state.adapter, "to": state.before},
            once=f"round {round.n} rolled back",
        )
        await self._end(round, state)

    async def _end(self, round: Round, state: WatchState) -> None:
        await self._store.rounds.keep(round.n, watch=state.model_copy(update={"open": False}))
        data = {"attempt": round.attempt, "ended": state.ended, "why": state.why, "adapter": state.adapter}
        await self._store.rounds.add_event(round.n, "watch", data)
