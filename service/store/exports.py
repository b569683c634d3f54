"""Preferences with their texts, page by page: pairs and thumbs from votes, and what was imported.

A page begins behind the last id of the one before, in a transaction of its own: no export holds one open for as long as
its reader takes, and none gives a pair twice, whatever becomes of it in between.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from sqlalchemy import ARRAY, BigInteger, Select, Text, any_, func, literal, select
from sqlalchemy.dialects.postgresql import distinct_on
from sqlalchemy.ext.asyncio import AsyncConnection

from service.exchange.exports import Exportable, Message, Status
from service.pairs import LeftOut, Source
from service.postgres.sessions import Sessions
from service.store.round_pairs import SETTLED, choice_key, counts, learned, used_up
from service.store.tables import (
    choices,
    completions,
    feedback,
    imported_pairs,
    preference_pairs,
    round_pairs,
    rounds,
    vote_fates,
)
from service.votes import ChoiceKey

_UNSTORED = (LeftOut.NOT_STORED.value, LeftOut.REDACTED.value)
_CONTENT = ("chosen_completion_id", "chosen_choice_index", "rejected_completion_id", "rejected_choice_index",
            "correction", "source")  # fmt: skip


@dataclass(frozen=True, slots=True)
class _Voted:
    """A pair, or thumb, from votes, without its texts."""

    id: str
    chosen: ChoiceKey | None
    rejected: ChoiceKey | None
    correction: int | None  # seq of the vote whose text is the chosen answer
    is_thumb: bool

    @property
    def answers(self) -> list[ChoiceKey]:
        return [key for key in (self.chosen, self.rejected) if key is not None]


class _Texts(NamedTuple):
    """None, or not there: not stored."""

    prompts: dict[ChoiceKey, list[Message] | None]
    answers: dict[ChoiceKey, str | None]
    corrections: dict[int, str | None]


class Exports:
    """Reads only."""

    def __init__(self, sessions: Sessions) -> None:
        self._sessions = sessions

    async def page(self, status: Status, after: str, limit: int) -> list[Exportable]:
        """The next ones by id. open: what a round would learn now; all: also what the guards leave out."""
        async with self._sessions.transaction() as connection:
            voted = await _voted(connection, status, after, limit)
            imported = await _imported(connection, status, after, limit)
            ids = sorted({*voted, *imported})[:limit]
            texts = await _texts(connection, [voted[id] for id in ids if id in voted])
        return [imported[id] if id in imported else _with_texts(voted[id], texts) for id in ids]

    async def unstored_votes(self) -> dict[str, int]:
        """LeftOut -> votes on answers whose text is not kept, so that they are in no pair."""
        reason = vote_fates.c.reason
        async with self._sessions.transaction() as connection:
            found = await connection.execute(
                select(reason, func.count()).where(reason.in_(_UNSTORED)).group_by(reason).order_by(reason)
            )
            return {row.reason: row[1] for row in found}


async def _voted(connection: AsyncConnection, status: Status, after: str, limit: int) -> dict[str, _Voted]:
    queries = {"open": [_open(status)], "learned": [_taken(status)], "all": [_open(status), _taken(status)]}[status]
    found: dict[str, _Voted] = {}
    for query in queries:
        id = query.selected_columns[0]
        for row in await connection.execute(query.where(id > after).order_by(id).limit(limit)):
            chosen = choice_key(row.chosen_completion_id, row.chosen_choice_index)
            rejected = choice_key(row.rejected_completion_id, row.rejected_choice_index)
            is_thumb = row.source == Source.THUMB.value
            found[row[0]] = _Voted(row[0], chosen, rejected, row.correction, is_thumb)
    return found


def _open(status: Status) -> Select[*tuple[Any, ...]]:
    table = preference_pairs.c
    query = select(table.id, *(table[name] for name in _CONTENT)).where(table.app.is_not(None))  # null: imported
    return query if status == "all" else query.where(table.left_out.is_(None))


def _taken(status: Status) -> Select[*tuple[Any, ...]]:
    """Each once: a pair that was replayed is in several rounds. What was settled was learned by none."""
    table = round_pairs.c
    served = func.coalesce(table.chosen_completion_id, table.rejected_completion_id)  # null: imported
    query = (
        select(table.pair_id, *(table[name] for name in _CONTENT))
        .ext(distinct_on(table.pair_id))
        .join(rounds, rounds.c.n == table.round)
        .where(served.is_not(None), counts())
    )
    return query if status == "all" else query.where(table.split != SETTLED)


async def _imported(connection: AsyncConnection, status: Status, after: str, limit: int) -> dict[str, Exportable]:
    table = imported_pairs.c
    query = select(imported_pairs).where(table.id > after).order_by(table.id).limit(limit)
    if status != "all":
        query = query.where(learned(table.id) if status == "learned" else ~used_up(table.id))
    return {
        row.id: Exportable(row.id, row.messages, row.chosen, row.rejected, is_thumb=None in (row.chosen, row.rejected))
        for row in await connection.execute(query)
    }


async def _texts(connection: AsyncConnection, voted: Sequence[_Voted]) -> _Texts:
    ids = sorted({key[0] for pair in voted for key in pair.answers})
    served = await connection.execute(
        select(choices.c.completion_id, choices.c.choice_index, choices.c.text, completions.c.messages)
        .join(completions, completions.c.id == choices.c.completion_id)
        .where(completions.c.id == any_(literal(ids, ARRAY(Text))), ~completions.c.redacted)
    )
    rows = {(row.completion_id, row.choice_index): row for row in served}
    seqs = [pair.correction for pair in voted if pair.correction is not None]
    corrected = await connection.execute(
        select(feedback.c.seq, feedback.c.correction).where(feedback.c.seq == any_(literal(seqs, ARRAY(BigInteger))))
    )
    return _Texts(
        prompts={key: None if row.messages is None else _messages(row.messages) for key, row in rows.items()},
        answers={key: row.text for key, row in rows.items()},
        corrections={row.seq: row.correction for row in corrected},
    )


def _messages(stored: Iterable[dict[str, Any]]) -> list[Message]:
    return [{"role": message["role"], "content": _text(message["content"])} for message in stored]


def _text(content: str | list[dict[str, str]]) -> str:
    """Parts with a line break between, as vLLM joins them."""
    return content if isinstance(content, str) else "\n".join(part["text"] for part in content)


def _with_texts(pair: _Voted, texts: _Texts) -> Exportable:
    prompts = (texts.prompts.get(key) for key in pair.answers)
    prompt = next((messages for messages in prompts if messages is not None), None)
    chosen, rejected = (None if key is None else texts.answers.get(key) for key in (pair.chosen, pair.rejected))
    if pair.correction is not None:
        chosen = texts.corrections.get(pair.correction)
    return Exportable(pair.id, prompt, chosen, rejected, is_thumb=pair.is_thumb)
