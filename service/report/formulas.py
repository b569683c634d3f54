"""The statistics of the data report, each with its source. Pure; knows neither votes nor pairs.

`None` stands for "there is nothing to say it of": no trials, no spread, one category only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import ceil, exp, fsum, sqrt
from statistics import NormalDist
from typing import NamedTuple

ONE_SIDED_ERROR = 0.05  # chance that a gate passes a policy which is no better
POWER = 0.8  # chance that it passes one which is as much better as was said
COIN = 0.5  # the win rate of a policy against itself

Unit = tuple[int, ...]  # of one thing that people judged: how many of them gave it each category


class Interval(NamedTuple):
    low: float
    high: float


def wilson(count: int, total: int, confidence: float = 0.95) -> Interval | None:
    """Wilson's score interval of a share (E. B. Wilson, JASA 22, 1927): honest for few trials and near 0 and 1."""
    assert 0 <= count <= total, "a share is of a whole"
    if total == 0:
        return None
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    share, spread = count / total, z * z / total
    middle = (share + spread / 2) / (1 + spread)
    half = z * sqrt(share * (1 - share) / total + spread / (4 * total)) / (1 + spread)
    return Interval(max(0.0, min(middle - half, share)), min(1.0, max(middle + half, share)))


def gini(people_of: Mapping[int, int]) -> float | None:
    """Gini's coefficient of who gave how much: 0 where all gave the same, towards 1 where one gave it all.

    `people_of` maps an amount to how many people gave it. With the amounts x in rising order, numbered from 1:
    G = 2 * sum(i * x_i) / (n * sum(x)) - (n + 1) / n  (A. Sen, On Economic Inequality, 1973).
    """
    people, weighted, total = 0, 0, 0
    for amount in sorted(people_of):
        many = people_of[amount]
        weighted += amount * (many * people + many * (many + 1) // 2)  # their numbers are people + 1 .. people + many
        people += many
        total += amount * many
    if total == 0:
        return None
    return min(max(2 * weighted / (people * total) - (people + 1) / people, 0.0), 1.0)


class Reliability(NamedTuple):
    """How far people who judge the same thing say the same of it."""

    units: int  # things that two people or more have judged
    votes: int  # on those
    raw: float | None  # share of agreement, each unit weighing as its votes
    alpha: float | None  # the same with chance taken out: 1 is perfect, 0 is chance, below 0 is worse


def reliability(units: Mapping[Unit, int]) -> Reliability:
    """Krippendorff's alpha for names of categories (K. Krippendorff, Computing Krippendorff's Alpha-Reliability, 2011).

    `units` maps the votes of one unit, counted by category, to how many units have just those. With the
    coincidences o_ck = sum over units of n_uc * (n_uk - [c = k]) / (m_u - 1), n_c their sums and n all of them:
    alpha = 1 - (n - 1) * sum(o_ck, c != k) / sum(n_c * n_k, c != k).
    A unit with one vote tells nothing of agreement and does not count.
    """
    judged = {unit: many for unit, many in units.items() if sum(unit) >= 2 and many > 0}
    votes = sum(sum(unit) * many for unit, many in judged.items())
    if votes == 0:
        return Reliability(0, 0, None, None)
    agreed = fsum(many * sum(n * (n - 1) for n in unit) / (sum(unit) - 1) for unit, many in judged.items())
    categories = range(max(map(len, judged)))
    of_category = [
        sum(unit[category] * many for unit, many in judged.items() if category < len(unit)) for category in categories
    ]
    by_chance = votes * votes - sum(n * n for n in of_category)  # sum(n_c * n_k, c != k)
    alpha = None if by_chance == 0 else 1 - (votes - 1) * (votes - agreed) / by_chance
    return Reliability(sum(judged.values()), votes, min(agreed / votes, 1.0), alpha)


def pearson(x: Sequence[float], y: Sequence[float]) -> float | None:
    """Pearson's correlation; with 0 and 1 for one of the two it is the point-biserial one."""
    assert len(x) == len(y), "values come in twos"
    if not x:
        return None
    mean_x, mean_y = fsum(x) / len(x), fsum(y) / len(y)
    across = fsum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True))
    spread = sqrt(fsum((a - mean_x) ** 2 for a in x) * fsum((b - mean_y) ** 2 for b in y))
    return None if spread == 0 else min(max(across / spread, -1.0), 1.0)


def geometric_mean(logs: Sequence[float]) -> float | None:
    """The mean of ratios, of which the logarithms are given: twice as long and half as long cancel out."""
    return exp(fsum(logs) / len(logs)) if logs else None


def pairs_needed(win_rate: float) -> int:
    """Held-out pairs with which a one-sided test at 5 % sees this win rate in 80 of 100 cases.

    The normal approximation of one share against a coin (J. L. Fleiss, Statistical Methods for Rates and
    Proportions, 1981, 2.4): n = ((z_a * sqrt(p0 q0) + z_b * sqrt(p q)) / (p - p0)) ** 2. Takes the pairs for
    independent, which several pairs of one prompt are not.
    """
    assert COIN < win_rate <= 1, "better than a coin"
    z_error, z_power = NormalDist().inv_cdf(1 - ONE_SIDED_ERROR), NormalDist().inv_cdf(POWER)
    reach = z_error * COIN + z_power * sqrt(win_rate * (1 - win_rate))
    return ceil((reach / (win_rate - COIN)) ** 2)


def detectable_win_rate(pairs: int) -> float | None:
    """The smallest win rate that so many held-out pairs can tell from a coin; None: not even one that always wins."""
    if pairs < pairs_needed(1.0):
        return None
    low, high = COIN, 1.0  # the need falls as the win rate rises: halve until it stands to four digits
    while high - low > 1e-5:
        middle = (low + high) / 2
        low, high = (low, middle) if pairs_needed(middle) <= pairs else (middle, high)
    return high
