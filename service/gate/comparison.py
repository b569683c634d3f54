"""A judge's opinions of pairs of answers, summed up: who wins, and would they still at equal lengths? Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from service.gate.evidence import Comparison
from service.gate.statistics import length_controlled, mean_interval


@dataclass(frozen=True)
class Duel:
    """Both answers to one prompt, judged twice, each of them once in the first place.

    Scores are the candidate's: 1 it is better, 0 the other is, 0.5 neither.
    """

    prompt: str
    first: float  # when it was shown first
    second: float  # when it was shown second
    longer_by: int  # characters that the candidate's answer is longer

    @property
    def swayed(self) -> bool:
        """The judge likes a place and not an answer: it said one thing and then the opposite."""
        return self.first != self.second and self.first + self.second == 1

    @property
    def score(self) -> float:
        return (self.first + self.second) / 2


def compare(duels: Sequence[Duel]) -> Comparison | None:
    """Several duels of one prompt are not independent and count once. None: fewer than two prompts were judged."""
    by_prompt: dict[str, list[Duel]] = {}
    for duel in duels:
        by_prompt.setdefault(duel.prompt, []).append(duel)
    if len(by_prompt) < 2:
        return None
    scores = [fmean(duel.score for duel in of_prompt) for of_prompt in by_prompt.values()]
    longer = [fmean(duel.longer_by for duel in of_prompt) for of_prompt in by_prompt.values()]
    return Comparison(
        prompts=len(by_prompt),
        win_rate=length_controlled(scores, longer),
        plain=mean_interval(scores),
        ties=fmean(duel.score == 0.5 for duel in duels),
        swayed=fmean(duel.swayed for duel in duels),
    )
