"""Times of the week as cron writes them: five fields, minute hour day month weekday. Pure; times are UTC.

`*`, `5`, `1-5`, `*/15`, `0-30/10` and lists of them with commas; 7 is Sunday as 0 is. Where day and weekday are both given,
either will do, as with every cron.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

_FIELDS = {"minute": (0, 59), "hour": (0, 23), "day": (1, 31), "month": (1, 12), "weekday": (0, 7)}
_FARTHEST_DAYS = 8 * 366  # to the 29th of February before this one, over a century's end


@dataclass(frozen=True)
class Cron:
    minutes: frozenset[int]
    hours: frozenset[int]
    days: frozenset[int]
    months: frozenset[int]
    weekdays: frozenset[int]  # 0 is Sunday
    any_day: bool
    any_weekday: bool

    def latest(self, now: datetime) -> datetime | None:
        """The last of its times that is not after `now`; None: there never was one, as on the 31st of February."""
        now = now.astimezone(UTC)
        for back in range(_FARTHEST_DAYS):
            day = (now - timedelta(days=back)).replace(hour=0, minute=0, second=0, microsecond=0)
            if self._of_day(day):
                times = (day.replace(hour=h, minute=m) for h in self.hours for m in self.minutes)
                past = [time for time in times if time <= now]
                if past:
                    return max(past)
        return None

    def next(self, now: datetime) -> datetime | None:
        """The first of its times after `now`; None: there will never be one."""
        now = now.astimezone(UTC)
        for on in range(_FARTHEST_DAYS):
            day = (now + timedelta(days=on)).replace(hour=0, minute=0, second=0, microsecond=0)
            if self._of_day(day):
                times = (day.replace(hour=h, minute=m) for h in self.hours for m in self.minutes)
                coming = [time for time in times if time > now]
                if coming:
                    return min(coming)
        return None

    def _of_day(self, day: datetime) -> bool:
        if day.month not in self.months:
            return False
        of_month, of_week = day.day in self.days, day.isoweekday() % 7 in self.weekdays
        return of_month and of_week if self.any_day or self.any_weekday else of_month or of_week


def parse(text: str) -> Cron:
    """Raises `ValueError` that names the field it cannot read."""
    fields = text.split()
    if len(fields) != len(_FIELDS):
        raise ValueError(f"'{text}' has {len(fields)} fields, cron has five: {' '.join(_FIELDS)}")
    minutes, hours, days, months, weekdays = (
        _field(given, name, *bounds) for given, (name, bounds) in zip(fields, _FIELDS.items(), strict=True)
    )
    sundays = frozenset({0} if 7 in weekdays else set())
    return Cron(
        minutes, hours, days, months, weekdays - {7} | sundays, any_day=fields[2] == "*", any_weekday=fields[4] == "*"
    )


def _field(text: str, name: str, low: int, high: int) -> frozenset[int]:
    found: set[int] = set()
    for part in text.split(","):
        span, _, step = part.partition("/")
        first, dash, last = ("", "-", "") if span == "*" else span.partition("-")
        try:
            begin = int(first or low)
            end = int(last or high) if dash or step else begin
            every = int(step) if step else 1
        except ValueError:
            raise ValueError(f"{name} '{part}' is neither a number, a range, * nor one of these with a step") from None
        if not (low <= begin <= end <= high and every >= 1):
            raise ValueError(f"{name} '{part}' is not within {low} to {high}")
        found.update(range(begin, end + 1, every))
    return frozenset(found)
