"""What matches votes in a chaos run, as a process: it never ends by itself, and is killed in the middle of a batch."""

from __future__ import annotations

import asyncio
import contextlib

from service.curation.settings import PreferenceSettings, QuarantineSettings
from service.errors import Unavailable
from service.matching import Matcher
from service.store.store import Store

_PAUSE_SECONDS = 0.05


def match(store_url: str) -> None:
    asyncio.run(_match(store_url))


async def catch_up(store_url: str) -> None:
    """Every vote that is stored has its fate when this returns."""
    store = Store(store_url)
    try:
        await _matcher(store).catch_up()
    finally:
        await store.close()


async def _match(store_url: str) -> None:
    matcher = _matcher(Store(store_url))
    while True:
        with contextlib.suppress(Unavailable):
            await matcher.catch_up()
        await asyncio.sleep(_PAUSE_SECONDS)


def _matcher(store: Store) -> Matcher:
    return Matcher(store, PreferenceSettings(), QuarantineSettings())
