"""Is a round due, and if not, what does it wait for? Pure: the clock is the store's, and is given.

A clock that jumps does no harm. Each occasion has a name, which is the round's `Idempotency-Key`: what has started a round
once starts none again, whatever the clock says then.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

from service.contracts import Pause, Round, RoundState
from service.triggers.cron import parse
from service.triggers.settings import RoundSettings

REQUESTED_BY = "trigger: "  # and its name, in `Round.requested_by`
GRACE = timedelta(hours=1)  # so late a time of the week still counts: the service was away, or too few had voted


@dataclass(frozen=True)
class Situation:
    now: datetime
    pause: Pause | None
    last: Round | None  # the newest round, running or over
    watching: bool  # a promoted adapter is being watched
    new_pairs: int  # and thumbs, where the objective learns from them
    missing: str | None  # what a round would lack; None: nothing


@dataclass(frozen=True)
class Occasion:
    """Why a round starts."""

    trigger: str  # new_pairs, every_hours, cron
    key: str  # the same for the same occasion, for ever


def due(settings: RoundSettings, now: Situation) -> Occasion | str | None:
    """What starts a round; or why none starts, though it was time; None: it is not time."""
    occasion = next((o for o in (_new_pairs(settings, now), _cron(settings, now), _every(settings, now)) if o), None)
    if occasion is None:
        return None
    return _waits_for(settings, now) or occasion


def _waits_for(settings: RoundSettings, now: Situation) -> str | None:
    if now.pause is not None:
        return f"paused by {now.pause.who}" + (f": {now.pause.reason}" if now.pause.reason else "")
    if now.last is not None and not now.last.state.final:
        return f"round {now.last.n} is {now.last.state}"
    if now.watching:
        return "the adapter that was promoted last is still watched"
    rest = timedelta(hours=settings.rest_hours)
    without = (RoundState.FAILED, RoundState.REJECTED, RoundState.CANCELLED)
    if now.last is not None and now.last.state in without and abs(now.now - now.last.updated_at) < rest:
        return f"round {now.last.n} was {now.last.state} less than {settings.rest_hours:g} hours ago"
    return now.missing


def _new_pairs(settings: RoundSettings, now: Situation) -> Occasion | None:
    if settings.new_pairs is None or now.new_pairs < settings.new_pairs:
        return None
    return Occasion("new_pairs", f"trigger new_pairs after round {_number(now.last)}")


def _every(settings: RoundSettings, now: Situation) -> Occasion | None:
    """A round from the future was asked for by a clock that was wrong: then it is time, once."""
    if settings.every_hours is None:
        return None
    if now.last is not None and abs(now.now - now.last.created_at) < timedelta(hours=settings.every_hours):
        return None
    return Occasion("every_hours", f"trigger every_hours after round {_number(now.last)}")


def _cron(settings: RoundSettings, now: Situation) -> Occasion | None:
    latest = parse(settings.cron).latest(now.now) if settings.cron is not None else None
    if latest is None or now.now - latest > GRACE:
        return None
    if (
        now.last is not None
        and now.last.requested_by == REQUESTED_BY + "cron"
        and latest <= now.last.created_at <= now.now
    ):
        return None  # it has started its round
    return Occasion("cron", f"trigger cron {latest.isoformat()}")


def _number(last: Round | None) -> int:
    return 0 if last is None else last.n
