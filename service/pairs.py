"""Preferences as records: pairs, what was imported, and what became of every vote. `preferences.py` makes them."""

from __future__ import annotations

import enum
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class LeftOut(enum.StrEnum):
    """Why a vote is in no pair. Shown to the operator."""

    ALREADY_LEARNED = "already_learned"  # its answer is in a pair of an earlier round
    NO_PARTNER = "no_partner"  # no opposite vote on another answer to the same rendered prompt
    CONTRADICTED = "contradicted"  # as many or more votes say the opposite of the very same answer
    NOT_STORED = "not_stored"  # the request said `store: false`
    TRUNCATED = "truncated"  # the answer ran into its token limit
    EMPTY = "empty"  # the answer has no text


class Pair(_Record):
    """A preference: of two answers to one prompt, this one over that one. Or a single thumb, which has one answer."""

    id: str  # sha256 hex over the content
    origin: Literal["votes", "import"]
    prompt_digest: str
    app: str | None  # None for an imported pair
    chosen: tuple[str, int] | None  # (completion_id, choice_index); None for an imported pair and a thumb down
    rejected: tuple[str, int] | None
    votes: tuple[int, ...] = ()  # seq of the votes it was made from
    voter: str | None = None  # a digest that stands for who voted first; None: the app named nobody

    @property
    def is_thumb(self) -> bool:
        return (self.chosen is None) != (self.rejected is None)


class ImportedPair(_Record):
    """A line of TRL's standard or conversational format, normalised to messages."""

    id: str
    messages: tuple[dict[str, Any], ...]
    chosen: str
    rejected: str


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
    thumbs: int = 0  # answers without a partner
    pairs_replayed: int = 0  # of earlier rounds, chosen when the round collected

    @property
    def pairs(self) -> int:
        """New pairs that a round started now would learn from."""
        return self.pairs_from_votes + self.pairs_imported
