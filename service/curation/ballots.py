"""Votes on one prompt before they are compared: who cast each, what it speaks of, and whether it may count. Pure.

It does not know what pairs follow from them: that is `service/preferences.py`'s.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime

from service.pairs import LeftOut
from service.votes import ChoiceKey, Kind, Rating, Vote
from serving.contracts import TRUNCATED

WHOLE = "stop"  # finish_reason of an answer that the model ended by itself

Person = tuple[str, str]  # what is known of them, and the name of that
Spoken = tuple[Person, ChoiceKey]
Reasons = dict[int, LeftOut]  # seq of a vote -> why it counts in no pair


@dataclass(frozen=True)
class Answered:
    """One choice that votes speak of, as it was served."""

    key: ChoiceKey
    adapter: str
    finish_reason: str
    text: str | None  # None: not stored
    token_ids: tuple[int, ...] | None  # None: not stored, or redacted
    redacted: bool = False
    finished: bool = True  # its request; what was cancelled or broke may hold choices that look whole
    asked_by: str | None = None  # the chat request's `user`

    def same_as(self, other: Answered) -> bool:
        """The same tokens, of which a stop string may have cut a part from the text; or other tokens of one text."""
        return self.token_ids == other.token_ids or (self.text or "").strip() == (other.text or "").strip()

    @property
    def fault(self) -> LeftOut | None:
        """Why nothing can be learned from this answer, whatever people say of it."""
        if self.text is None or self.token_ids is None:
            return LeftOut.REDACTED if self.redacted else LeftOut.NOT_STORED
        if not self.finished:
            return LeftOut.UNFINISHED
        if self.finish_reason not in (WHOLE, TRUNCATED):
            return LeftOut.FAILED
        if not self.text.strip() or not self.token_ids:
            return LeftOut.EMPTY
        return LeftOut.TRUNCATED if self.finish_reason == TRUNCATED else None


@dataclass(frozen=True)
class Learned:
    """What the last round that took an answer has learned of it, or may."""

    rating: Rating  # up: it was preferred
    asked_at: datetime  # when that round was


@dataclass(frozen=True)
class PromptVotes:
    """All effective votes on the answers to one rendered prompt of one app, and what else bears on them."""

    app: str
    prompt_digest: str
    prompt_text: str  # contents of its system and user messages, joined by newlines; "" where not stored
    single_turn: bool
    votes: tuple[Vote, ...]
    answers: Mapping[ChoiceKey, Answered]  # that the votes speak of; one that is missing is stored no more
    learned_choices: Mapping[ChoiceKey, Learned] = field(default_factory=dict)  # in pairs made of ratings, and thumbs
    learned_pairs: frozenset[str] = frozenset()  # ids of pairs in rounds
    dropped: frozenset[int] = frozenset()  # seq of votes that an operator dropped from quarantine
    question: str = ""  # content of the last user message: by it prompts of one app differ, whatever they share


@dataclass(frozen=True)
class Ballot:
    """A vote that may count, with the answers it speaks of."""

    vote: Vote
    user: str | None  # who cast it, as far as the app says
    answer: Answered  # of the vote's own choice
    rival: Answered | None = None  # of a comparison

    @property
    def person(self) -> Person:
        """One person's ballots share it. Of the unnamed nothing is known but that one of them saw this completion."""
        return ("user", self.user) if self.user is not None else ("completion", self.vote.completion_id)

    @property
    def speaks_of(self) -> list[Spoken]:
        """The person, with each choice that the ballot is about."""
        return [(self.person, answer.key) for answer in (self.answer, self.rival) if answer is not None]


def wordings(answers: Iterable[Answered]) -> dict[ChoiceKey, str]:
    """For each a text that stands for it: one for the same tokens, though a stop string may have cut it from one."""
    of_tokens: dict[tuple[int, ...] | None, str] = {}
    return {one.key: of_tokens.setdefault(one.token_ids, (one.text or "").strip()) for one in answers}


def _outvoted(prompt: PromptVotes) -> set[int]:
    """The seq of ratings that were there when a round learned the opposite of the very same answer: no later round asks
    them again. What is said after it is new."""
    ratings = [vote for vote in prompt.votes if vote.kind is Kind.RATING]
    rated = sorted({vote.choice for vote in ratings} & prompt.answers.keys())
    said = wordings(prompt.answers[key] for key in rated if prompt.answers[key].fault is None)
    asked_at: dict[tuple[str, Rating | None], datetime] = {}
    for key, wording in said.items():
        if (learned := prompt.learned_choices.get(key)) is not None:
            about = (wording, Rating.DOWN if learned.rating is Rating.UP else Rating.UP)
            asked_at[about] = max(learned.asked_at, asked_at.get(about, learned.asked_at))
    against = [(vote, asked_at.get((said[vote.choice], vote.rating))) for vote in ratings if vote.choice in said]
    return {vote.seq for vote, at in against if at is not None and vote.voted_at <= at}


def admitted(prompt: PromptVotes) -> tuple[list[Ballot], Reasons]:
    """The ballots that may count, in the order of seq, and why each other vote may not.

    Of one person's ballots on a choice the most deliberate kind counts: a correction outranks a comparison outranks a
    rating. What it outranks is counted once with it. Only a thumb up for an answer that the same person rewrote is
    called contradicted: it would push towards the very text that the correction pushes away from.
    """
    reasons: Reasons = {}
    counted: list[Ballot] = []
    spoken: dict[Kind, set[Spoken]] = {kind: set() for kind in Kind}
    ballots = _latest(prompt, reasons)
    for kind in (Kind.CORRECTION, Kind.COMPARISON, Kind.RATING):
        for ballot in (ballot for ballot in ballots if ballot.vote.kind is kind):
            reason = _outranked(ballot, spoken)
            if reason is None:
                counted.append(ballot)
                spoken[kind].update(ballot.speaks_of)
            else:
                reasons[ballot.vote.seq] = reason
    return sorted(counted, key=lambda ballot: ballot.vote.seq), reasons


def _latest(prompt: PromptVotes, reasons: Reasons) -> list[Ballot]:
    """One ballot of each person, kind and thing that it is about."""
    latest: dict[tuple[object, ...], Ballot] = {}
    outvoted = _outvoted(prompt)
    for vote in sorted(prompt.votes, key=lambda vote: vote.seq):
        reason = _inadmissible(vote, prompt) or (LeftOut.CONTRADICTED if vote.seq in outvoted else None)
        if reason is not None:
            reasons[vote.seq] = reason
            continue
        ballot = _ballot(vote, prompt)
        about = (ballot.person, vote.kind, frozenset(key for _, key in ballot.speaks_of))
        if about in latest:  # one of the votes named its user, the other did not: they are one person's all the same
            reasons[latest[about].vote.seq] = LeftOut.COUNTED_ONCE
        latest[about] = ballot
    return list(latest.values())


def _inadmissible(vote: Vote, prompt: PromptVotes) -> LeftOut | None:
    """What is wrong with the vote on its own, whatever the others say."""
    if vote.held:
        return LeftOut.DROPPED if vote.seq in prompt.dropped else LeftOut.QUARANTINED
    if vote.tie:
        return LeftOut.TIE
    answer = prompt.answers.get(vote.choice)
    if answer is None:
        return LeftOut.NOT_STORED
    if answer.fault is not None:
        return answer.fault
    match vote.kind:
        case Kind.RATING:
            return LeftOut.ALREADY_LEARNED if vote.choice in prompt.learned_choices else None
        case Kind.CORRECTION:
            assert vote.correction is not None
            assert answer.text is not None
            return LeftOut.UNCHANGED if vote.correction.strip() == answer.text.strip() else None
        case Kind.COMPARISON:
            rival = None if vote.rival is None else prompt.answers.get(vote.rival)
            if rival is None:
                return LeftOut.NOT_STORED
            if rival.fault is not None:
                return rival.fault
            return LeftOut.UNCHANGED if answer.same_as(rival) else None


def _ballot(vote: Vote, prompt: PromptVotes) -> Ballot:
    answer = prompt.answers[vote.choice]
    user = vote.user if vote.user is not None else answer.asked_by  # who asks is who votes, unless the app says so
    return Ballot(vote, user, answer, None if vote.rival is None else prompt.answers[vote.rival])


def _outranked(ballot: Ballot, spoken: Mapping[Kind, set[Spoken]]) -> LeftOut | None:
    """Has the same person said something more deliberate of one of these choices?"""
    kind, about = ballot.vote.kind, ballot.speaks_of
    if kind is not Kind.CORRECTION and not spoken[Kind.CORRECTION].isdisjoint(about):
        return LeftOut.CONTRADICTED if ballot.vote.rating is Rating.UP else LeftOut.COUNTED_ONCE
    if kind is Kind.RATING and not spoken[Kind.COMPARISON].isdisjoint(about):
        return LeftOut.COUNTED_ONCE
    return None
