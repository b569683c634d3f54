"""The data report as a record: what a round would learn from, and what is unusual about it.

`measuring.py` makes it of pairs and counted votes, `findings.py` says what to do, `page.py` and the command line
show it. `None` stands for a number that there is too little data for.
"""

from __future__ import annotations

import enum
from datetime import date, datetime

from pydantic import BaseModel, ConfigDict

from service.pairs import Funnel, LeftOut
from service.report.evidence import SliceKind
from service.report.formulas import wilson


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Severity(enum.StrEnum):
    ACT = "act"  # a round now would learn something that nobody meant
    LOOK = "look"  # unusual; somebody should know why
    OK = "ok"


class Finding(_Record):
    """One thing that was looked at: a sentence, and the number and bound that it rests on."""

    name: str
    severity: Severity
    says: str  # what is there and, unless all is well, what to do
    value: float | None = None
    bound: float | None = None


class Share(_Record):
    """So many of so many, with Wilson's interval at 95 %."""

    count: int
    total: int
    share: float | None
    low: float | None
    high: float | None

    @classmethod
    def of(cls, count: int, total: int) -> Share:
        bounds = wilson(count, total)
        if bounds is None:
            return cls(count=0, total=0, share=None, low=None, high=None)
        return cls(count=count, total=total, share=count / total, low=bounds.low, high=bounds.high)


class PairCounts(_Record):
    """After the guards. A thumb is no pair: it has one answer."""

    pairs: int
    from_votes: int
    imported: int
    thumbs: int
    training: int  # pairs
    held_out: int  # pairs
    sources: dict[str, int]  # Source -> pairs
    left_out: dict[LeftOut, int]  # pairs that the guards left out


class Voters(_Record):
    """Who gave the votes, and whose votes the pairs are. Nobody is named."""

    people: int  # who gave an effective vote, with a name
    top_of_votes: Share  # the votes of the keenest of them
    gini_of_votes: float | None
    unnamed: Share  # votes without `user`
    people_in_pairs: int  # who voted first for a pair; the unnamed of an app count as one
    top_of_pairs: Share  # the pairs of the keenest voter, of all from votes
    top_voter: str | None  # the digest that stands for them
    pairs_of_top: tuple[int, ...]  # of the keenest voters, the keenest first
    gini_of_pairs: float | None


class Agreement(_Record):
    """Of votes by different people on the same thing."""

    things: int  # that two people or more have voted on
    votes: int  # on those
    raw: float | None
    alpha: float | None  # Krippendorff's


class Constancy(_Record):
    """Of votes by the same person on the same thing, one after the other."""

    changed: Share  # of the repeated votes, those that say something else than the one before
    retracted: Share  # of all votes ever written


class Bin(_Record):
    """Pairs whose value is at least `low` and below `high`; None: no bound."""

    low: float | None
    high: float | None
    pairs: int


class Length(_Record):
    """In characters, of pairs whose two answers both have some."""

    chosen_longer: Share  # of the pairs whose answers differ in length
    mean_ratio: float | None  # chosen to rejected, geometric
    correlation: float | None  # of an answer's log length with being the chosen one
    ratios: tuple[Bin, ...]  # chosen to rejected


class Position(_Record):
    """Of pairs whose answers were shown together, as choices of one completion."""

    first_chosen: Share


class Likeness(_Record):
    """Pairs that say what others say."""

    duplicates: Share  # left out as duplicates, of all pairs before the guards
    near_duplicates: Share  # left out as nearly the same, of the same
    look_alikes: Share  # of the kept pairs, those much like another one; the first of such a group does not count
    bound: float  # likeness from which two pairs are look-alikes
    contradicted: Share  # votes that others outvoted, of all effective ones


class Leakage(_Record):
    """What training sees of the held-out pairs, all of which should be nothing."""

    prompts: Share  # held-out pairs whose prompt is trained on too
    look_alikes: Share  # held-out pairs with a training pair like them
    learned_before: Share  # held-out pairs whose prompt an earlier round has trained on


class Ages(_Record):
    """Days since the latest vote, of pairs from votes."""

    median_days: float | None
    oldest_days: float | None
    days: tuple[Bin, ...]


class Day(_Record):
    """The effective votes of a day (UTC), and the kept pairs whose latest vote is of that day."""

    day: date
    up: int
    down: int
    comparisons: int
    corrections: int
    pairs: int


class Slice(_Record):
    """A part of the data. With tags and adapters a pair may be in several."""

    kind: SliceKind
    name: str
    pairs: int
    share: float | None  # of all pairs
    votes: int | None  # None: votes have no source
    liked: Share  # thumbs up, of all thumbs
    mean_length_ratio: float | None


class Needed(_Record):
    """How many held-out pairs show this win rate."""

    win_rate: float
    pairs: int


class Power(_Record):
    """What a gate can see: one-sided test at 5 %, 80 of 100 times."""

    held_out_pairs: int
    win_rate: float | None  # the smallest that so many pairs can tell from a coin
    needed: tuple[Needed, ...]


class DataReport(_Record):
    """`GET /ops/preferences/report`, and `report` of a round's dry run."""

    made_at: datetime
    objective: str
    min_pairs: int
    min_held_out_pairs: int
    findings: tuple[Finding, ...]  # the most urgent first
    funnel: Funnel
    counts: PairCounts
    voters: Voters
    ratings: Agreement
    comparisons: Agreement
    constancy: Constancy
    length: Length
    position: Position
    likeness: Likeness
    leakage: Leakage
    ages: Ages
    days: tuple[Day, ...]
    slices: tuple[Slice, ...]  # the largest of each kind
    slices_left_out: dict[SliceKind, int]  # that are too many to be shown
    power: Power
