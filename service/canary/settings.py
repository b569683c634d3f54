"""What an operator may set about how a new adapter comes to answer: the sections `[canary]` and `[watch]`."""

from __future__ import annotations

from itertools import pairwise
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from service.canary.harm import Harm
from service.section import Section

Ratio = Annotated[float, Field(ge=1)]

# Likes of a policy are what it is trained for, so any rise of dislikes is harm. That answers become longer, or take a
# little longer to begin, is harm only from some size on.
TOLERATED = {Harm.DISLIKED: 1.0, Harm.FAILED: 1.0, Harm.REFUSED: 1.5, Harm.SLOW: 2.0, Harm.LONG: 3.0}


class Tolerated(Section):
    """How many times as often as the adapter before it a new one may do harm before that counts as harm."""

    disliked: Ratio = TOLERATED[Harm.DISLIKED]
    failed: Ratio = TOLERATED[Harm.FAILED]
    refused: Ratio = TOLERATED[Harm.REFUSED]
    slow: Ratio = TOLERATED[Harm.SLOW]
    long: Ratio = TOLERATED[Harm.LONG]

    def of(self, harm: Harm) -> float:
        return getattr(self, harm.value)


class CanarySettings(Section):
    steps: tuple[Annotated[float, Field(gt=0, le=1)], ...] = Field(
        default=(), description="shares of the users, such as [0.05, 0.25, 1.0]; 1.0 is the promotion. (): at once"
    )
    soak_minutes: float = Field(default=60.0, ge=0, description="that each step lasts at least")
    min_requests: int = Field(default=200, ge=1, description="of the candidate in each step, before the next")
    advance: Literal["automatic", "approved"] = Field(
        default="automatic", description="approved: each step waits for `heliotrope round approve N`"
    )
    give_up_hours: float = Field(
        default=72.0,
        gt=0,
        description="a step that has not seen min_requests by then ends the canary: old adapter stays",
    )
    alpha: float = Field(
        default=0.05, gt=0, lt=1, description="chance of stopping a harmless candidate, however often it is looked at"
    )
    tolerated: Tolerated = Tolerated()

    @model_validator(mode="after")
    def _grows(self) -> Self:
        if any(after <= before for before, after in pairwise(self.steps)):
            raise ValueError("steps must grow: each step answers more users than the one before")
        return self

    @property
    def shares(self) -> tuple[float, ...]:
        """The steps before the promotion."""
        return tuple(share for share in self.steps if share < 1)


class WatchSettings(Section):
    """After a promotion. The adapter before stays loaded, so that going back is one flip."""

    minutes: float = Field(default=0.0, ge=0, description="how long a promoted adapter is watched; 0: not at all")
    reference_hours: float = Field(
        default=168.0, gt=0, description="before the promotion, that what is seen now is compared with"
    )
    alpha: float = Field(default=0.01, gt=0, lt=1, description="chance of rolling a harmless adapter back")
    tolerance: Ratio = Field(
        default=1.5, description="times [canary] tolerated: other days have other users, unlike the arms of a canary"
    )
