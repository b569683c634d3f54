"""What this replica tells the store it needs, so that nobody deletes the files of a published adapter meanwhile."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from serving.ports import Journal

# Longer than any load. What a replica that dies has leased is kept so much longer than needed, and that harms nobody.
LEASE_SECONDS = 600.0


class Leases:
    """One per replica. `needed` says which adapters; it is asked each time."""

    def __init__(
        self, replica: str, journal: Journal, needed: Callable[[], frozenset[str]], clock: Callable[[], float]
    ) -> None:
        self._replica = replica
        self._journal = journal
        self._needed = needed
        self._clock = clock
        self._known: frozenset[str] = frozenset()  # what the store was told
        self._due = 0.0  # when it is to be told again
        self._telling = asyncio.Lock()  # else an older word could reach the store after a newer one

    async def renew(self) -> None:
        """Tell the store what it does not know yet, or what will lapse. Raises what the store raises."""
        async with self._telling:
            needed = self._needed()
            if needed == self._known and (not needed or self._clock() < self._due):
                return
            await self._journal.lease(self._replica, needed, LEASE_SECONDS)
            self._known, self._due = needed, self._clock() + LEASE_SECONDS / 3
