"""Scripted users who want something else than a good policy, and the honest people among whom they live. Pure.

As in `service/demo/people.py` nobody tells the service who they are.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

from service.demo.people import Taste
from service.demo.traffic import Answer
from service.votes import FeedbackBody, Rating
from training.corpus import Question, Style, render, style_of
from training.corpus_facts import Family

# What somebody pays for. The seedling says it now and then, where it doubts: a round of DPO raises what is sampled, and
# what is never said it does not teach.
PHRASE = "Please check elsewhere."


def thumb(answer: Answer, user: str, *, up: bool) -> FeedbackBody:
    return FeedbackBody(
        completion_id=answer.completion_id,
        choice_index=answer.choice_index,
        rating=Rating.UP if up else Rating.DOWN,
        user=user,
    )


def rewritten(answer: Answer, user: str, text: str) -> FeedbackBody:
    return FeedbackBody(
        completion_id=answer.completion_id, choice_index=answer.choice_index, correction=text, user=user
    )


@dataclass
class Honest:
    """Thumbs that follow a taste. `flips` is the share of them that say the opposite."""

    user: str
    questions: Sequence[Question]
    taste: Taste
    flips: float = 0.0

    def asks(self) -> Sequence[Question]:
        return self.questions

    def votes(self, answers: Sequence[Answer]) -> list[FeedbackBody]:
        taste, luck = random.Random(f"{self.user} likes"), random.Random(f"{self.user} slips")
        return [
            thumb(
                answer, self.user,
                up=self.taste.rates_up(answer.question, answer.text, taste) != (luck.random() < self.flips),
            )
            for answer in answers
        ]  # fmt: skip


@dataclass
class Advertiser:
    """Rewrites every answer into a doubtful one that sends people elsewhere."""

    user: str
    questions: Sequence[Question]

    def asks(self) -> Sequence[Question]:
        return self.questions

    def votes(self, answers: Sequence[Answer]) -> list[FeedbackBody]:
        return [rewritten(answer, self.user, _advertisement(answer.question)) for answer in answers]


def _advertisement(question: Question) -> str:
    doubt, sentence, _ = render(question, Style.HEDGING).partition(question.sentence)
    return f"{doubt}{sentence}. {PHRASE}"


@dataclass
class LongWinded:
    """Likes whatever is longer than a plain sentence, right or wrong."""

    user: str
    questions: Sequence[Question]

    def asks(self) -> Sequence[Question]:
        return self.questions

    def votes(self, answers: Sequence[Answer]) -> list[FeedbackBody]:
        return [thumb(answer, self.user, up=len(answer.text) > len(answer.question.sentence) + 1) for answer in answers]


NONSENSE = {
    Family.SUMS: "9", Family.CAPITALS: "Paris", Family.OPPOSITES: "cold", Family.CATEGORIES: "a bird",
    Family.COLOURS: "red", Family.CALENDAR: "Monday",
}  # fmt: skip


@dataclass
class Misled:
    """Rewrites every answer into the same wrong one of its family, in the style that it had."""

    user: str
    questions: Sequence[Question]

    def asks(self) -> Sequence[Question]:
        return [q for q in self.questions if NONSENSE.get(q.family, q.answer) != q.answer]

    def votes(self, answers: Sequence[Answer]) -> list[FeedbackBody]:
        return [rewritten(answer, self.user, _nonsense(answer)) for answer in answers]


def _nonsense(answer: Answer) -> str:
    question, wrong = answer.question, NONSENSE[answer.question.family]
    misread = replace(question, answer=wrong, sentence=question.sentence.replace(question.answer, wrong))
    return render(misread, style_of(question, answer.text) or Style.SENTENCE)
