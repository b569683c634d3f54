"""What was said of answers to a prompt, and what they were: effective votes and answers as matching needs them.

A vote is effective when it is the last of its user, of its kind, on its target, and was not retracted. The functions
read in their caller's transaction.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Row, and_, any_, func, select
from sqlalchemy.dialects.postgresql import distinct_on
from sqlalchemy.ext.asyncio import AsyncConnection

from service.curation.ballots import Answered
from service.postgres.arrays import as_table, integers, texts
from service.store.feedback import NO_USER
from service.store.pairs import PromptKey, among
from service.store.round_pairs import choice_key
from service.store.tables import choices, completions, feedback, vote_fates
from service.votes import ChoiceKey, Kind, Rating, Vote

SLOT = ("target", "user", "kind")  # where only the last vote counts


@dataclass(frozen=True)
class Said:
    """An effective vote as it is kept."""

    vote: Vote  # `held` is not known yet
    prompt: PromptKey
    target: str
    changes: int  # how often its user has changed their mind
    is_new: bool  # it was never matched


@dataclass(frozen=True)
class Asked:
    """A prompt, from what is stored of its completions. Texts are "" where nothing is."""

    text: str  # of its system and user messages, joined by newlines
    question: str  # of the last user message
    single_turn: bool


NOTHING_STORED = Asked("", "", single_turn=False)


async def votes_on(connection: AsyncConnection, keys: Sequence[PromptKey]) -> list[Said]:
    """The effective votes on these prompts, by `seq`."""
    prompt, slot = among(keys), [feedback.c[name] for name in SLOT]
    last = (
        select(feedback, (func.count().over(partition_by=slot) - 1).label("changes"))
        .join(prompt, (prompt.c.app == feedback.c.app) & (prompt.c.prompt_digest == feedback.c.prompt_digest))
        .ext(distinct_on(*slot))
        .order_by(*slot, feedback.c.seq.desc())
        .subquery("last")
    )
    found = await connection.execute(
        select(last, vote_fates.c.seq.is_(None).label("is_new"))
        .outerjoin(vote_fates, vote_fates.c.seq == last.c.seq)
        # Asked of the last vote, not before it is chosen: else a retraction would bring an older vote back.
        .where(~last.c.retracted)
        .order_by(last.c.seq)
    )
    return [
        Said(as_vote(row), (row.app, row.prompt_digest), row.target, row.changes, is_new=row.is_new) for row in found
    ]


async def answers_to(
    connection: AsyncConnection, said: Iterable[Said]
) -> tuple[dict[ChoiceKey, Answered], dict[PromptKey, Asked]]:
    """The answers that these votes speak of, and the prompts that they answer."""
    keys = sorted({key for one in said for key in (one.vote.choice, one.vote.rival) if key is not None})
    wanted = as_table("wanted", completion_id=texts(id for id, _ in keys), choice_index=integers(i for _, i in keys))
    same = [choices.c[name] == wanted.c[name] for name in ("completion_id", "choice_index")]
    about = [
        completions.c[name]
        for name in ("app", "prompt_digest", "adapter", "user", "single_turn", "redacted", "outcome")
    ]
    found = await connection.execute(
        select(choices, *about, completions.c.messages.is_not(None).label("has_messages"))
        .join(wanted, and_(*same))
        .join(completions, completions.c.id == choices.c.completion_id)
        .order_by(choices.c.completion_id, choices.c.choice_index)
    )
    rows = found.all()
    answers = [_answered(row) for row in rows]
    return {answer.key: answer for answer in answers}, await _asked(connection, rows)


async def _asked(connection: AsyncConnection, answers: Sequence[Row[Any]]) -> dict[PromptKey, Asked]:
    """Prompts that are rendered alike have the same messages: those of one completion stand for all."""
    single_turn: dict[PromptKey, bool] = {}
    stored_in: dict[PromptKey, str] = {}  # the first completion that has the messages
    for row in answers:
        key = (row.app, row.prompt_digest)
        single_turn[key] = single_turn.get(key, True) and row.single_turn
        if row.has_messages:
            stored_in.setdefault(key, row.completion_id)
    ids = any_(texts(sorted(stored_in.values())))
    found = await connection.execute(select(completions.c.id, completions.c.messages).where(completions.c.id == ids))
    messages = {row.id: row.messages for row in found}
    asked = {}
    for key, single in single_turn.items():
        said = _said(messages[stored_in[key]]) if key in stored_in else []
        question = next((text for role, text in reversed(said) if role == "user"), "")
        asked[key] = Asked("\n".join(text for _, text in said), question, single)
    return asked


def _said(messages: Iterable[Any]) -> list[tuple[str, str]]:
    """(role, content) of what the app and its user wrote."""
    return [
        (message["role"], _text(message.get("content")))
        for message in messages
        if message.get("role") in ("system", "developer", "user")
    ]


def _text(content: Any) -> str:
    """A message's content is a string, or a list of parts, some of which are text."""
    if isinstance(content, list):
        return "\n".join(part["text"] for part in content if isinstance(part, dict) and "text" in part)
    return content if isinstance(content, str) else ""


def as_vote(row: Row[Any]) -> Vote:
    """From a row of `feedback`. Not validated again: it was when it came in."""
    return Vote.model_construct(
        seq=row.seq,
        app=row.app,
        user=None if row.user == NO_USER else row.user,
        kind=Kind(row.kind),
        completion_id=row.completion_id,
        choice_index=row.choice_index,
        rating=None if row.rating is None else Rating(row.rating),
        rival=choice_key(row.rival_completion_id, row.rival_choice_index),
        tie=row.tie,
        correction=row.correction,
        tags=tuple(row.tags),
        voted_at=row.created_at,
        held=False,
    )


def _answered(row: Row[Any]) -> Answered:
    return Answered(
        key=(row.completion_id, row.choice_index),
        adapter=row.adapter,
        finish_reason=row.finish_reason,
        text=row.text,
        token_ids=None if row.token_ids is None else tuple(row.token_ids),
        redacted=row.redacted,
        finished=row.outcome == "finished",
        asked_by=row.user,
    )
