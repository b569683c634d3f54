"""How long a candidate is tried where nobody answers. That is no verdict on it, but nor may its round wait for ever.

Replicas that are not there yet, and an object store that does not answer, cost nothing but time. A replica that dies or
falls silent over a candidate may do so because of it, and people are answered by it: of those only a few are risked.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from service.errors import GivenUp, Unavailable
from service.fleet import REPLICA_LOST
from service.postgres.trouble import STORAGE_UNAVAILABLE
from service.triggers.settings import RoundSettings


@dataclass
class _Trouble:
    round: int
    since_seconds: float
    lost: int = 0  # replicas


class Patience:
    """One per service, in the Conductor; one that takes its place begins anew."""

    def __init__(self, settings: RoundSettings, clock: Callable[[], float] = time.monotonic) -> None:
        self._seconds = settings.patience_minutes * 60
        self._max_lost = settings.max_lost
        self._clock = clock
        self._trouble: _Trouble | None = None  # that lasts

    def restore(self) -> None:
        """All was answered."""
        self._trouble = None

    def bear(self, n: int, error: Unavailable) -> bool:
        """Round `n` is to be tried again; whether there is anything to tell of it that was not told before.

        Raises `GivenUp` where it is not. The store's absence counts for nothing: without it no round could end either.
        """
        if error.code == STORAGE_UNAVAILABLE:
            return False
        now, known = self._clock(), self._trouble
        if known is None or known.round != n:
            known = self._trouble = _Trouble(n, now)
        lost = error.code == REPLICA_LOST
        known.lost += lost
        if known.lost >= self._max_lost:
            what = f"{known.lost} replicas that were asked about the candidate died or fell silent"
            raise GivenUp(f"{what}, so nothing is decided of it; the last: {error.message}")
        if now - known.since_seconds >= self._seconds:
            what = f"nobody could be asked about the candidate for {self._seconds / 60:g} minutes"
            raise GivenUp(f"{what}, so nothing is decided of it: {error.message}")
        return lost or now == known.since_seconds
