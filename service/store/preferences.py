"""What preferences are made from: the effective votes, the imported pairs, and what earlier rounds learned.

Only reads and keeps; which pairs follow is `service/preferences.py`'s to say.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from typing import Any, Literal, NamedTuple

from sqlalchemy import ARRAY, Row, Select, Text, any_, literal, select, union
from sqlalchemy.dialects.postgresql import distinct_on
from sqlalchemy.dialects.postgresql import insert as upsert
from sqlalchemy.ext.asyncio import AsyncConnection

from service.contracts import ImportedPair, Pair, RoundState, Vote
from service.store.feedback import NO_USER
from service.store.sessions import Sessions
from service.store.tables import choices, completions, feedback, imported_pairs, round_pairs, rounds
from training.contracts import HELD_OUT, TRAIN
from training.snapshot import SnapshotRow

ChoiceKey = tuple[str, int]  # (completion_id, choice_index)
_LEARNED_NOTHING = [RoundState.FAILED.value, RoundState.CANCELLED.value]


class _Served(NamedTuple):
    prompt_token_ids: list[int]
    token_ids: list[int]


class Preferences:
    def __init__(self, sessions: Sessions) -> None:
        self._sessions = sessions

    async def effective_votes(self) -> list[Vote]:
        """The last vote of each user on each choice, those retracted left out, in the order of `seq`."""
        async with self._sessions.transaction() as connection:
            return [_vote(row) for row in await connection.execute(_effective_votes())]

    async def learned_choices(self) -> set[ChoiceKey]:
        """The choices in pairs of rounds that ended with a verdict, or that may still do so."""
        async with self._sessions.transaction() as connection:
            found = await connection.execute(union(_learned_side("chosen"), _learned_side("rejected")))
            return {(completion_id, choice_index) for completion_id, choice_index in found}

    async def add_imported(self, pairs: Sequence[ImportedPair]) -> int:
        """Keeps the pairs, all or none; those already there are left alone. How many were new."""
        if not pairs:
            return 0
        rows = [
            {"id": pair.id, "messages": list(pair.messages), "chosen": pair.chosen, "rejected": pair.rejected}
            for pair in pairs
        ]
        statement = upsert(imported_pairs).on_conflict_do_nothing().returning(imported_pairs.c.id)
        async with self._sessions.transaction() as connection:
            return len((await connection.execute(statement, rows)).all())

    async def imported_new(self) -> list[ImportedPair]:
        """The imported pairs that no round has learned, nor may still, oldest first."""
        learned = (
            select(round_pairs.c.pair_id)
            .select_from(round_pairs.join(rounds))
            .where(rounds.c.state.not_in(_LEARNED_NOTHING))
            .where(round_pairs.c.pair_id == imported_pairs.c.id)
        )
        statement = select(imported_pairs).where(~learned.exists()).order_by(imported_pairs.c.seq)
        async with self._sessions.transaction() as connection:
            return [_imported_pair(row) for row in await connection.execute(statement)]

    async def snapshot_rows(self, pairs: Sequence[Pair], held_out: AbstractSet[str]) -> list[SnapshotRow]:
        """The content of each pair, in the order of `pairs`: what was served for votes, the text for imports.

        Raises `KeyError` when a pair names content that the store does not hold.
        """
        async with self._sessions.transaction() as connection:
            served = await _served(connection, pairs)
            imported = await _imported(connection, pairs)
        rows = []
        for pair in pairs:
            split = HELD_OUT if pair.id in held_out else TRAIN
            if pair.chosen is not None and pair.rejected is not None:
                rows.append(_row_of_tokens(pair.id, split, served[pair.chosen], served[pair.rejected]))
            else:
                rows.append(_row_of_text(pair.id, split, imported[pair.id]))
        return rows


def _effective_votes() -> Select[*tuple[Any, ...]]:
    target = (feedback.c.completion_id, feedback.c.choice_index, feedback.c.user, feedback.c.kind)
    last = select(feedback).ext(distinct_on(*target)).order_by(*target, feedback.c.seq.desc()).subquery("last")
    same_choice = (choices.c.completion_id == last.c.completion_id) & (choices.c.choice_index == last.c.choice_index)
    return (
        select(
            *(last.c.seq, last.c.app, last.c.user, last.c.completion_id, last.c.choice_index, last.c.rating),
            *(completions.c.adapter, completions.c.prompt_digest),
            *(choices.c.finish_reason, choices.c.text, choices.c.token_ids),
        )
        .join(completions, completions.c.id == last.c.completion_id)
        .join(choices, same_choice)
        # Asked of the last vote, not before it is chosen: else a retraction would bring an older vote back.
        .where(~last.c.retracted)
        .order_by(last.c.seq)
    )


def _learned_side(side: Literal["chosen", "rejected"]) -> Select[Any, Any]:
    completion_id, choice_index = round_pairs.c[f"{side}_completion_id"], round_pairs.c[f"{side}_choice_index"]
    return (
        select(completion_id, choice_index)
        .join(rounds, rounds.c.n == round_pairs.c.round)
        .where(rounds.c.state.not_in(_LEARNED_NOTHING), completion_id.is_not(None))
    )


async def _served(connection: AsyncConnection, pairs: Sequence[Pair]) -> dict[ChoiceKey, _Served]:
    """The token ids of every choice that the pairs name, and perhaps of others of the same completions."""
    ids = {key[0] for pair in pairs for key in (pair.chosen, pair.rejected) if key is not None}
    found = await connection.execute(
        select(choices.c.completion_id, choices.c.choice_index, completions.c.prompt_token_ids, choices.c.token_ids)
        .join(completions, completions.c.id == choices.c.completion_id)
        .where(choices.c.completion_id == any_(literal(sorted(ids), ARRAY(Text))))
    )
    return {
        (row.completion_id, row.choice_index): _Served(row.prompt_token_ids, row.token_ids)
        for row in found
        if row.prompt_token_ids is not None and row.token_ids is not None
    }


async def _imported(connection: AsyncConnection, pairs: Sequence[Pair]) -> dict[str, ImportedPair]:
    ids = [pair.id for pair in pairs if pair.origin == "import"]
    found = await connection.execute(
        select(imported_pairs).where(imported_pairs.c.id == any_(literal(ids, ARRAY(Text))))
    )
    return {row.id: _imported_pair(row) for row in found}


def _row_of_tokens(pair_id: str, split: str, chosen: _Served, rejected: _Served) -> SnapshotRow:
    assert chosen.prompt_token_ids == rejected.prompt_token_ids, "a pair has one prompt"
    return SnapshotRow(
        pair_id,
        split,
        chosen.prompt_token_ids,
        chosen_token_ids=chosen.token_ids,
        rejected_token_ids=rejected.token_ids,
    )


def _row_of_text(pair_id: str, split: str, pair: ImportedPair) -> SnapshotRow:
    messages = json.dumps(pair.messages, ensure_ascii=False)
    return SnapshotRow(pair_id, split, messages=messages, chosen_text=pair.chosen, rejected_text=pair.rejected)


def _vote(row: Row[Any]) -> Vote:
    fields = dict(row._mapping)
    fields["user"] = None if row.user == NO_USER else row.user
    return Vote.model_validate(fields)


def _imported_pair(row: Row[Any]) -> ImportedPair:
    return ImportedPair(id=row.id, messages=tuple(row.messages), chosen=row.chosen, rejected=row.rejected)
