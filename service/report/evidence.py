"""What the data report is made of: the pairs of a round that could start now, and the votes as counts. Pure records.

The votes are counted by the database (`service/store/insight.py`), so that a report costs no row of theirs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from datetime import date, datetime
from typing import Literal

from service.pairs import Funnel, LeftOut, Pair
from service.report.formulas import Unit

DAYS_SHOWN = 60  # of votes day by day, up to today

SliceKind = Literal["source", "app", "adapter", "tag"]


@dataclass(frozen=True)
class DayVotes:
    """The effective votes of a day (UTC)."""

    day: date
    up: int = 0
    down: int = 0
    comparisons: int = 0
    corrections: int = 0


@dataclass(frozen=True)
class SliceVotes:
    """The effective votes on the answers of one app, of one adapter, or with one tag."""

    kind: SliceKind
    name: str
    votes: int
    up: int
    down: int


@dataclass(frozen=True)
class VoteFacts:
    """All effective votes, counted; histories where it says so."""

    days: Sequence[DayVotes] = ()  # of the last DAYS_SHOWN days, those that have any
    slices: Sequence[SliceVotes] = ()
    people_of: Mapping[int, int] = field(default_factory=dict)  # votes -> people with a name who gave so many
    unnamed: int = 0  # votes without `user`
    rated: Mapping[Unit, int] = field(default_factory=dict)  # (ups, downs) of one answer -> answers with just those
    compared: Mapping[Unit, int] = field(default_factory=dict)  # (first, other, neither is better) -> comparisons
    repeats: int = 0  # votes of a person on what they had voted on before; history
    changes: int = 0  # of those: the ones that say something else
    written: int = 0  # votes ever written; history
    retracted: int = 0  # of those


@dataclass(frozen=True)
class Evidence:
    """One round's data, as it would be if it started now."""

    now: datetime
    objective: str
    funnel: Funnel
    kept: Sequence[Pair]  # after all guards; thumbs too where the objective learns from them
    left_out: Sequence[tuple[Pair, LeftOut]] = ()  # by the guards
    held_out: AbstractSet[str] = frozenset()  # ids of kept ones
    learned_prompts: AbstractSet[str] = frozenset()  # digests of held-out prompts that an earlier round trained on
    votes: VoteFacts = VoteFacts()
    min_pairs: int = 2  # for the round to do anything
    min_held_out_pairs: int = 1  # for the gate to decide
