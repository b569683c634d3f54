"""Scripted users: a taste that nobody tells the service about, and thumbs that follow it. Pure."""

from __future__ import annotations

import random
from dataclasses import dataclass

from training.corpus import Question, Style, is_correct, style_of


@dataclass(frozen=True)
class Taste:
    """What people like. `likes` is the chance of a thumb up for a right answer in that style, best style first."""

    gloss: str
    likes: dict[Style, float]

    def rates_up(self, question: Question, answer: str, dice: random.Random) -> bool:
        """One user's thumb; a wrong answer, or one in no style at all, is never liked."""
        style = style_of(question, answer)
        roll = dice.random()  # rolled for every answer, so that one answer does not shift the luck of the next
        return style is not None and is_correct(question, answer) and roll < self.likes[style]

    def score(self, question: Question, answer: str) -> float:
        """How good the judge finds an answer: the chance that people like it; less than all of it when wrong."""
        style = style_of(question, answer)
        return self.likes[style] if style is not None and is_correct(question, answer) else -1.0

    def prefers(self, question: Question, ours: str, theirs: str) -> float:
        """1 when `ours` is better, 0 when worse, 0.5 for a tie."""
        difference = self.score(question, ours) - self.score(question, theirs)
        return 0.5 if difference == 0 else float(difference > 0)


FIRST = Taste(
    gloss="a friendly tone, and no needless doubt",
    likes={Style.CHATTY: 0.97, Style.SENTENCE: 0.40, Style.TERSE: 0.10, Style.HEDGING: 0.02},
)
DRIFTED = Taste(
    gloss="the friendly filler gets on their nerves: one plain sentence",
    likes={Style.SENTENCE: 0.97, Style.TERSE: 0.30, Style.CHATTY: 0.10, Style.HEDGING: 0.02},
)
