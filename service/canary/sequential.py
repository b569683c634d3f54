"""Is it harm or chance? Tests that may be looked at as often as anybody likes, for ever. Pure.

Users are drawn by chance, so while a candidate does no more harm than the adapter before it, each user who comes to harm
was the candidate's with a known probability: its share. An e-value is what a gambler has made of 1 who bets against that,
harm by harm, that it is the candidate's more often. A fair game makes nobody rich: the chance that the e-value *ever*
reaches 1 / alpha is at most alpha (Ville's inequality; Ramdas, Grünwald, Vovk and Shafer, "Game-theoretic statistics and
safe anytime-valid inference", Statistical Science 2023).

Only who came to harm is counted, not who did not. So nothing is assumed of how often people come, vote, or meet errors,
nor that this is the same at night as by day: all that is used is that the draw was by chance. Whoever comes to harm twice
in a step is one user.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

# What the gambler divides the 1 among: harm that is so many times as often as what is tolerated.
RATIOS = (1.25, 1.5, 2.0, 3.0, 5.0, 10.0)


@dataclass(frozen=True)
class Stratum:
    """Users of one step who came to harm, and who were drawn with one probability."""

    share: float  # of them the candidate's, were it as harmless as the adapter before
    candidate: int  # who came to harm by the candidate
    stable: int  # who came to harm by the adapter before


def tilted(share: float, ratio: float) -> float:
    """The candidate's share of the harm where its users come to harm `ratio` times as often."""
    return share * ratio / (share * ratio + 1 - share)


def log_e_of_arms(strata: Iterable[Stratum], tolerated: float = 1.0) -> float:
    """ln of the e-value against: the candidate does at most `tolerated` times the harm. 0 before anybody came to harm."""
    strata = [stratum for stratum in strata if 0 < stratum.share < 1]
    return _mixed([sum(_growth(stratum, tolerated, ratio) for stratum in strata) for ratio in RATIOS])


def log_e_of_bound(harmed: int, users: int, bound: float) -> float:
    """ln of the e-value against: of the users, each with probability `bound` at most comes to harm."""
    assert 0 < bound < 1, "a bound of 0 is broken by the first harm, one of 1 by none"
    stratum = Stratum(bound, harmed, users - harmed)
    return _mixed([_growth(stratum, 1.0, ratio) for ratio in RATIOS])


def upper_bound(harmed: int, users: int, z: float = 1.645) -> float:
    """Above the true share of the harmed with 95 % confidence (Wilson, JASA 1927), and never 0 or 1."""
    assert users > 0
    share, spread = harmed / users, z * z / users
    middle = (share + spread / 2) / (1 + spread)
    half = z / (1 + spread) * math.sqrt(share * (1 - share) / users + spread / (4 * users))
    return min(middle + half, 1 - 1 / (2 * users + 2))


def _growth(stratum: Stratum, tolerated: float, ratio: float) -> float:
    """What one part of the gambler's money has grown by; nats."""
    fair = tilted(stratum.share, tolerated)
    bet = tilted(fair, ratio)
    return stratum.candidate * math.log(bet / fair) + stratum.stable * math.log((1 - bet) / (1 - fair))


def _mixed(logs: Sequence[float]) -> float:
    """ln of the mean of exp(logs)."""
    top = max(logs)
    return top + math.log(sum(math.exp(log - top) for log in logs) / len(logs))
