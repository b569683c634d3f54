"""What the store is to hold after whatever was done to it: in memory, and without a thought for how."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime

from service.pairs import Pair
from service.votes import ChoiceKey, FeedbackBody, Kind
from serving.contracts import Choice, Completion

VoteKey = tuple[str, str]  # (app, feedback_id)


@dataclass(frozen=True)
class Answered:
    """A completion, as the model knows it."""

    id: str
    app: str
    user: str | None
    prompt: int
    choices: int


@dataclass(frozen=True)
class Voted:
    app: str
    body: FeedbackBody
    retracted: bool = False

    @property
    def key(self) -> VoteKey:
        assert self.body.feedback_id is not None
        return self.app, self.body.feedback_id

    @property
    def choices(self) -> frozenset[ChoiceKey]:
        """That it is about."""
        return frozenset(side for side in (self.body.choice, self.body.rival) if side is not None)

    @property
    def slot(self) -> tuple[str, frozenset[ChoiceKey], str | None, Kind]:
        """Where only the last one counts."""
        return self.app, self.choices, self.body.user, self.body.kind


@dataclass
class Model:
    """What the store is to hold, without a thought for how."""

    completions: list[Answered] = field(default_factory=list)
    votes: dict[VoteKey, Voted] = field(default_factory=dict)  # in the order in which they came
    imported: set[str] = field(default_factory=set)
    rounds: dict[int, tuple[Pair, ...]] = field(default_factory=dict)  # what each has frozen
    without_verdict: set[int] = field(default_factory=set)  # rounds that failed or were cancelled

    def effective(self) -> set[VoteKey]:
        last = {vote.slot: vote for vote in self.votes.values()}
        return {vote.key for vote in last.values() if not vote.retracted}

    def learned(self) -> list[Pair]:
        return [pair for n, pairs in self.rounds.items() if n not in self.without_verdict for pair in pairs]


def record(answered: Answered, texts: list[str], stored: bool, finish: str) -> Completion:
    """The prompts with even numbers are one message, the others are conversations."""
    earlier = [{"role": "assistant", "content": "hello"}] * (answered.prompt % 2)
    question = {"role": "user", "content": f"question {answered.prompt}"}
    return Completion(
        id=answered.id,
        app=answered.app,
        adapter="base",
        model="policy",
        created_at=datetime(2026, 1, 2, tzinfo=UTC),
        user=answered.user,
        metadata={},
        store=stored,
        messages=[*earlier, question],
        sampling={},
        tokenizer_fingerprint="f" * 64,
        prompt_token_ids=(1, answered.prompt),
        choices=tuple(
            Choice(index=index, text=text, token_ids=tuple(text.encode()), finish_reason=finish)
            for index, text in enumerate(texts)
        ),
    )
