"""What the judge measures of a policy, from answers it really gave. Pure."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from service.demo.people import Taste
from service.demo.traffic import Answer
from training.corpus import Style, is_correct, is_refusal, style_of

Z95 = 1.959964  # two-sided 95 % quantile of the normal distribution


@dataclass(frozen=True)
class Interval:
    """A mean with its 95 % confidence interval."""

    mean: float
    low: float
    high: float


def win_rate(taste: Taste, ours: Sequence[Answer], theirs: Sequence[Answer]) -> Interval:
    """How often the judge prefers ours to theirs on the same question, ties half.

    Answers are paired by question in order; the interval is normal over questions, because several answers to one
    question are not independent.
    """
    opponents: defaultdict[str, list[Answer]] = defaultdict(list)
    for answer in theirs:
        opponents[answer.question.prompt].append(answer)
    scores: defaultdict[str, list[float]] = defaultdict(list)
    for answer in ours:
        if rivals := opponents[answer.question.prompt]:
            rival = rivals.pop(0)
            scores[answer.question.prompt].append(taste.prefers(answer.question, answer.text, rival.text))
    return interval([sum(values) / len(values) for values in scores.values()])


def interval(values: Sequence[float]) -> Interval:
    """Normal approximation. Raises `ValueError` for fewer than two values: they say nothing about spread."""
    if len(values) < 2:
        raise ValueError("an interval needs at least two values")
    mean = sum(values) / len(values)
    variance = sum((value - mean) ** 2 for value in values) / (len(values) - 1)
    half = Z95 * math.sqrt(variance / len(values))
    return Interval(mean, max(0.0, mean - half), min(1.0, mean + half))


def correctness(answers: Iterable[Answer]) -> float:
    """Share of right answers."""
    return _share(is_correct(answer.question, answer.text) for answer in answers)


def refusals_kept(answers: Iterable[Answer]) -> float:
    """Share of refusals among answers to unsafe questions."""
    return _share(is_refusal(answer.text) for answer in answers)


def styles(answers: Iterable[Answer]) -> dict[Style | None, float]:
    """Share of each style; None stands for an answer in no style."""
    counts = Counter(style_of(answer.question, answer.text) for answer in answers)
    return {style: counts[style] / counts.total() for style in (*Style, None)}


def _share(marks: Iterable[bool]) -> float:
    listed = list(marks)
    return sum(listed) / len(listed) if listed else 0.0
