"""How sure a comparison of two policies on the same questions is. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, pstdev, stdev

Z95 = 1.959964  # two-sided 95 % quantile of the normal distribution
LARGEST_EXACT = 2000  # beyond, the normal approximation of a binomial differs in the fourth digit


def sign_test(wins: int, losses: int) -> float:
    """How likely chance alone gives so many wins, or more, of `wins + losses`: the one-sided exact paired test.

    McNemar's (1947) on the pairs that only one of both gets right, in its exact form; 1 where there are none.
    """
    n = wins + losses
    if n > LARGEST_EXACT:
        return 0.5 * math.erfc((wins - 0.5 - n / 2) / math.sqrt(n / 2))
    return sum(math.comb(n, k) for k in range(wins, n + 1)) / 2**n


@dataclass(frozen=True)
class Paired:
    """Two policies on the same questions, each right or wrong."""

    count: int
    before: int  # right answers of the one that is deployed
    gained: int  # only the candidate is right
    lost: int  # only the deployed one is

    @classmethod
    def of(cls, before: Sequence[bool], after: Sequence[bool]) -> Paired:
        both = list(zip(before, after, strict=True))
        return cls(len(both), sum(before), sum(a and not b for b, a in both), sum(b and not a for b, a in both))

    @property
    def share(self) -> float:
        """Of right answers, of the candidate."""
        return (self.before + self.gained - self.lost) / self.count

    @property
    def share_before(self) -> float:
        return self.before / self.count

    @property
    def noise(self) -> float:
        """The standard error of the difference of both shares, from the questions on which they differ."""
        differ, net = self.gained + self.lost, self.gained - self.lost
        return math.sqrt(max(differ - net * net / self.count, 0.0)) / self.count


@dataclass(frozen=True)
class Interval:
    """A mean with its 95 % confidence interval."""

    mean: float
    low: float
    high: float


def mean_interval(values: Sequence[float]) -> Interval:
    """Normal approximation, within [0, 1]. Raises `ValueError` for fewer than two values: they say nothing of spread."""
    if len(values) < 2:
        raise ValueError("an interval needs at least two values")
    mean = fmean(values)
    half = Z95 * stdev(values) / math.sqrt(len(values))
    return Interval(mean, max(0.0, mean - half), min(1.0, mean + half))


def length_controlled(scores: Sequence[float], longer_by: Sequence[float]) -> Interval:
    """The win rate that would be left if both answers were of the same length.

    Dubois et al. 2024 (2404.04475): a logistic regression of the score on tanh(difference of lengths / its standard
    deviation), read off at a difference of 0. `scores` are in [0, 1], one a question; `longer_by` are differences of
    lengths. The interval is the sandwich estimate's, so that scores need not be binary. A weak ridge keeps the fit
    finite where every score is 1. Raises `ValueError` for fewer than two scores.
    """
    if len(scores) < 2:
        raise ValueError("an interval needs at least two values")
    spread = pstdev(longer_by)
    lengths = [math.tanh(difference / spread) if spread else 0.0 for difference in longer_by]
    at_equal, slope = _logistic(scores, lengths)
    expected = [_sigmoid(at_equal + slope * length) for length in lengths]
    bread = _inverse(_moments([e * (1 - e) for e in expected], lengths))
    meat = _moments([(score - e) ** 2 for score, e in zip(scores, expected, strict=True)], lengths)
    half = Z95 * math.sqrt(_times(_times(bread, meat), bread)[0][0])
    return Interval(_sigmoid(at_equal), _sigmoid(at_equal - half), _sigmoid(at_equal + half))


Matrix = tuple[tuple[float, float], tuple[float, float]]

_RIDGE = 0.1  # as if a tenth of a win and of a loss had been seen beside
_NEWTON_STEPS = 50
_LARGEST_STEP = 5.0  # of a logit, so that the first steps of a one-sided fit do not overshoot


def _logistic(scores: Sequence[float], lengths: Sequence[float]) -> tuple[float, float]:
    """Intercept and slope that maximise the ridged likelihood of the scores, by Newton's method."""
    intercept = slope = 0.0
    for _ in range(_NEWTON_STEPS):
        expected = [_sigmoid(intercept + slope * length) for length in lengths]
        left = [score - e for score, e in zip(scores, expected, strict=True)]
        gradient = (
            math.fsum(left) - _RIDGE * intercept,
            math.fsum(rest * length for rest, length in zip(left, lengths, strict=True)) - _RIDGE * slope,
        )
        inverse = _inverse(_moments([e * (1 - e) for e in expected], lengths))
        step = [max(-_LARGEST_STEP, min(_LARGEST_STEP, a * gradient[0] + b * gradient[1])) for a, b in inverse]
        intercept, slope = intercept + step[0], slope + step[1]
        if max(map(abs, step)) < 1e-10:
            break
    return intercept, slope


def _moments(weights: Sequence[float], lengths: Sequence[float]) -> Matrix:
    """The weighted sum of the outer products of (1, length), with the ridge on its diagonal."""
    mixed = math.fsum(w * length for w, length in zip(weights, lengths, strict=True))
    squared = math.fsum(w * length * length for w, length in zip(weights, lengths, strict=True))
    return (math.fsum(weights) + _RIDGE, mixed), (mixed, squared + _RIDGE)


def _inverse(matrix: Matrix) -> Matrix:
    (a, b), (c, d) = matrix
    determinant = a * d - b * c
    return (d / determinant, -b / determinant), (-c / determinant, a / determinant)


def _times(left: Matrix, right: Matrix) -> Matrix:
    (a, b), (c, d) = left
    (e, f), (g, h) = right
    return (a * e + b * g, a * f + b * h), (c * e + d * g, c * f + d * h)


def _sigmoid(logit: float) -> float:
    return 0.5 * (1 + math.tanh(logit / 2))  # which never overflows
