"""A pair in the making: the answers, the ballots that speak for it, and what of it is written down. Pure.

It does not know which ballots agree: `service/preferences.py` brings them together.
"""

from __future__ import annotations

from collections.abc import Iterable
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field

from service.curation.ballots import Answered, Ballot, PromptVotes
from service.curation.likeness import copied, pair_signature
from service.digest import content_digest
from service.pairs import Pair, Source

VOTER_DIGITS = 32


@dataclass
class Draft:
    """Ballots of several kinds may come to say the same: they join one draft."""

    source: Source
    chosen: Answered | None  # None: a correction, or a thumb down
    rejected: Answered | None  # None: a thumb up
    ballots: list[Ballot]
    # Each way in which the pair came about, as groups of voters; it takes one of each group.
    ways: list[list[set[str]]] = field(default_factory=list)
    correction: Ballot | None = None  # whose text is the chosen answer

    @property
    def id(self) -> str:
        chosen, rejected = (None if side is None else side.key for side in (self.chosen, self.rejected))
        if self.correction is not None:
            return content_digest({"origin": "votes", "correction": self.correction.vote.seq, "rejected": rejected})
        return content_digest({"origin": "votes", "chosen": chosen, "rejected": rejected})

    def join(self, other: Draft) -> None:
        """Takes in what says the same."""
        assert self.id == other.id, "drafts of different pairs"
        self.ballots += other.ballots
        self.ways += other.ways

    def pair(self, prompt: PromptVotes) -> Pair:
        ballots = sorted(self.ballots, key=lambda ballot: ballot.vote.seq)
        votes = [ballot.vote for ballot in ballots]
        corrected = None if self.correction is None else self.correction.vote
        chosen = _text(self.chosen) if corrected is None else corrected.correction or ""
        rejected = _text(self.rejected)
        assert self._prefers_another(), "no answer is better than itself"
        return Pair(
            id=self.id,
            source=self.source,
            prompt_digest=prompt.prompt_digest,
            app=prompt.app,
            chosen=None if self.chosen is None else self.chosen.key,
            rejected=None if self.rejected is None else self.rejected.key,
            correction=None if corrected is None else corrected.seq,
            votes=tuple(vote.seq for vote in votes),
            voter=voter(prompt.app, ballots[0].user),
            voters=tuple(sorted(voters(prompt.app, ballots))),
            charged_to=tuple(sorted(_indispensable(self.ways))),
            adapters=tuple(sorted({answer.adapter for answer in (self.chosen, self.rejected) if answer is not None})),
            tags=tuple(sorted({tag for vote in votes for tag in vote.tags})),
            voted_at=max(vote.voted_at for vote in votes),
            chosen_length=len(chosen),
            rejected_length=len(rejected),
            copied=copied(chosen, prompt.prompt_text),
            signature=pair_signature(prompt.question or prompt.prompt_text, chosen, rejected),
        )

    def _prefers_another(self) -> bool:
        if self.correction is not None:
            return (self.correction.vote.correction or "").strip() != _text(self.rejected).strip()
        if self.chosen is None or self.rejected is None:
            return True
        return self.chosen.token_ids != self.rejected.token_ids


def _text(answer: Answered | None) -> str:
    return "" if answer is None or answer.text is None else answer.text


def _indispensable(ways: Iterable[Iterable[AbstractSet[str]]]) -> set[str]:
    """Who is alone in a group of every way: without them the pair would not be."""
    return set.intersection(*({one for group in way if len(group) == 1 for one in group} for way in ways))


def voters(app: str, ballots: Iterable[Ballot]) -> set[str]:
    return {voter(app, ballot.user) for ballot in ballots}


def voter(app: str, user: str | None) -> str:
    """Stands for a person without naming them; for None it stands for all whom the app did not name."""
    return content_digest({"app": app, "user": user})[:VOTER_DIGITS]
