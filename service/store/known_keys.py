"""The API keys that were good a moment ago, so that not every request asks the database, and an outage shuts nobody out.

Pure but for the clock. A key that was revoked is known to be good for `FRESH_SECONDS` at most while the store answers.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from service.contracts import Key

FRESH_SECONDS = 5.0  # how long a key opens without being asked for again
EARLY_SECONDS = 2.5  # before that is over a key in use is asked for, while it still opens: nobody waits
RETRY_SECONDS = 1.0  # before it is asked for again after the store was away
OUTAGE_SECONDS = 15 * 60.0  # how long a key opens without the store
MOST = 4096


@dataclass
class _Known:
    key: Key
    verified_at: float
    ask_at: float
    fresh_until: float


class KnownKeys:
    """By the digest of what was presented; the ones that were not seen for longest go first."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._known: OrderedDict[str, _Known] = OrderedDict()

    def fresh(self, digest: str) -> Key | None:
        """None: ask the store."""
        known = self._known.get(digest)
        if known is None or self._clock() >= known.fresh_until:
            return None
        self._known.move_to_end(digest)
        return known.key

    def ages(self, digest: str) -> bool:
        """Fresh, and to be asked for again before it no longer is."""
        known = self._known.get(digest)
        return known is not None and known.ask_at <= self._clock() < known.fresh_until

    def without_store(self, digest: str) -> Key | None:
        """The store is away: what is still taken on trust, for the next `RETRY_SECONDS` without asking."""
        known, now = self._known.get(digest), self._clock()
        if known is None or now >= known.verified_at + OUTAGE_SECONDS:
            return None
        known.ask_at = known.fresh_until = now + RETRY_SECONDS
        return known.key

    def learn(self, digest: str, key: Key | None) -> None:
        """What the store says. None: it opens nothing, or nothing any more."""
        self._known.pop(digest, None)
        if key is not None:
            now = self._clock()
            self._known[digest] = _Known(key, now, now + FRESH_SECONDS - EARLY_SECONDS, now + FRESH_SECONDS)
        if len(self._known) > MOST:
            self._known.popitem(last=False)

    def forget(self, id: str) -> None:
        for digest in [digest for digest, known in self._known.items() if known.key.id == id]:
            del self._known[digest]
