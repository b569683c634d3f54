"""A bucket that fills at a steady rate up to a minute's worth, and from which what is used is taken. Pure.

It may be in debt: what an answer costs is known only at its end. Then nothing is given until the debt is paid.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

MINUTE_SECONDS = 60.0


@dataclass
class Bucket:
    per_minute: float
    level: float  # may be negative
    filled_at: float  # seconds

    @classmethod
    def full(cls, per_minute: float, now: float) -> Bucket:
        return cls(per_minute, max(per_minute, 1.0), now)

    @property
    def capacity(self) -> float:
        """At least one, or nothing could ever be taken."""
        return max(self.per_minute, 1.0)

    def fill(self, now: float) -> None:
        """A clock that goes back fills nothing."""
        elapsed = max(now - self.filled_at, 0.0)
        self.level = min(self.level + elapsed * self.per_minute / MINUTE_SECONDS, self.capacity)
        self.filled_at = max(now, self.filled_at)

    def limit_to(self, per_minute: float) -> None:
        """The limit has changed; what was used stays used."""
        if per_minute != self.per_minute:
            self.level += max(per_minute, 1.0) - self.capacity
            self.per_minute = per_minute

    def take(self, amount: float) -> None:
        self.level -= amount

    @property
    def remaining(self) -> int:
        return max(math.floor(self.level + 1e-9), 0)

    def seconds_until(self, level: float) -> float:
        return max(level - self.level, 0.0) * MINUTE_SECONDS / self.per_minute
