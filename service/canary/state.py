"""Where a canary is, and what it has seen: what a round keeps of it, so that a new Conductor goes on with the same.

Kept as JSON in the round. What was counted is never kept for counting on: at each look it is read from the store anew.
"""

from __future__ import annotations

from datetime import datetime
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict

from service.canary.harm import Harm, Usual


class _State(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Step(_State):
    """A time in which the candidate had one share of the users."""

    share: float  # as it was asked for
    drawn: float  # of the users whom no baseline answers: with this probability one is drawn for the candidate
    began: datetime
    ended: datetime | None = None
    approved_by: str | None = None  # who let the next step begin, where each waits for it


class Seen(_State):
    """One kind of harm so far, in all steps together."""

    harm: Harm
    candidate: int  # users of the candidate who came to it
    stable: int  # users of the adapter before who came to it
    e_value: float  # what a bet against harmlessness has made of 1
    bound: float  # where it stops the canary


class CanaryState(_State):
    """The rollout of one candidate."""

    candidate: str
    stable: str
    usual: Usual  # what is neither slow nor long
    step: int = 0  # the next of the settings' shares that has not begun
    steps: tuple[Step, ...] = ()
    open: bool = True  # the route may name the candidate for this round's sake; it is to be taken off
    held: bool = False  # something looks like harm: no further step until it no longer does
    requests: int = 0  # of the candidate in this step
    users: dict[str, int] = {}  # candidate, stable -> who asked so far
    seen: tuple[Seen, ...] = ()
    waits_for: str | None = None  # why the next step has not begun

    @property
    def now(self) -> Step | None:
        """The step that goes on; None: none has begun, or the last has ended."""
        return self.steps[-1] if self.steps and self.steps[-1].ended is None else None

    def begin(self, share: float, drawn: float, at: datetime) -> Self:
        assert not self.steps or self.steps[-1].ended is not None, "one step at a time"
        return self.model_copy(update={"steps": (*self.steps, Step(share=share, drawn=drawn, began=at))})

    def end(self, at: datetime) -> Self:
        """Ending twice ends once."""
        if self.now is None:
            return self
        return self.model_copy(update={"steps": (*self.steps[:-1], self.now.model_copy(update={"ended": at}))})

    def approve(self, who: str) -> Self:
        assert self.now is not None
        return self.model_copy(update={"steps": (*self.steps[:-1], self.now.model_copy(update={"approved_by": who}))})


class Watched(_State):
    """One kind of harm since everybody is answered by the promoted adapter."""

    harm: Harm
    rate: float  # of the users of an hour who came to it
    before: float  # the same of the adapter before it
    e_value: float
    bound: float


class WatchState(_State):
    """The time after a promotion, in which harm takes the adapter back by itself."""

    adapter: str
    before: str  # that a rollback returns to
    began: datetime
    until: datetime
    open: bool = True
    users: int = 0  # who asked, each once an hour
    seen: tuple[Watched, ...] = ()
    ended: Literal["kept", "rolled_back", "overtaken"] | None = None
    why: str | None = None
