"""Preferences as records: pairs, single thumbs, what was imported, and what became of every vote.

`service/preferences.py` makes them of votes, `service/curation/guards.py` says which of them count.
"""

from __future__ import annotations

import enum
from datetime import datetime
from typing import Any

from pydantic import BaseModel, ConfigDict, model_validator

from service.votes import ChoiceKey


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Source(enum.StrEnum):
    """Where a preference comes from, the best signal first: of two that say the same the better one is kept."""

    CORRECTION = "correction"  # the user's own text rather than the answer
    SIDE_BY_SIDE = "side_by_side"  # one user saw both answers and chose
    SIBLINGS = "siblings"  # one user liked one answer to a prompt and not another: n > 1, or asked again
    SAME_PROMPT = "same_prompt"  # two users of one app, the same rendered prompt, which holds nothing personal
    IMPORT = "import"  # a file
    THUMB = "thumb"  # no pair: an answer that was rated and found no partner

    @property
    def rank(self) -> int:
        """0 is best."""
        return _RANKS[self]


_RANKS = {source: rank for rank, source in enumerate(Source)}


class LeftOut(enum.StrEnum):
    """Why a vote counts in no pair. Shown to the operator."""

    # of a vote
    ALREADY_LEARNED = "already_learned"  # its answer is in a pair of an earlier round
    NO_PARTNER = "no_partner"  # no opposite vote on another answer to the same rendered prompt
    CONTRADICTED = "contradicted"  # as many or more votes say the opposite
    NOT_STORED = "not_stored"  # the request said `store: false`
    REDACTED = "redacted"  # the redaction hook changed the text, so its tokens were not kept
    TRUNCATED = "truncated"  # the answer ran into its token limit
    FAILED = "failed"  # the answer broke off
    UNFINISHED = "unfinished"  # its client went away, or its time was up, before the whole answer was there
    EMPTY = "empty"  # the answer has no text
    UNCHANGED = "unchanged"  # both answers are the same: a correction that changes nothing, or two samples alike
    TIE = "tie"  # it says that neither answer is better
    COUNTED_ONCE = "counted_once"  # another vote of the same user on the same completion counts already
    PERSONAL = "personal"  # a conversation: only the answers that one user saw are compared
    QUARANTINED = "quarantined"  # held back until an operator decides
    DROPPED = "dropped"  # an operator dropped it from quarantine
    # of a pair, and so of its votes
    DUPLICATE = "duplicate"  # another pair has the same prompt and answers
    NEAR_DUPLICATE = "near_duplicate"  # another pair says nearly the same words
    FROZEN = "frozen"  # a suite of the gate asks the same question, and nobody learns the exam
    DICTATED = "dictated"  # the prompt itself holds the answer that was chosen
    TOO_OLD = "too_old"  # its votes are older than preferences.max_age_days
    STALE_ADAPTER = "stale_adapter"  # too many adapters have answered since
    USER_CAP = "user_cap"  # its voter has enough pairs in this round
    USER_DAY_CAP = "user_day_cap"  # its voter has enough pairs of that day
    APP_CAP = "app_cap"  # its app has its share of the round
    PROMPT_CAP = "prompt_cap"  # its prompt has enough pairs
    LENGTH_BALANCE = "length_balance"  # enough pairs prefer the longer answer already


class Fate(_Record):
    """What became of a vote when its prompt was last matched."""

    pair_id: str | None = None  # the pair, or thumb, that it is in
    reason: LeftOut | None = None  # why it is in none

    @model_validator(mode="after")
    def _one_of_both(self) -> Fate:
        assert (self.pair_id is None) != (self.reason is None), "a vote is in a pair, or there is a reason why not"
        return self


class Pair(_Record):
    """A preference: of two answers to one prompt, this one over that one. Or a single thumb, which has one answer.

    What guards need to know of its texts is in it as numbers, so that they need not be read again.
    """

    id: str  # sha256 hex over the content
    source: Source
    prompt_digest: str
    app: str | None  # None for an imported pair
    chosen: ChoiceKey | None  # None for an imported pair, a correction and a thumb down
    rejected: ChoiceKey | None  # None for an imported pair and a thumb up
    correction: int | None = None  # seq of the vote whose text is the chosen answer
    votes: tuple[int, ...] = ()  # seq of the votes it was made from
    voter: str | None = None  # a digest that stands for who voted first; None: an imported pair
    voters: tuple[str, ...] = ()  # digests of all who voted for it, sorted
    charged_to: tuple[str, ...] = ()  # of them whom it counts for in caps: each without whom it would not be
    adapters: tuple[str, ...] = ()  # that wrote its answers
    tags: tuple[str, ...] = ()  # of its votes, sorted
    voted_at: datetime | None = None  # its latest vote; None: an imported pair
    chosen_length: int = 0  # characters
    rejected_length: int = 0  # characters
    copied: float = 0.0  # share of the chosen answer that stands in the prompt already, word for word
    signature: tuple[int, ...] = ()  # a MinHash of prompt and answers: near duplicates agree in most places
    weight: float = 1.0  # in the mean loss of its step

    @property
    def is_thumb(self) -> bool:
        return self.source is Source.THUMB


class ImportedPair(_Record):
    """A preference from a file, normalised to messages. A single thumb has one of the two answers."""

    id: str  # sha256 hex over messages and answers, so that a second import adds nothing
    messages: tuple[dict[str, Any], ...]
    chosen: str | None
    rejected: str | None
    format: str = "trl"  # as it was read: `training/formats` lists them

    @property
    def is_thumb(self) -> bool:
        return (self.chosen is None) != (self.rejected is None)


class Funnel(_Record):
    """From votes to new pairs, with a reason for every vote left out.

    votes = votes_in_pairs + votes_in_thumbs + sum(left_out).
    """

    votes: int  # effective votes
    votes_in_pairs: int
    votes_in_thumbs: int = 0  # that found no partner, where the objective learns from them all the same
    left_out: dict[str, int]  # LeftOut -> votes
    pairs_from_votes: int
    pairs_imported: int
    thumbs: int = 0  # answers without a partner, from votes and imports
    pairs_replayed: int = 0  # of earlier rounds, chosen when the round collected
    sources: dict[str, int] = {}  # Source -> new pairs
    users: int = 0  # whose votes are in the pairs and thumbs; imported ones have none
    apps: int = 0  # that these users came from

    @property
    def pairs(self) -> int:
        """New pairs that a round started now would learn from."""
        return self.pairs_from_votes + self.pairs_imported
