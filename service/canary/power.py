"""What size of harm a canary can see with the traffic there is, and when: before it starts, and for the dry run. Pure.

The same bets as in `sequential.py`, asked beforehand: how much harm must be counted until an e-value reaches its bound in
so many of 100 canaries (normal approximation of the gambler's fortune).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from pydantic import BaseModel, ConfigDict

from service.canary.harm import Harm
from service.canary.sequential import RATIOS, tilted
from service.canary.settings import CanarySettings

POWER = 0.8  # the share of canaries of a candidate this harmful that are stopped in that time
Z = 0.8416  # its quantile of the normal distribution
SHOWN = (1.25, 1.5, 2.0, 4.0)  # times as often as what is tolerated


class Traffic(BaseModel):
    """What the deployed adapter sees, from the last hours."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    hours: float  # that were looked at
    users: int  # who asked in them: users, else conversations, else requests
    harmed: dict[Harm, int]  # of them

    @property
    def users_per_hour(self) -> float:
        return self.users / self.hours

    def rate(self, harm: Harm) -> float:
        """The share of the users who come to harm."""
        return self.harmed.get(harm, 0) / self.users if self.users else 0.0


class Sight(BaseModel):
    """One line of the table: harm of this size, at this share of the users, is seen after so long."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    harm: Harm
    rate: float  # of the users, who come to it by the deployed adapter
    share: float  # of the users, whom the candidate answers
    times: float  # as often, compared with the deployed adapter
    users: int | None  # of the candidate, until it is seen; None: the deployed adapter does no such harm
    hours: float | None  # None: nobody asks, or the rate is not known


def harm_needed(ratio: float, share: float, e_value: float, tolerated: float = 1.0, z: float = Z) -> float:
    """How many users of both arms must have come to harm until it is seen that the candidate does `ratio` times as much.

    `e_value`: the bound that stops a canary. Infinite where the harm is tolerated.
    """
    goal = math.log(e_value * len(RATIOS))
    fair, true = tilted(share, tolerated), tilted(share, ratio)
    best = math.inf
    for bet in (tilted(fair, each) for each in RATIOS):
        won, lost = math.log(bet / fair), math.log((1 - bet) / (1 - fair))
        mean = true * won + (1 - true) * lost
        if mean > 0:
            spread = math.sqrt(true * (1 - true)) * (won - lost)
            best = min(best, ((z * spread + math.sqrt((z * spread) ** 2 + 4 * mean * goal)) / (2 * mean)) ** 2)
    return best


def users_needed(rate: float, ratio: float, share: float, e_value: float, tolerated: float = 1.0) -> float:
    """How many users must have asked, of both arms, where `rate` of them come to harm by the deployed adapter."""
    harmed = rate * (share * min(ratio, 1 / rate) + 1 - share)
    return harm_needed(ratio, share, e_value, tolerated) / harmed


def table(traffic: Traffic, settings: CanarySettings, shares: Sequence[float] | None = None) -> tuple[Sight, ...]:
    """For each kind of harm and each step; `shares` are the settings' own unless they are given."""
    e_value = len(Harm) / settings.alpha
    rows = []
    for harm in Harm:
        rate, tolerated = traffic.rate(harm), settings.tolerated.of(harm)
        for share in shares or settings.shares or (0.5,):
            for times in (tolerated * each for each in SHOWN):
                users = users_needed(rate, times, share, e_value, tolerated) if 0 < rate * times < 1 else None
                hours = users / traffic.users_per_hour if users is not None and traffic.users else None
                asked = None if users is None else math.ceil(users * share)
                rows.append(Sight(harm=harm, rate=rate, share=share, times=times, users=asked, hours=hours))
    return tuple(rows)


def smallest_seen(traffic: Traffic, settings: CanarySettings, harm: Harm, share: float, hours: float) -> float | None:
    """The least harm, as times the deployed adapter's, that is seen within these hours; None: none is."""
    rate, tolerated = traffic.rate(harm), settings.tolerated.of(harm)
    users = traffic.users_per_hour * hours
    if not rate or not users:
        return None
    low, high, e_value = tolerated, 1 / rate, len(Harm) / settings.alpha
    if high <= low or users_needed(rate, high, share, e_value, tolerated) > users:
        return None
    for _ in range(40):
        middle = (low + high) / 2
        seen = users_needed(rate, middle, share, e_value, tolerated) <= users
        low, high = (low, middle) if seen else (middle, high)
    return high
