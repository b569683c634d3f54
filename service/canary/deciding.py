"""What to do at a look at a canary: go on, take the next step, or stop. Pure.

Stopping is for good: a candidate that was stopped never answers again by itself. And a step begins only where nothing looks
like harm: what came near to stopping must have gone by first. So chance that comes and goes moves no users to and fro.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Literal

from service.canary.harm import Harm
from service.canary.sequential import Stratum, log_e_of_arms, log_e_of_bound, upper_bound
from service.canary.settings import CanarySettings, Tolerated, WatchSettings
from service.canary.state import CanaryState, Seen, Watched

HOLD, RELEASE = 10.0, 3.0  # e-values: from the first on no step begins, until it is below the second again
E_SHOWN = 1e9  # beyond it nobody cares how much

# What is judged against the weeks before, not against other users of the same days. Not how soon and how long answers
# are: both follow the load and the questions of the day.
WATCHED = (Harm.DISLIKED, Harm.FAILED, Harm.REFUSED)


@dataclass(frozen=True)
class Evidence:
    """What a canary has in the store, at a time of the store's clock."""

    now: datetime
    strata: Mapping[Harm, Sequence[Stratum]]
    users: Mapping[str, int]  # candidate, stable
    requests: int  # of the candidate in the step that goes on


@dataclass(frozen=True)
class Counts:
    """Users of one adapter, each once an hour, and those who came to harm."""

    users: int
    harmed: Mapping[Harm, int]


@dataclass(frozen=True)
class Decision:
    do: Literal["continue", "advance", "stop"]
    why: str


def judge(evidence: Evidence, settings: CanarySettings) -> tuple[Seen, ...]:
    """Each kind of harm with its e-value. Its bound is shared out (Bonferroni): alpha is of all kinds together."""
    bound = len(Harm) / settings.alpha
    seen = []
    for harm in Harm:
        strata = evidence.strata.get(harm, ())
        e_value = math.exp(min(log_e_of_arms(strata, settings.tolerated.of(harm)), math.log(E_SHOWN)))
        counts = [sum(getattr(stratum, arm) for stratum in strata) for arm in ("candidate", "stable")]
        seen.append(Seen(harm=harm, candidate=counts[0], stable=counts[1], e_value=e_value, bound=bound))
    return tuple(seen)


def look(state: CanaryState, evidence: Evidence, settings: CanarySettings) -> tuple[CanaryState, Decision]:
    """The state with what is seen now, and what follows."""
    step = state.now
    assert step is not None, "a step goes on"
    seen = judge(evidence, settings)
    highest = max(one.e_value for one in seen)
    held = highest >= (RELEASE if state.held else HOLD)
    state = state.model_copy(
        update={"seen": seen, "held": held, "users": dict(evidence.users), "requests": evidence.requests}
    )
    harm = next((one for one in seen if one.e_value >= one.bound), None)
    if harm is not None:
        return state, Decision("stop", _of_harm(harm))
    waits_for = _missing(state, evidence, settings)
    too_long = evidence.now - step.began >= timedelta(hours=settings.give_up_hours)
    if too_long and evidence.requests < settings.min_requests:
        why = f"no decision in {settings.give_up_hours:g} hours: {waits_for}"
        return state.model_copy(update={"waits_for": None}), Decision("stop", why)
    state = state.model_copy(update={"waits_for": waits_for})
    return state, Decision("continue", waits_for) if waits_for else Decision("advance", "no harm was seen")


def _missing(state: CanaryState, evidence: Evidence, settings: CanarySettings) -> str | None:
    """Why the next step does not begin yet; None: it may."""
    assert state.now is not None
    soaked = evidence.now - state.now.began
    if soaked < timedelta(minutes=settings.soak_minutes):
        left = timedelta(minutes=settings.soak_minutes) - soaked
        return f"this step lasts {left.total_seconds() / 60:.0f} minutes more"
    if evidence.requests < settings.min_requests:
        return f"{evidence.requests} of {settings.min_requests} requests of this step"
    if state.held:
        worst = max(state.seen, key=lambda one: one.e_value)
        return f"{worst.harm} looks like harm: {worst.candidate} users by the candidate, {worst.stable} by the other"
    if settings.advance == "approved" and state.now.approved_by is None:
        return "an operator must approve the next step"
    return None


def _of_harm(seen: Seen) -> str:
    return (
        f"{seen.harm}: {seen.candidate} users of the candidate and {seen.stable} of the adapter before; "
        f"e-value {seen.e_value:.3g} of {seen.bound:g}"
    )


def watch(
    now: Counts, before: Counts, settings: WatchSettings, tolerated: Tolerated
) -> tuple[tuple[Watched, ...], str | None]:
    """What is seen since the promotion, and why the adapter must go back; None: it may stay.

    What the adapter before did is known only so well: its rate is taken at the upper end of what it may be.
    """
    if before.users == 0 or now.users == 0:
        return (), None
    bound = len(WATCHED) / settings.alpha
    seen = []
    for harm in WATCHED:
        was, harmed = before.harmed.get(harm, 0), now.harmed.get(harm, 0)
        limit = upper_bound(was, before.users) * settings.tolerance * tolerated.of(harm)
        log_e = log_e_of_bound(harmed, now.users, limit) if limit < 1 else 0.0
        e_value = math.exp(min(log_e, math.log(E_SHOWN)))
        seen.append(
            Watched(
                harm=harm, rate=harmed / now.users, before=was / before.users, e_value=e_value, bound=bound
            )
        )  # fmt: skip
    worst = max(seen, key=lambda one: one.e_value)
    if worst.e_value < bound:
        return tuple(seen), None
    return tuple(seen), (
        f"{worst.harm}: {worst.rate:.1%} of {now.users} users an hour, {worst.before:.1%} with the adapter before; "
        f"e-value {worst.e_value:.3g} of {bound:g}"
    )
