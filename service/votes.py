"""What people say of an answer: a thumb, a comparison with another answer, or the text it should have been.

The body of `POST /v1/feedback` first, then a vote as it counts. Pure; `service/preferences.py` makes pairs of votes.
"""

from __future__ import annotations

import enum
import re
from datetime import datetime
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, field_validator, model_validator

MAX_TEXT = 16_384  # characters of a comment
MAX_CORRECTION = 131_072  # characters
MAX_TAGS = 32
MAX_TAG = 64  # characters
MAX_CHOICE_INDEX = 127

ChoiceKey = tuple[str, int]  # (completion_id, choice_index)
_HALF_PAIR = re.compile("[\ud800-\udfff]")


class _Contract(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Rating(enum.StrEnum):
    UP = "up"
    DOWN = "down"


class Kind(enum.StrEnum):
    """What a vote says; of each kind a user has one effective vote on the same thing."""

    RATING = "rating"  # a thumb on one choice
    COMPARISON = "comparison"  # one choice rather than another, or neither rather than the other
    CORRECTION = "correction"  # the text that a choice should have been


_SPELLINGS = {
    Rating.UP: ("up", "thumbs_up", "thumb_up", "thumbsup", "positive", "good", "like", "yes", "true", "1", "+1"),
    Rating.DOWN: ("down", "thumbs_down", "thumb_down", "thumbsdown", "negative", "bad", "dislike", "no", "false", "-1"),
}
_RATINGS = {spelling: rating for rating, spellings in _SPELLINGS.items() for spelling in spellings}


def _storable(value: str) -> str:
    """PostgreSQL's text holds neither NUL nor half a surrogate pair."""
    if "\0" in value:
        raise ValueError("must not contain the NUL character")
    if _HALF_PAIR.search(value):
        raise ValueError("must not contain half of a surrogate pair")
    return value


StorableText = Annotated[str, AfterValidator(_storable)]
CompletionId = Annotated[StorableText, Field(min_length=1, max_length=200)]
User = Annotated[StorableText, Field(min_length=1, max_length=256)]
ChoiceIndex = Annotated[int, Field(ge=0, le=MAX_CHOICE_INDEX)]
Tag = Annotated[StorableText, Field(min_length=1, max_length=MAX_TAG)]


class Rival(_Contract):
    """The other side of a comparison: the choice that the vote's own is preferred to."""

    completion_id: CompletionId | None = None  # None: the same completion
    choice_index: ChoiceIndex = 0
    tie: bool = False  # neither is better


class FeedbackBody(_Contract):
    """`POST /v1/feedback`: exactly one of `rating`, `preferred_over` and `correction`; the last write wins."""

    completion_id: CompletionId
    choice_index: ChoiceIndex = 0
    rating: Rating | None = None
    preferred_over: Rival | None = None
    correction: StorableText | None = Field(default=None, min_length=1, max_length=MAX_CORRECTION)
    user: User | None = None
    comment: StorableText | None = Field(default=None, max_length=MAX_TEXT)
    tags: tuple[Tag, ...] = Field(default=(), max_length=MAX_TAGS)
    feedback_id: StorableText | None = Field(default=None, min_length=1, max_length=200)

    @field_validator("rating", mode="before")
    @classmethod
    def _normalised(cls, value: Any) -> Any:
        """The spellings that clients use: `thumbs_up`, 1 and -1, true and false."""
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        spelling = str(value).strip().lower() if isinstance(value, str | int) else None
        if value is not None and spelling not in _RATINGS:
            raise ValueError("must be 'up' or 'down' (or thumbs_up, thumbs_down, 1, -1, true, false)")
        return None if spelling is None else _RATINGS[spelling]

    @field_validator("correction")
    @classmethod
    def _says_something(cls, value: str | None) -> str | None:
        if value is not None and not value.strip():
            raise ValueError("must not be blank: it is the text that the answer should have been")
        return value

    @model_validator(mode="after")
    def _one_thing(self) -> FeedbackBody:
        given = [name for name in ("rating", "preferred_over", "correction") if getattr(self, name) is not None]
        if len(given) != 1:
            found = f"it has {' and '.join(given)}" if given else "it has none of them"
            raise ValueError(f"feedback is exactly one of rating, preferred_over and correction; {found}")
        if self.rival == self.choice:
            raise ValueError("preferred_over names the very same choice; name the other one")
        return self

    @property
    def kind(self) -> Kind:
        if self.rating is not None:
            return Kind.RATING
        return Kind.CORRECTION if self.correction is not None else Kind.COMPARISON

    @property
    def choice(self) -> ChoiceKey:
        return self.completion_id, self.choice_index

    @property
    def rival(self) -> ChoiceKey | None:
        """The other choice of a comparison."""
        other = self.preferred_over
        return None if other is None else (other.completion_id or self.completion_id, other.choice_index)

    @property
    def tie(self) -> bool:
        return self.preferred_over is not None and self.preferred_over.tie


class FeedbackReceipt(_Contract):
    """What a voter gets back once the vote is durable."""

    feedback_id: str
    adapter: str  # the adapter that wrote the answer
    effective: bool  # False: a later vote of the same user on the same thing already stands, or it was retracted


class Vote(_Contract):
    """An effective vote: the last of its user, of its kind, on its choice (of comparisons: on its two choices)."""

    seq: int  # the store's own order
    app: str
    user: str | None
    kind: Kind
    completion_id: str
    choice_index: int
    rating: Rating | None = None  # of a rating
    rival: ChoiceKey | None = None  # of a comparison: the choice that this one is preferred to
    tie: bool = False  # of a comparison: neither is better
    correction: str | None = None  # of a correction
    tags: tuple[str, ...] = ()
    voted_at: datetime
    held: bool = False  # in quarantine, or dropped there

    @property
    def choice(self) -> ChoiceKey:
        return self.completion_id, self.choice_index


def target(body: FeedbackBody) -> str:
    """What the vote is about, as one word: of a user's votes of a kind on the same target the last one counts.

    A comparison is about two choices, whichever of them it prefers.
    """
    sides = sorted(side for side in (body.choice, body.rival) if side is not None)
    return " ".join(f"{completion_id}/{choice_index}" for completion_id, choice_index in sides)
