"""Which full names of adapters can be asked for. However many are guessed, the store is asked once a second at most."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable

from serving.ports import Journal

NAME = re.compile(r"policy-\d{4,9}-[0-9a-f]{8}", re.ASCII)
_LOOK_SECONDS = 1.0  # between looks, and so the longest that a new adapter is unknown by its name


class Catalogue:
    """One per replica. Remembers the names that there are, and none of those that there are not."""

    def __init__(self, journal: Journal, clock: Callable[[], float]) -> None:
        self._journal = journal
        self._clock = clock
        self._names: frozenset[str] = frozenset()
        self._next_look = float("-inf")
        self._looking = asyncio.Lock()

    async def has(self, name: str) -> bool:
        """Whether an adapter of this name was published and kept. Raises what the store raises."""
        if NAME.fullmatch(name) is None:
            return False
        if name not in self._names:
            async with self._looking:
                if name not in self._names and self._clock() >= self._next_look:
                    self._names = await self._journal.published()
                    self._next_look = self._clock() + _LOOK_SECONDS
        return name in self._names

    def forget(self, name: str) -> None:
        """It is no longer there."""
        self._names -= {name}
