"""Votes on their way into the table: their rows, and the answer to each of those that arrive together. Pure."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import Any, NamedTuple

from service.digest import content_digest
from service.errors import BadRequest, Conflict, HeliotropeError, NotFound, Unavailable
from service.keeping.redaction import Redactor
from service.votes import ChoiceKey, FeedbackBody, FeedbackReceipt, target

NO_USER = ""  # what the column holds when the app named no user

VoteKey = tuple[str, str]  # (app, feedback_id)
Recorded = tuple[FeedbackReceipt, bool]  # whether the vote is new


class Answered(NamedTuple):
    """A choice that can be voted on."""

    app: str
    adapter: str
    prompt_digest: str


class Kept(NamedTuple):
    """A vote that is in the table."""

    body_sha256: str
    effective: bool


@dataclass(frozen=True)
class IncomingVote:
    app: str
    body: FeedbackBody
    row: dict[str, Any]  # all but the prompt's digest

    @property
    def key(self) -> VoteKey:
        return self.app, self.row["feedback_id"]

    @property
    def slot(self) -> tuple[str, ...]:
        """Where only the last vote counts."""
        return self.app, self.row["target"], self.row["user"], self.row["kind"]

    @property
    def choices(self) -> list[ChoiceKey]:
        return [self.body.choice] if self.body.rival is None else [self.body.choice, self.body.rival]

    def locks(self) -> list[int]:
        """Numbers of advisory locks, 64 bits. Two that are alike by chance only wait for each other."""
        words = [self.slot] if self.body.feedback_id is None else [self.slot, self.key]
        return [_number(each) for each in words]


def incoming(app: str, body: FeedbackBody, redact: Redactor) -> IncomingVote:
    """Raises `RedactionFailed`. A body is the same as another by what was sent, not by what is kept of it."""
    rival_completion_id, rival_choice_index = body.rival or (None, None)
    row = {
        "feedback_id": body.feedback_id or f"fb_{secrets.token_hex(12)}",
        "app": app,
        "completion_id": body.completion_id,
        "choice_index": body.choice_index,
        "user": body.user or NO_USER,
        "kind": body.kind,
        "target": target(body),
        "rating": body.rating,
        "rival_completion_id": rival_completion_id,
        "rival_choice_index": rival_choice_index,
        "tie": body.tie,
        "correction": None if body.correction is None else redact.text(body.correction),
        "comment": None if body.comment is None else redact.text(body.comment),
        "tags": body.tags,
        "body_sha256": content_digest(body.model_dump(mode="json", exclude={"feedback_id"}, exclude_none=True)),
    }
    return IncomingVote(app, body, row)


def decide(
    votes: Sequence[IncomingVote],
    choices: Mapping[ChoiceKey, Answered],
    held: AbstractSet[ChoiceKey],
    kept: Mapping[VoteKey, Kept],
) -> tuple[list[Recorded | HeliotropeError], list[dict[str, Any]]]:
    """The answer to each vote, and the rows that are to be written, in the order of `votes`.

    `held` are choices that are being erased, `kept` the votes with the same keys that are in the table.
    """
    refusals: list[HeliotropeError | None] = []
    new: dict[VoteKey, IncomingVote] = {}
    last: dict[tuple[str, ...], VoteKey] = {}  # of the new votes, in each slot
    for vote in votes:
        earlier = kept[vote.key].body_sha256 if vote.key in kept else None
        earlier = new[vote.key].row["body_sha256"] if vote.key in new else earlier
        refusal = _not_there(vote, choices, held) or _another_body(vote, earlier)
        refusals.append(refusal)
        if refusal is None and earlier is None:
            new[vote.key] = vote
            last[vote.slot] = vote.key

    def recorded(vote: IncomingVote) -> Recorded:
        is_last = last.get(vote.slot, vote.key) == vote.key
        receipt = FeedbackReceipt(
            feedback_id=vote.row["feedback_id"],
            adapter=choices[vote.body.choice].adapter,
            effective=is_last and (vote.key in new or kept[vote.key].effective),
        )
        return receipt, new.get(vote.key) is vote

    answers = [refusal or recorded(vote) for vote, refusal in zip(votes, refusals, strict=True)]
    rows = [vote.row | {"prompt_digest": choices[vote.body.choice].prompt_digest} for vote in new.values()]
    return answers, rows


def _not_there(
    vote: IncomingVote, choices: Mapping[ChoiceKey, Answered], held: AbstractSet[ChoiceKey]
) -> HeliotropeError | None:
    """Why the vote speaks of nothing that this app was given; None where it does."""
    for field, choice in zip(("completion_id", "preferred_over"), vote.choices, strict=False):
        if choice in held:
            return Unavailable("This answer is being erased. Try again shortly.", code="storage_unavailable")
        if choice not in choices or choices[choice].app != vote.app:
            return NotFound(
                f"This app has no completion '{choice[0]}' with a choice {choice[1]}.",
                param=field,
                code="completion_not_found",
            )
    if len({choices[choice].prompt_digest for choice in vote.choices}) > 1:
        return BadRequest(
            "The two answers are to different prompts, so neither can be preferred. Compare answers to one prompt, "
            "such as the choices of one completion.",
            param="preferred_over",
            code="different_prompts",
        )
    return None


def _another_body(vote: IncomingVote, earlier_sha256: str | None) -> HeliotropeError | None:
    if earlier_sha256 in (None, vote.row["body_sha256"]):
        return None
    return Conflict(
        f"The feedback '{vote.row['feedback_id']}' was already sent with another body. Use a new feedback_id.",
        param="feedback_id",
        code="idempotency_conflict",
    )


def _number(words: Sequence[str]) -> int:
    return int.from_bytes(hashlib.sha256("\0".join(words).encode()).digest()[:8], signed=True)
