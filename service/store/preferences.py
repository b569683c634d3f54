"""What rounds are made from: the pairs that are open, what earlier rounds took, and the content of the pairs.

Only reads and keeps; which pairs follow from votes is `service/preferences.py`'s to say, and which of them a round takes
`service/curation/guards.py`'s.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from datetime import UTC, date, datetime
from typing import Any, NamedTuple

from sqlalchemy import any_, func, select, text
from sqlalchemy.ext.asyncio import AsyncConnection

from service.pairs import ImportedPair, LeftOut, Pair
from service.postgres.arrays import seqs, texts
from service.postgres.sessions import Sessions
from service.store import pairs as pair_rows
from service.store import round_pairs
from service.store.tables import choices, completions, feedback, imported_pairs, preference_pairs, vote_fates
from service.store.tables import round_pairs as used
from service.votes import ChoiceKey
from training.contracts import HELD_OUT, NEW, TRAIN
from training.snapshot import SnapshotRow

READ_SECONDS = 300.0  # that reading all open pairs may take, or the content of a round's


@dataclass(frozen=True)
class Open:
    """Everything that a round started now would choose from."""

    now: datetime  # by the clock of the database
    pairs: list[Pair]  # by id
    left_out: dict[LeftOut, int]  # why votes are in none of them -> how many
    counted: dict[tuple[str, date], int]  # (voter, UTC day) -> pairs that earlier rounds have used


class _Served(NamedTuple):
    prompt_token_ids: list[int]
    token_ids: list[int]


class Preferences:
    def __init__(self, sessions: Sessions) -> None:
        self._sessions = sessions

    async def open(self) -> Open:
        """As one state, whatever is matched meanwhile."""
        async with self._sessions.transaction(statement_seconds=READ_SECONDS) as connection:
            await one_state(connection)
            return await read_open(connection)

    async def trained_in(self, rounds: Sequence[int]) -> list[Pair]:
        """What the promoted ones of these rounds have trained on, by id; never what they held out."""
        async with self._sessions.transaction() as connection:
            return await round_pairs.trained(connection, rounds)

    async def voted_at(self, pair_ids: Sequence[str]) -> dict[str, datetime]:
        """When people last voted on each, be it open or used by a round; imported pairs are left out."""
        sources = ((used.c.pair_id, used.c.voted_at), (preference_pairs.c.id, preference_pairs.c.voted_at))
        found: dict[str, datetime] = {}
        async with self._sessions.transaction() as connection:
            for id, at in sources:
                rows = await connection.execute(select(id, at).where(id == any_(texts(pair_ids)), at.is_not(None)))
                found |= {row[0]: row[1] for row in rows}
        return found

    async def snapshot_rows(
        self, pairs: Sequence[Pair], held_out: AbstractSet[str], origin: str = NEW
    ) -> list[SnapshotRow]:
        """The content of each pair, in the order of `pairs`: what was served for votes, the text for imports.

        Raises `KeyError` when a pair names content that the store does not hold.
        """
        async with self._sessions.transaction(statement_seconds=READ_SECONDS) as connection:
            served = await _served(connection, pairs)
            imported = await _imported(connection, pairs)
            corrections = await _corrections(connection, pairs)
        rows = []
        for pair in pairs:
            if pair.app is None:
                content = _content_of_text(imported[pair.id])
            else:
                content = _served_content(pair, served, corrections)
            split = HELD_OUT if pair.id in held_out else TRAIN
            rows.append(SnapshotRow(pair.id, split, origin=origin, voter=pair.voter, weight=pair.weight, **content))
        return rows


async def one_state(connection: AsyncConnection) -> None:
    """Every statement of the transaction that begins here sees the same."""
    await connection.execute(text("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY"))


async def read_open(connection: AsyncConnection) -> Open:
    """In a transaction that sees one state."""
    now = (await connection.execute(select(func.now()))).scalar_one()
    pairs = await pair_rows.list_open(connection)
    days = {pair.voted_at.astimezone(UTC).date() for pair in pairs if pair.voted_at is not None}
    counts = await connection.execute(
        select(vote_fates.c.reason, func.count()).where(vote_fates.c.reason.is_not(None)).group_by(vote_fates.c.reason)
    )
    left_out = {LeftOut(reason): count for reason, count in counts}
    return Open(now, pairs, left_out, await round_pairs.counted(connection, days))


async def _served(connection: AsyncConnection, pairs: Sequence[Pair]) -> dict[ChoiceKey, _Served]:
    """The token ids of every choice that the pairs name, and perhaps of others of the same completions."""
    ids = {key[0] for pair in pairs for key in (pair.chosen, pair.rejected) if key is not None}
    found = await connection.execute(
        select(choices.c.completion_id, choices.c.choice_index, completions.c.prompt_token_ids, choices.c.token_ids)
        .join(completions, completions.c.id == choices.c.completion_id)
        .where(choices.c.completion_id == any_(texts(sorted(ids))))
    )
    return {
        (row.completion_id, row.choice_index): _Served(row.prompt_token_ids, row.token_ids)
        for row in found
        if row.prompt_token_ids is not None and row.token_ids is not None
    }


async def _corrections(connection: AsyncConnection, pairs: Sequence[Pair]) -> dict[int, str]:
    """seq -> the text of that vote."""
    corrections = [pair.correction for pair in pairs if pair.correction is not None]
    found = await connection.execute(
        select(feedback.c.seq, feedback.c.correction).where(feedback.c.seq == any_(seqs(corrections)))
    )
    return {row.seq: row.correction for row in found if row.correction is not None}


async def _imported(connection: AsyncConnection, pairs: Sequence[Pair]) -> dict[str, ImportedPair]:
    ids = [pair.id for pair in pairs if pair.app is None]
    found = await connection.execute(select(imported_pairs).where(imported_pairs.c.id == any_(texts(ids))))
    return {row.id: pair_rows.imported_pair(row) for row in found}


def _served_content(pair: Pair, served: dict[ChoiceKey, _Served], corrections: dict[int, str]) -> dict[str, Any]:
    """The token ids of a pair, or of a thumb, which has one answer; of a correction the text that its user wrote."""
    sides = {"chosen": pair.chosen, "rejected": pair.rejected}
    answers = {side: served[key] for side, key in sides.items() if key is not None}
    prompts = [answer.prompt_token_ids for answer in answers.values()]
    assert prompts and all(prompt == prompts[0] for prompt in prompts), "a pair has one prompt"
    content: dict[str, Any] = {f"{side}_token_ids": answer.token_ids for side, answer in answers.items()}
    if pair.correction is not None:
        content["chosen_text"] = corrections[pair.correction]
    return {"prompt_token_ids": prompts[0]} | content


def _content_of_text(pair: ImportedPair) -> dict[str, Any]:
    messages = json.dumps(pair.messages, ensure_ascii=False)
    return {"messages": messages, "chosen_text": pair.chosen, "rejected_text": pair.rejected}
