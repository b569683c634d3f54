"""Catching up with votes ends, though people go on voting meanwhile."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path

from service.matching import Matcher, Step
from service.settings import Settings
from service.store.store import Store
from service.votes import Rating
from tests.small_service import SmallService

BATCHES = 30  # during each of which somebody votes


class BusyMatcher(Matcher):
    """People vote while it matches a batch."""

    def __init__(self, store: Store, settings: Settings, vote: Callable[[int], Awaitable[object]]) -> None:
        super().__init__(store, settings.preferences, settings.quarantine)
        self._vote = vote
        self.batches = 0

    async def step(self) -> Step:
        done = await super().step()
        self.batches += 1
        if self.batches < BATCHES:
            await self._vote(self.batches)
        return done


async def test_catching_up_ends_though_people_go_on_voting(store: Store, tmp_path: Path) -> None:
    small = await SmallService.start(store, tmp_path)
    matcher = BusyMatcher(store, small.settings, lambda n: small.thumb(f"question {n}", Rating.UP, user=f"user {n}"))
    await small.thumb("question 0", Rating.UP, user="user 0")
    await matcher.catch_up()
    assert matcher.batches < BATCHES, "it ends only when nobody votes any more: a round would collect for ever"
