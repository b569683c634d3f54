"""Votes as they came in. Every vote is a new row and none is ever changed, but for the mark that it was retracted.

The effective vote of a user on a choice is the one with the highest `seq`; which pairs follow from the effective
votes is `service/preferences.py`'s to say.
"""

from __future__ import annotations

import secrets
from typing import Any

from sqlalchemy import Select, and_, func, select, update
from sqlalchemy.dialects.postgresql import insert as upsert
from sqlalchemy.ext.asyncio import AsyncConnection

from service.digest import content_digest
from service.errors import Conflict, NotFound
from service.store.sessions import Sessions
from service.store.tables import choices, completions, feedback
from service.votes import FeedbackBody, FeedbackReceipt

RATING = "rating"  # the kind of a thumbs-up or thumbs-down
NO_USER = ""  # what the column holds when the app named no user


class Feedback:
    def __init__(self, sessions: Sessions) -> None:
        self._sessions = sessions

    async def put(self, app: str, body: FeedbackBody) -> tuple[FeedbackReceipt, bool]:
        """Records a vote: its receipt, and whether it is new. Durable when it returns (invariant 4).

        A repeated `feedback_id` with the same body answers with the first receipt and False; with another body it
        raises `Conflict`. Raises `NotFound` for a choice that this app was never given.
        """
        row = _row(app, body)
        async with self._sessions.transaction() as connection:
            adapter = (await connection.execute(_adapter_of(app, body))).scalar_one_or_none()
            if adapter is None:
                raise NotFound(
                    f"This app has no completion '{body.completion_id}' with a choice {body.choice_index}.",
                    param="completion_id",
                    code="completion_not_found",
                )
            inserted = await connection.execute(
                upsert(feedback)
                .values(row)
                .on_conflict_do_nothing(index_elements=[feedback.c.app, feedback.c.feedback_id])
                .returning(feedback.c.seq)
            )
            created = inserted.one_or_none() is not None
            effective = await _is_effective(connection, row)
        return FeedbackReceipt(feedback_id=row["feedback_id"], adapter=adapter, effective=effective), created

    async def retract(self, app: str, feedback_id: str) -> None:
        """Takes a vote back; again changes nothing. An older vote of the same user does not come back.

        Raises `NotFound` for a vote that this app never sent.
        """
        async with self._sessions.transaction() as connection:
            retracted = await connection.execute(
                update(feedback)
                .where(feedback.c.app == app, feedback.c.feedback_id == feedback_id)
                .values(retracted=True)
                .returning(feedback.c.seq)
            )
            if retracted.one_or_none() is None:
                raise NotFound(
                    f"This app has sent no feedback '{feedback_id}'.", param="feedback_id", code="feedback_not_found"
                )


def _row(app: str, body: FeedbackBody) -> dict[str, Any]:
    return {
        "feedback_id": body.feedback_id or f"fb_{secrets.token_hex(12)}",
        "app": app,
        "completion_id": body.completion_id,
        "choice_index": body.choice_index,
        "user": body.user or NO_USER,
        "kind": RATING,
        "rating": body.rating.value,
        "comment": body.comment,
        "tags": list(body.tags),
        "body_sha256": content_digest(body.model_dump(mode="json", exclude={"feedback_id"})),
    }


def _adapter_of(app: str, body: FeedbackBody) -> Select[Any]:
    """Who wrote the choice, if it exists and was given to this app."""
    return (
        select(completions.c.adapter)
        .join(choices, choices.c.completion_id == completions.c.id)
        .where(
            completions.c.id == body.completion_id,
            completions.c.app == app,
            choices.c.choice_index == body.choice_index,
        )
    )


async def _is_effective(connection: AsyncConnection, row: dict[str, Any]) -> bool:
    """Whether the vote as it is kept is the last of its user on its choice, and not retracted.

    Raises `Conflict` when what is kept under this `feedback_id` is not what `row` says.
    """
    later = feedback.alias("later")
    same_target = [later.c[name] == feedback.c[name] for name in ("completion_id", "choice_index", "user", "kind")]
    last = select(func.max(later.c.seq)).where(and_(*same_target)).scalar_subquery()
    found = await connection.execute(
        select(feedback.c.body_sha256, feedback.c.retracted, (feedback.c.seq == last).label("is_last")).where(
            feedback.c.app == row["app"], feedback.c.feedback_id == row["feedback_id"]
        )
    )
    kept = found.one()
    if kept.body_sha256 != row["body_sha256"]:
        raise Conflict(
            f"The feedback '{row['feedback_id']}' was already sent with another body. Use a new feedback_id.",
            param="feedback_id",
            code="idempotency_conflict",
        )
    return kept.is_last and not kept.retracted
